"""Lines of a process that logs as JSON, and what each of them has to have."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from typing import Any

JSON_LOGS = {"EMBERLINE_LOG_FORMAT": "json"}
_FIRST = ("time", "level", "run_id", "workload", "step", "member", "event", "message")


def parsed(text: str) -> list[dict[str, Any]]:
    """Each line as an object, if it is one of a log."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"time", "level", "event", "message"} <= line.keys(), line
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
        assert line["level"] in ("info", "warning", "error"), line
        known = [key for key in _FIRST if key in line]
        assert list(line)[: len(known)] == known, "they come first, in this order"
    return lines


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **JSON_LOGS, **variables}
