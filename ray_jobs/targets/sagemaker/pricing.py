"""What a training job or an endpoint costs, from a dated table: prices.csv beside this file.

A price is in the table only where its source names the use (SageMaker training or hosting), the
region and a day.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

from ray_jobs.errors import PreflightError
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

Use = Literal["training", "hosting"]
TABLE = Path(__file__).with_name("prices.csv")
# SageMaker lets a job that it stops run on for two minutes, "StoppingCondition", and bills them.
STOPPING_S = 120
_MIN_RUN_S = 60  # a budget for less than this starts no training


@dataclass(frozen=True)
class Price:
    """The on-demand price of one instance, for training or for hosting."""

    instance_type: str
    region: str
    usd_per_hour: float
    read_on: date | None  # None: the description's own figure
    source: str

    @property
    def note(self) -> str:
        """`0.257 USD/hour on 2023-12-31`."""
        day = f" on {self.read_on}" if self.read_on else f" ({self.source})"
        return f"{self.usd_per_hour:g} USD/hour{day}"


@dataclass(frozen=True)
class Cost:
    """What a time costs, or why that is not known."""

    usd: float | None  # None: the price is not in the table
    is_upper_bound: bool  # of a spot job before it has run
    note: str  # the price with its day, or what is missing

    def __str__(self) -> str:
        if self.usd is None:
            return f"unknown: {self.note}"
        return f"{'at most ' if self.is_upper_bound else ''}{self.usd:.2f} USD ({self.note})"


@cache
def prices(use: Use = "training") -> dict[tuple[str, str], Price]:
    """Every price of the table for a use, by instance type and region."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [
            Price(
                instance_type=row["instance_type"],
                region=row["region"],
                usd_per_hour=float(row["usd_per_hour"]),
                read_on=date.fromisoformat(row["read_on"]),
                source=row["source"],
            )
            for row in csv.DictReader(file)
            if row["use"] == use
        ]
    found = {(price.instance_type, price.region): price for price in rows}
    assert len(found) == len(rows), "a price is in the table twice"
    return found


def price_of(spec: SageMakerSpec, region: str) -> Price | None:
    """The description's own price, else the table's; None if neither has one."""
    if spec.usd_per_hour is not None:
        return Price(spec.instance_type, region, spec.usd_per_hour, None, "sagemaker.usd_per_hour")
    return prices().get((spec.instance_type, region))


def hosting_price(instance_type: str, region: str, usd_per_hour: float | None) -> Price | None:
    """The description's own price of an endpoint's instance, else the table's."""
    if usd_per_hour is not None:
        source = "deployment.sagemaker.usd_per_hour"
        return Price(instance_type, region, usd_per_hour, None, source)
    return prices("hosting").get((instance_type, region))


def cost_of_run(spec: SageMakerSpec, region: str, seconds: float) -> Cost:
    """What a run will cost that trains for `seconds`, and then keeps its warm pool.

    Spot capacity has no price until it is had, so the on-demand price is what it costs at most.
    """
    assert seconds >= 0, seconds
    return _cost(spec, region, seconds + spec.keep_alive_s, is_upper_bound=spec.spot)


def cost_of_billed(spec: SageMakerSpec, region: str, billable_s: int) -> Cost:
    """What a job has cost, from its `BillableTimeInSeconds`.

    A spot job is billed at the on-demand price for fewer seconds than it trained: Amazon SageMaker
    AI API Reference, "DescribeTrainingJob", BillableTimeInSeconds, which counts one instance.
    """
    assert billable_s >= 0, billable_s
    return _cost(spec, region, billable_s, is_upper_bound=False)


def _cost(spec: SageMakerSpec, region: str, seconds: float, *, is_upper_bound: bool) -> Cost:
    price = price_of(spec, region)
    if price is None:
        return Cost(None, is_upper_bound=False, note=_missing(spec, region))
    usd = price.usd_per_hour * spec.instance_count * seconds / 3600
    return Cost(usd, is_upper_bound, price.note)


def max_run_s(spec: SageMakerSpec, region: str) -> int:
    """`MaxRuntimeInSeconds`: the description's, or less where `max_cost_usd` ends sooner.

    The two minutes that a stopped job may go on, and its warm pool, are paid from the same budget.

    Raises:
        PreflightError: the price is not known, or the budget does not pay for a minute.
    """
    if spec.max_cost_usd is None:
        return spec.max_run_s
    price = price_of(spec, region)
    if price is None:
        raise PreflightError(
            f"sagemaker.max_cost_usd cannot be kept: {_missing(spec, region)}; set "
            "sagemaker.usd_per_hour to what AWS charges you, or max_run_s in place of max_cost_usd"
        )
    paid_s = spec.max_cost_usd / (price.usd_per_hour * spec.instance_count) * 3600
    run_s = int(paid_s) - STOPPING_S - spec.keep_alive_s
    if run_s < _MIN_RUN_S:
        least_s = _MIN_RUN_S + STOPPING_S + spec.keep_alive_s
        least_usd = price.usd_per_hour * spec.instance_count * least_s / 3600
        raise PreflightError(
            f"sagemaker.max_cost_usd={spec.max_cost_usd:g} pays for {paid_s:.0f} s of "
            f"{spec.instance_count} x {spec.instance_type} at {price.note}, too little to train; "
            f"set it to {math.ceil(least_usd * 100) / 100:.2f} at least, or take a smaller "
            "sagemaker.instance_type"
        )
    return min(spec.max_run_s, run_s)


def check_budget(spec: SageMakerSpec, region: str, seconds: float) -> Cost:
    """What a run of `seconds` will cost, if the budget allows it.

    Raises:
        PreflightError: the run costs more than `max_cost_usd`, or its price is not known.
    """
    allowed_s = max_run_s(spec, region)
    cost = cost_of_run(spec, region, seconds)
    if spec.max_cost_usd is not None and seconds > allowed_s:
        raise PreflightError(
            f"the run would take {seconds:.0f} s and cost {cost}; sagemaker.max_cost_usd="
            f"{spec.max_cost_usd:g} stops it after {allowed_s} s. Raise it, or train less"
        )
    return cost


def _missing(spec: SageMakerSpec, region: str) -> str:
    where = sorted(area for kind, area in prices() if kind == spec.instance_type)
    known = f"; it has that of {', '.join(where)}" if where else ""
    return f"{TABLE.name} has no price of {spec.instance_type} in {region}{known}"
