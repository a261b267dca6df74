"""Logs: what a process says, as text for people or as JSON lines for machines.

EMBERLINE_LOG_FORMAT=json makes each line of a process's stdout and stderr a JSON object:

    time (UTC, ISO 8601)   level (info, warning, error)   run_id, workload, step, member (if known)
    event (that of the journal, or message, output, log, error, crash)   message   ...

An outcome that is printed as JSON stays the last line of stdout, and is one line there. Without the
variable nothing changes: messages are text on stderr.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any

from ray_jobs.errors import EmberlineError, SpecError

FORMAT = "EMBERLINE_LOG_FORMAT"
_KEYS = ("time", "level", "run_id", "workload", "step", "member", "event", "message")  # come first
_LONGEST_LIST = 20  # of an event: thousands of ids belong into the journal
_bound: dict[str, str] = {}
_writing = threading.RLock()  # a signal's handler may write, too


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return os.environ.get(FORMAT) == "json"


def bind(**fields: str) -> None:
    """Have every JSON line of this process carry these, such as the run's id."""
    _bound.update(fields)


def say(message: str, *, level: str = "info", event: str = "message", **fields: Any) -> None:
    """A line on stderr: the message, or an object with it."""
    if is_json():
        _write(_own(sys.stderr), level=level, event=event, message=message, **fields)
    else:
        print(message, file=sys.stderr, flush=True)


def say_error(error: EmberlineError) -> None:
    """What ended the process."""
    if is_json():
        say(str(error), level="error", event="error", exit_code=error.exit_code)
    else:
        say(f"error: {error}")


def say_crash(error: BaseException) -> None:
    """What ended the process, with where it was raised: a traceback, or a line that holds one."""
    if is_json():
        _write(
            _own(sys.stderr),
            level="error",
            event="crash",
            message=f"{type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
        )
    else:
        traceback.print_exception(error)


def show(outcome: str) -> None:
    """Print an outcome, a JSON text, on stdout: in one line where lines are objects."""
    if is_json():
        stream = _own(sys.stdout)
        stream.write(json.dumps(json.loads(outcome), ensure_ascii=False) + "\n")
        stream.flush()
    else:
        print(outcome, flush=True)


def tell(event: Mapping[str, Any], message: str | None = None) -> None:
    """An event of a run's journal, as a line; for where lines are objects."""
    kind, rest = str(event["event"]), dict[str, Any]()
    for key, value in event.items():
        if isinstance(value, list) and len(value) > _LONGEST_LIST:
            rest[f"num_{key}"] = len(value)
        else:
            rest[key] = value
    failed = "failure" in event or event.get("status") == "FAILED"
    level = "error" if failed else "warning" if kind == "warning" else "info"
    text = message or str(event.get("message") or event.get("failure") or kind.replace("_", " "))
    _write(_own(sys.stderr), **{**rest, "level": level, "message": text})


def setup() -> None:
    """Make every line of this process an object, whoever writes it; nothing where lines are text.

    What other libraries print or log, warnings, and what a crash leaves are lines of their own.

    Raises:
        SpecError: EMBERLINE_LOG_FORMAT is neither json nor text.
    """
    value = os.environ.get(FORMAT, "text")
    if value not in ("json", "text"):
        raise SpecError(f"{FORMAT}={value}: set it to json or text")
    if value == "text" or isinstance(sys.stderr, _Lines):
        return
    sys.stdout, sys.stderr = _Lines(sys.stdout, "info"), _Lines(sys.stderr, "info")
    handler = logging.StreamHandler(_own(sys.stderr))
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: say_crash(error)
    threading.excepthook = lambda found: say_crash(found.exc_value or found.exc_type())


# Parts


class _Lines:
    """A stream that makes each line that is written to it an object."""

    def __init__(self, stream: IO[str], level: str):
        self.stream = stream
        self._level, self._rest = level, ""
        atexit.register(self.write, "\n")  # a last line that nothing has ended

    def write(self, text: str) -> int:
        with _writing:
            *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                _write(self.stream, level=self._level, event="output", message=line.rstrip())
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Formatter(logging.Formatter):
    """A record of Python's logging, as an object."""

    def format(self, record: logging.LogRecord) -> str:
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        fields = {"logger": record.name}
        if record.exc_info and record.exc_info[1]:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return _line(level=level, event="log", message=record.getMessage(), **fields)


def _own(stream: Any) -> IO[str]:
    """The stream itself, behind `_Lines`."""
    return stream.stream if isinstance(stream, _Lines) else stream


def _write(stream: IO[str], **fields: Any) -> None:
    line = _line(**fields) + "\n"
    with _writing:
        stream.write(line)
        stream.flush()


def _line(**fields: Any) -> str:
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    known = {"time": stamp, **_bound, **fields}
    first = {key: known[key] for key in _KEYS if known.get(key) is not None}
    return json.dumps({**first, **known}, default=str, ensure_ascii=False)
