"""`emberline pipelines schedule`: runs of a pipeline that start by themselves."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.compilation import Variant, compiled
from pipelines.kubeflow import UNITS, Kubeflow, Schedule, Trigger
from pipelines.submission import check, parameters
from ray_jobs.errors import EXIT_OK, RetryableError, SpecError
from ray_jobs.kubeflow_spec import KubeflowSpec
from ray_jobs.sections import JobSpec

if TYPE_CHECKING:
    from rich.console import Console

_OWN = "emberline sha256 "  # how the description of a schedule of ours begins
_NUM_TRIES = 3  # to create one, if it is not known whether it was created
_SETTLE_S = 1.1  # KFP tells the age of schedules in seconds
# Of each field: what it may name beside numbers, and the least and greatest number.
_FIELDS = (
    ("seconds", 0, 59),
    ("minutes", 0, 59),
    ("hours", 0, 23),
    ("days of the month", 1, 31),
    ("months", 1, 12),
    ("days of the week", 0, 6),
)
_NAMES = {
    "months": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "days of the week": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}


def trigger_of(cron: str | None, every: str | None) -> Trigger:
    """When to start: `cron` of five fields, or six with the seconds first, in KFP's time zone
    (UTC unless its administrator says otherwise); or `every`, such as 6h.

    Raises:
        SpecError: it is neither, or both.
    """
    if (cron is None) == (every is None):
        raise SpecError('say when: --cron "0 3 * * *" or --every 6h')
    if cron is not None:
        return Trigger(cron=_cron(cron))
    assert every is not None
    found = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", every.strip())
    if not found:
        raise SpecError(f"--every {every!r} is no interval; give 30m, 6h, 1d or 2w")
    return Trigger(every_s=int(found[1]) * UNITS[found[2]])


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) == 5:
        fields = ["0", *fields]  # KFP's first field are the seconds
    if len(fields) != 6:
        raise SpecError(
            f"--cron {text!r} has {len(fields)} fields; it has five: minute, hour, day of the "
            "month, month, day of the week"
        )
    for given, (name, low, high) in zip(fields, _FIELDS, strict=True):
        if not all(_is_part(part, name, low, high) for part in given.split(",")):
            raise SpecError(
                f"--cron {text!r}: {given!r} are no {name}; write numbers from {low} to {high}, "
                "*, */N, A-B or A,B"
            )
    return " ".join(fields)


def _is_part(part: str, name: str, low: int, high: int) -> bool:
    found = re.fullmatch(r"(\*|\?|(\w+)(-(\w+))?)(/(\d+))?", part)
    if not found:
        return False
    names = _NAMES.get(name, [])
    start, end = (
        names.index(word.upper()) + low if word and word.upper() in names else word
        for word in (found[2], found[4])
    )
    numbers = [
        int(word) if str(word).isdigit() else -1 for word in (start, end) if word is not None
    ]
    step = int(found[6]) if found[6] else 1
    return step > 0 and numbers == sorted(numbers) and all(low <= one <= high for one in numbers)


@dataclass(frozen=True)
class Scheduled:
    """A schedule, as KFP has it now."""

    schedule: Schedule
    url: str
    is_new: bool = field(kw_only=True)
    exit_code: ClassVar[int] = EXIT_OK

    def to_json(self) -> str:
        return json.dumps({**_fields(self.schedule), "url": self.url, "is_new": self.is_new})

    def print(self, console: Console) -> None:
        one = self.schedule
        said = "made" if self.is_new else "there already"
        console.print(f"[bold]{one.name}[/] {_state(one)}, {one.trigger} ({said})")
        console.print(f"link     {self.url}", soft_wrap=True, markup=False)
        console.print(f"end it   emberline pipelines unschedule {one.name}", markup=False)


@dataclass(frozen=True)
class Schedules:
    """Several of them, or none."""

    schedules: Sequence[Schedule]
    verb: str = ""  # what was done to them
    exit_code: ClassVar[int] = EXIT_OK

    def to_json(self) -> str:
        return json.dumps([_fields(one) for one in self.schedules])

    def print(self, console: Console) -> None:
        from rich.table import Table

        if not self.schedules:
            console.print("no schedules")
            return
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
        for one in self.schedules:
            table.add_row(one.name, self.verb or _state(one), str(one.trigger))
        console.print(table)


def schedule(
    variant: Variant,
    job: JobSpec,
    trigger: Trigger,
    *,
    name: str | None = None,
    retraining: Mapping[str, Any] | None = None,
    is_enabled: bool = True,
    replace: bool = False,
) -> Scheduled:
    """Have the pipeline run whenever the trigger says; each run of it has an id of its own. Asked
    for the same again, it is the same schedule.

    Args:
        name: of the schedule; default: the pipeline's.
        retraining: parameters of the retraining pipeline.
        replace: take the place of a schedule of this name that does something else.

    Raises:
        SpecError: there is another schedule of this name; or as `check`.
        EmberlineError: as KFP's API.
    """
    check(job)
    name = name or variant.name
    kubeflow = Kubeflow(job.kubeflow)
    pipeline = compiled(variant, job)
    given = parameters(job, "", retraining)
    experiment_name = job.kubeflow.experiment or variant.workload
    content = [pipeline.digest, given, str(trigger), experiment_name, job.kubeflow.service_account]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    description = f"{_OWN}{digest}"

    same, others = _split(kubeflow.schedules(name), description)
    if others and not replace:
        raise SpecError(
            f"there is another schedule {name!r} ({others[0].trigger}); take its place with "
            "--replace, or take another --name"
        )
    is_new = not same
    if is_new:
        version = kubeflow.upload(pipeline)
        experiment = kubeflow.experiment(experiment_name)
        for tries_left in reversed(range(_NUM_TRIES)):
            try:
                kubeflow.create_schedule(
                    name,
                    version,
                    experiment,
                    given,
                    trigger=trigger,
                    description=description,
                    is_enabled=is_enabled,
                )
            except RetryableError:  # it may have been created: the next look tells
                if not tries_left:
                    raise
            time.sleep(_SETTLE_S)
            same, others = _split(kubeflow.schedules(name), description)
            if same:
                break
    kept, *doubles = same
    for one in (*doubles, *others):
        kubeflow.delete_schedule(one.id)
    if kept.is_enabled != is_enabled:
        kubeflow.enable(kept.id, on=is_enabled)
        kept = next(one for one in kubeflow.schedules(name) if one.id == kept.id)
    return Scheduled(kept, kubeflow.schedule_link(kept.id), is_new=is_new)


def _split(found: Sequence[Schedule], description: str) -> tuple[list[Schedule], list[Schedule]]:
    """Those that do the same, the first made first; and the others."""
    same = [one for one in found if one.description == description]
    return same, [one for one in found if one.description != description]


def listing(spec: KubeflowSpec) -> Schedules:
    """All schedules that this project has made.

    Raises:
        EmberlineError: as KFP's API.
    """
    return Schedules([one for one in Kubeflow(spec).schedules() if _is_own(one)])


def unschedule(spec: KubeflowSpec, name: str) -> Schedules:
    """End a schedule. A run that it has started goes on.

    Raises:
        SpecError: there is none of this name that this project has made.
        EmberlineError: as KFP's API.
    """
    kubeflow = Kubeflow(spec)
    found = [one for one in kubeflow.schedules(name) if _is_own(one)]
    if not found:
        known = ", ".join(one.name for one in kubeflow.schedules() if _is_own(one)) or "none"
        raise SpecError(f"no schedule {name!r} at {kubeflow.endpoint}; there is {known}")
    for one in found:
        kubeflow.delete_schedule(one.id)
    return Schedules(found, "ended")


def _is_own(one: Schedule) -> bool:
    return one.description.startswith(_OWN)


def _state(one: Schedule) -> str:
    return "enabled" if one.is_enabled else "disabled"


def _fields(one: Schedule) -> dict[str, Any]:
    return {
        "name": one.name,
        "id": one.id,
        "is_enabled": one.is_enabled,
        "cron": one.trigger.cron,
        "every_s": one.trigger.every_s,
    }
