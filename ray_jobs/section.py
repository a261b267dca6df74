"""Section: what every part of a job description is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Part of a job description: an unknown key is an error, and nothing changes after reading."""

    # A column or a run may well be called 7: numbers are taken where a text is wanted.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
