"""Whether a sweep's space fits the job description that its trials are made of."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ray_jobs.sections import Section
from ray_jobs.sweeping.spec import Distribution, Value

MAX_TRIED = 10_000  # combinations of a section's values: 50 ms


def check_space(space: Mapping[str, Distribution], sections: Mapping[str, Section]) -> None:
    """See that every key is one of the sections', and that all values of a section's keys together
    make a section that is accepted.

    Of a range both ends are tried, of a list all values; of a section's combinations the first
    10,000.

    Args:
        sections: what trials may differ in, by name, as the job description has it.

    Raises:
        ValueError: names the key, or the values, and the fix.
    """
    for key in space:
        _check_key(key, sections)
    for name, section in sections.items():
        tried = [
            [(key, value) for value in _ends(distribution)]
            for key, distribution in space.items()
            if key.split(".")[0] == name
        ]
        for setting in itertools.islice(itertools.product(*tried), MAX_TRIED):
            _check_setting(section, setting)


def _check_key(key: str, sections: Mapping[str, Section]) -> None:
    head, *rest = key.split(".")
    if head not in sections:
        raise ValueError(
            f"sweep.space has {key}, but trials differ in {', '.join(sections)} alone; take it out "
            "of sweep.space"
        )
    section: Any = sections[head]
    for part in rest:
        fields = list(type(section).model_fields) if isinstance(section, BaseModel) else []
        if part not in fields:
            near = difflib.get_close_matches(part, fields, n=1, cutoff=0.5)
            guess = f" (near it: {key.rpartition('.')[0]}.{near[0]})" if near else ""
            raise ValueError(
                f"sweep.space has {key}, which is no key of the job description{guess}; name one "
                "that is"
            )
        section = getattr(section, part)


def _check_setting(section: Section, setting: Sequence[tuple[str, Value]]) -> None:
    raw = section.model_dump(mode="json")
    for key, value in setting:
        _, *parents, last = key.split(".")
        inner = raw
        for part in parents:
            inner = inner[part]
        inner[last] = value
    try:
        type(section).model_validate(raw)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        said = " with ".join(f"{key}={value}" for key, value in setting)
        raise ValueError(f"sweep.space allows {said}: {message}") from None


def _ends(distribution: Distribution) -> list[Value]:
    if distribution.values is not None:
        return distribution.values
    assert distribution.low is not None
    assert distribution.high is not None
    ends = (distribution.low, distribution.high)
    return [int(end) for end in ends] if distribution.integer else list(ends)
