"""ListTrainingJobs and Search: which jobs, in which order, a page at a time."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.sagemaker_emulator.training_job import TrainingJob

_SUMMARY = (
    "TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime",
    "TrainingJobStatus", "SecondaryStatus",
)  # fmt: skip
_SORTED_BY = {"Name": "TrainingJobName", "Status": "TrainingJobStatus"}
_PAGE = 10  # what the service takes for MaxResults where none is given
_COMPARISONS: dict[str, Callable[[str | None, str], bool]] = {
    "Equals": lambda found, value: found == value,
    "NotEquals": lambda found, value: found != value,
    "Contains": lambda found, value: found is not None and value in found,
    "In": lambda found, value: found in value.split(","),
    "Exists": lambda found, _: found is not None,
    "NotExists": lambda found, _: found is None,
}


def summaries(jobs: Sequence[TrainingJob], request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ListTrainingJobs says of each job that it is asked for, in order."""
    found = [
        description
        for description in (job.describe() for job in jobs)
        if request.get("NameContains", "") in description["TrainingJobName"]
        and request.get("StatusEquals") in (None, description["TrainingJobStatus"])
        and description["CreationTime"] >= request.get("CreationTimeAfter", 0)
        and description["CreationTime"] <= request.get("CreationTimeBefore", float("inf"))
    ]
    key = _SORTED_BY.get(request.get("SortBy", ""), "CreationTime")
    found.sort(key=lambda d: d[key], reverse=request.get("SortOrder") == "Descending")
    return [{name: d[name] for name in _SUMMARY if name in d} for d in found]


def find(jobs: Sequence[TrainingJob], request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What Search says of each training job that it finds, in order.

    Raises:
        ValueError: the emulator does not know the resource, the property or the operator.
    """
    if request["Resource"] != "TrainingJob":
        raise ValueError(f"the emulator has no {request['Resource']}")
    expression = request.get("SearchExpression", {})
    if unknown := expression.keys() - {"Filters", "Operator"}:
        raise ValueError(f"the emulator's search has no {', '.join(sorted(unknown))}")
    combine = any if expression.get("Operator") == "Or" else all
    filters = expression.get("Filters", [])
    found = [
        {**job.describe(), "Tags": job.tag_list()}
        for job in jobs
        if not filters or combine([_passes(job, condition) for condition in filters])
    ]
    key = request.get("SortBy", "CreationTime")
    is_descending = request.get("SortOrder", "Descending") == "Descending"
    return sorted(found, key=lambda record: record.get(key, ""), reverse=is_descending)


def _passes(job: TrainingJob, condition: Mapping[str, str]) -> bool:
    name, operator = condition["Name"], condition.get("Operator", "Equals")
    if operator not in _COMPARISONS:
        raise ValueError(f"the emulator's search has no {operator}")
    if name.startswith("Tags."):
        found = job.tags.get(name.removeprefix("Tags."))
    elif name in ("TrainingJobName", "TrainingJobArn", "TrainingJobStatus", "SecondaryStatus"):
        found = job.describe()[name]
    else:
        raise ValueError(f"Unknown property name: {name}")
    return _COMPARISONS[operator](found, condition.get("Value", ""))


def page(
    items: Sequence[dict[str, Any]], request: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The page that is asked for, and the token of the next one, if there is one."""
    start = 0
    if token := request.get("NextToken"):
        start = int(base64.b64decode(token))
    end = start + request.get("MaxResults", _PAGE)
    following = base64.b64encode(str(end).encode()).decode()
    return list(items[start:end]), {"NextToken": following} if end < len(items) else {}
