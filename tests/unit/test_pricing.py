from __future__ import annotations

import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import PreflightError
from ray_jobs.targets.sagemaker.pricing import (
    STOPPING_S,
    check_budget,
    cost_of_billed,
    cost_of_run,
    max_run_s,
    prices,
)
from ray_jobs.targets.sagemaker.spec import SageMakerSpec


def test_every_price_has_a_source_and_a_day() -> None:
    table = prices()
    assert len(table) >= 10
    for price in table.values():
        assert price.instance_type.startswith("ml.")
        assert 0.01 < price.usd_per_hour < 200
        assert date(2023, 1, 1) < price.read_on <= date.today()
        assert re.match(r"https://\S+: ", price.source)
        assert "training" in price.source.lower()  # of hosting alone, it may be another
        places = {"eu-west-1": "EU (Ireland)", "us-east-1": "us-east-1|USE1"}
        assert any(word in price.source for word in places[price.region].split("|"))


def test_a_larger_instance_costs_more() -> None:
    """A typing error in the table would show."""
    sizes = ["large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge"]
    families: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for price in prices().values():
        _, family, size = price.instance_type.split(".")
        found = families.setdefault((family, price.region), [])
        found.append((sizes.index(size), price.usd_per_hour))
    for found in families.values():
        costs = [usd for _, usd in sorted(found)]
        assert costs == sorted(set(costs))


def test_the_cost_of_a_run_in_another_region() -> None:
    spec = SageMakerSpec(instance_type="ml.g5.12xlarge")
    assert str(cost_of_run(spec, "us-east-1", 1800)) == "3.54 USD (7.09 USD/hour on 2026-08-01)"


def test_the_cost_of_a_run() -> None:
    spec = SageMakerSpec(instance_type="ml.m5.xlarge", instance_count=2)
    cost = cost_of_run(spec, "eu-west-1", 3600)
    assert cost.usd == pytest.approx(2 * 0.257)
    assert str(cost) == "0.51 USD (0.257 USD/hour on 2023-12-31)"


def test_a_warm_pool_is_paid_too() -> None:
    spec = SageMakerSpec(keep_alive_s=1800)
    assert cost_of_run(spec, "eu-west-1", 1800).usd == pytest.approx(0.257)


def test_spot_costs_at_most_the_price_on_demand() -> None:
    cost = cost_of_run(SageMakerSpec(spot=True), "eu-west-1", 3600)
    assert str(cost) == "at most 0.26 USD (0.257 USD/hour on 2023-12-31)"


def test_the_billed_cost_counts_each_instance() -> None:
    spec = SageMakerSpec(instance_count=3, spot=True)
    cost = cost_of_billed(spec, "eu-west-1", 1200)
    assert cost.usd == pytest.approx(0.257)
    assert not cost.is_upper_bound


def test_a_price_that_is_not_there_is_not_guessed() -> None:
    cost = cost_of_run(SageMakerSpec(instance_type="ml.g5.xlarge"), "sa-east-1", 3600)
    assert cost.usd is None
    assert str(cost) == (
        "unknown: prices.csv has no price of ml.g5.xlarge in sa-east-1; it has that of eu-west-1"
    )
    cost = cost_of_run(SageMakerSpec(instance_type="ml.x9.large"), "eu-west-1", 3600)
    assert str(cost) == "unknown: prices.csv has no price of ml.x9.large in eu-west-1"


def test_the_descriptions_own_price_goes_first() -> None:
    cost = cost_of_run(SageMakerSpec(usd_per_hour=0.2), "eu-west-1", 3600)
    assert str(cost) == "0.20 USD (0.2 USD/hour (sagemaker.usd_per_hour))"


def test_no_budget_leaves_the_stopping_condition() -> None:
    assert max_run_s(SageMakerSpec(max_run_s=777), "nowhere-1") == 777


def test_a_budget_without_a_price_is_refused() -> None:
    with pytest.raises(PreflightError) as raised:
        max_run_s(SageMakerSpec(max_cost_usd=5), "us-west-2")
    assert str(raised.value) == (
        "sagemaker.max_cost_usd cannot be kept: prices.csv has no price of ml.m5.xlarge in "
        "us-west-2; it has that of eu-west-1; set sagemaker.usd_per_hour to what AWS charges you, "
        "or max_run_s in place of max_cost_usd"
    )


def test_a_budget_that_pays_for_nothing_is_refused() -> None:
    with pytest.raises(PreflightError) as raised:
        max_run_s(SageMakerSpec(max_cost_usd=0.01), "eu-west-1")
    assert str(raised.value) == (
        "sagemaker.max_cost_usd=0.01 pays for 140 s of 1 x ml.m5.xlarge at 0.257 USD/hour on "
        "2023-12-31, too little to train; set it to 0.02 at least, or take a smaller "
        "sagemaker.instance_type"
    )


@given(
    usd=st.floats(0.01, 1e4),
    price=st.floats(0.01, 200),
    count=st.integers(1, 64),
    keep_alive_s=st.integers(0, 21_600),
)
def test_the_budget_is_kept_to_the_last_second(
    usd: float, price: float, count: int, keep_alive_s: int
) -> None:
    spec = SageMakerSpec(
        max_cost_usd=usd, usd_per_hour=price, instance_count=count, keep_alive_s=keep_alive_s
    )
    try:
        seconds = max_run_s(spec, "eu-west-1")
    except PreflightError:
        return
    assert 1 <= seconds <= spec.max_run_s
    spent = cost_of_run(spec, "eu-west-1", seconds + STOPPING_S).usd
    assert spent is not None
    assert spent <= usd * (1 + 1e-9)


def test_a_run_that_costs_more_than_its_budget_is_refused_up_front() -> None:
    spec = SageMakerSpec(max_cost_usd=0.257)
    assert check_budget(spec, "eu-west-1", 3000).usd == pytest.approx(0.257 * 3000 / 3600)
    with pytest.raises(PreflightError) as raised:
        check_budget(spec, "eu-west-1", 7200)
    assert str(raised.value) == (
        "the run would take 7200 s and cost 0.51 USD (0.257 USD/hour on 2023-12-31); "
        "sagemaker.max_cost_usd=0.257 stops it after 3480 s. Raise it, or train less"
    )
