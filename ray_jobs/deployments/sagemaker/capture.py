"""Live records from what an endpoint has captured of its traffic (data capture).

JSON lines below `<capture>/<endpoint>/<variant>/<yyyy>/<mm>/<dd>/<hh>/`, one a request and variant;
of a shadow, its own answers.

Source: Amazon SageMaker AI Developer Guide, "Capture data from real-time endpoint".
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.deployments.sagemaker.request import CHALLENGER, CHAMPION
from ray_jobs.monitoring.records import Record
from ray_jobs.serving.errors import BadInput
from ray_jobs.serving.scorer import Scorer
from ray_jobs.storage import Storage

Outputs = dict[str, list[Any]]


class CapturedRecords(Iterator[Record]):
    """The captured requests, variant by variant and hour by hour. A line that is none is counted
    and skipped."""

    def __init__(self, records: Iterator[Record | None]):
        self.num_malformed = 0  # lines that were skipped so far
        self._records = records

    def __next__(self) -> Record:
        while (record := next(self._records)) is None:
            self.num_malformed += 1
        return record


def read_capture(
    uri: str,
    scorer: Scorer[Any, Any],
    digest_of: Callable[[str], str],
    has_shadow: Callable[[datetime], bool],
    since: datetime | None = None,
    until: datetime | None = None,
) -> CapturedRecords:
    """What an endpoint has captured, as live records.

    How long an answer took is not captured: `seconds` is NaN. A shadow's requests have the ids of
    the champion's where their senders gave them one (InvokeEndpoint's InferenceId).

    Args:
        uri: of the endpoint's folder, from its deployment's details: s3://.../capture/<endpoint>/.
        scorer: of one of its versions, to read the requests with.
        digest_of: a version.
        has_shadow: at a time; what the challenger answered went to nobody.
        since, until: of their time; aware. From the first to before the second.

    Raises:
        StorageUnavailable, StorageRefused: while they are read.
    """
    records = _read(Storage(uri.rstrip("/")), scorer, digest_of, has_shadow, since, until)
    return CapturedRecords(records)


def _read(
    storage: Storage,
    scorer: Scorer[Any, Any],
    digest_of: Callable[[str], str],
    has_shadow: Callable[[datetime], bool],
    since: datetime | None,
    until: datetime | None,
) -> Iterator[Record | None]:
    for path in storage.list("", recursive=True):
        name, _, rest = path.partition("/")
        if name not in (CHAMPION, CHALLENGER) or not path.endswith(".jsonl"):
            continue
        if since is not None and rest[: len("2026/01/01")] < f"{since.astimezone(UTC):%Y/%m/%d}":
            continue
        for line in storage.read_bytes(path).splitlines():
            try:
                record = _record(json.loads(line), scorer, name, digest_of, has_shadow)
            except (KeyError, TypeError, ValueError, BadInput, RecursionError):  # cut off, or odd
                yield None
                continue
            if (since is None or record.time >= since) and (until is None or record.time < until):
                yield record


def _record(
    event: Mapping[str, Any],
    scorer: Scorer[Any, Any],
    variant: str,
    digest_of: Callable[[str], str],
    has_shadow: Callable[[datetime], bool],
) -> Record:
    data, about = event["captureData"], event["eventMetadata"]
    request = data["endpointInput"]
    predictions = json.loads(_content(data["endpointOutput"]))["predictions"]
    inputs = scorer.parse(_content(request), request["observedContentType"])
    version = str(predictions[0]["model_version"])
    time = datetime.fromisoformat(about["inferenceTime"])
    return Record(
        time=time,
        request_id=str(about.get("inferenceId") or about["eventId"]),
        variant=CHALLENGER if variant == CHALLENGER else CHAMPION,
        is_shadow=variant == CHALLENGER and has_shadow(time),
        version=version,
        digest=digest_of(version),
        status=200,  # nothing else is captured
        seconds=math.nan,
        num_rows=len(inputs),
        features=scorer.observe(inputs, None).features,
        outputs=outputs_of(predictions),
    )


def _content(captured: Mapping[str, str]) -> bytes:
    if captured["encoding"] != "BASE64":
        return captured["data"].encode()
    try:
        return base64.b64decode(captured["data"], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def outputs_of(predictions: Sequence[Mapping[str, Any]]) -> Outputs:
    """As `Scorer.observe` names them, its details too; from the answer itself, for another
    version's scorer would give another."""
    if "class" in predictions[0]:
        return {
            "label": [one["class"] for one in predictions],
            "confidence": [float(one["probability"]) for one in predictions],
        }
    if "command" in predictions[0]:
        letters = ("".join(p for p in PARAMETERS if one[p] is not None) for one in predictions)
        return {
            "command": [one["command"] for one in predictions],
            "parameters": [parameters or "none" for parameters in letters],
            **{name: [one[name] for one in predictions] for name in PARAMETERS},
        }
    return {"probability": [float(one["probability"]) for one in predictions]}
