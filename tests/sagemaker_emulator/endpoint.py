"""An endpoint: which configuration is at work, and a thread that brings the next one up beside it.

Source: Amazon SageMaker AI API Reference, "DescribeEndpoint"; Developer Guide, "Blue/Green
Deployments" and "Monitor model and data quality: Capture data".
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.sagemaker_emulator.host import split_uri
from tests.sagemaker_emulator.variant import Variant

_POLL_S = 0.05
Fleet = dict[str, Variant]


class Endpoint:
    """One endpoint. Its thread carries changes out; requests come from others.

    Args:
        fleet_of: the containers that a configuration asks for, not started yet.
        may_go_on: until it is set, no new containers are taken into service.
    """

    def __init__(
        self,
        name: str,
        arn: str,
        tags: dict[str, str],
        fleet_of: Callable[[Mapping[str, Any], Path], Fleet],
        *,
        root: Path,
        s3: Any,
        environment: Mapping[str, str],
        may_go_on: threading.Event,
    ):
        self.name, self.arn, self.tags = name, arn, tags
        self.status = "Creating"
        self.config: Mapping[str, Any] = {}
        self.reason: str | None = None
        self.fleet: Fleet = {}
        self.num_changes = 0
        self._last_config: Mapping[str, Any] = {}  # the last that was asked for
        self._last_deployment: Mapping[str, Any] | None = None
        self._fleet_of, self._root, self._s3 = fleet_of, root, s3
        self._environment, self._may_go_on = environment, may_go_on
        self._created_at = self._changed_at = time.time()
        self._lock = threading.RLock()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._coming: Fleet = {}
        self._num_captured = itertools.count()
        self._turn = itertools.count()

    @property
    def is_changing(self) -> bool:
        return self.status in ("Creating", "Updating", "Deleting")

    def change(
        self, config: Mapping[str, Any], deployment: Mapping[str, Any] | None = None
    ) -> None:
        """Go over to a configuration once all of its containers are healthy."""
        self.status = "Updating" if self.fleet else "Creating"
        self.reason = None
        self.num_changes += 1
        self._last_config, self._last_deployment = config, deployment
        self._thread = threading.Thread(target=self._carry_out, args=(config,), name=self.name)
        self._thread.start()

    def close(self) -> None:
        """End every container."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        for variant in (*self.fleet.values(), *self._coming.values()):
            variant.close()

    def describe(self) -> dict[str, Any]:
        """What DescribeEndpoint answers, with times in seconds since 1970."""
        with self._lock:
            config = self.config or self._last_config
            found: dict[str, Any] = {
                "EndpointName": self.name,
                "EndpointArn": self.arn,
                "EndpointConfigName": config["EndpointConfigName"],
                "EndpointStatus": self.status,
                "CreationTime": round(self._created_at, 3),
                "LastModifiedTime": round(self._changed_at, 3),
            }
            if self.fleet:
                for key in ("ProductionVariants", "ShadowProductionVariants"):
                    if variants := config.get(key):
                        found[key] = [_summary(variant) for variant in variants]
            if self.reason is not None:
                found["FailureReason"] = self.reason
            if self._last_deployment is not None:
                found["LastDeploymentConfig"] = self._last_deployment
            return found

    def log(self) -> str:
        """What the containers have printed, those that did not come up too."""
        return "\n".join(
            path.read_text(encoding="utf-8", errors="replace")
            for path in sorted(self._root.glob("*/*.log"))
        )

    # Changes

    def _carry_out(self, config: Mapping[str, Any]) -> None:
        self._coming = self._fleet_of(config, self._root / str(self.num_changes))
        reason = self._bring_up(config)
        while reason is None and not self._may_go_on.wait(_POLL_S):
            if self._is_over.is_set():
                return
        with self._lock:
            self._changed_at = time.time()
            if reason is None:
                before, self.fleet, self.config = self.fleet, self._coming, config
                self.status = "InService"
            else:
                before, self.reason = self._coming, reason
                self.status = "InService" if self.fleet else "Failed"
            self._coming = {}
        for variant in before.values():
            variant.close()

    def _bring_up(self, config: Mapping[str, Any]) -> str | None:
        """Why a container is not healthy; None: all are."""
        for variant in self._coming.values():
            try:
                variant.start(self._s3, self._environment)
            except ClientError as error:
                uri = variant.model["PrimaryContainer"]["ModelDataUrl"]
                return f"Could not access model data at {uri}: {error}"
        for variant in self._coming.values():
            timeout_s = variant.config.get("ContainerStartupHealthCheckTimeoutInSeconds", 480)
            deadline = time.monotonic() + timeout_s
            while not variant.is_healthy():
                # The service starts a container that ends again until its time is over.
                is_late = time.monotonic() > deadline or variant.has_ended
                if is_late or self._is_over.wait(_POLL_S):
                    return (
                        f"The primary container for production variant {variant.name} did not "
                        "pass the ping health check. Please check CloudWatch logs for this "
                        "endpoint."
                    )
        return None

    # Requests

    def choose(self, target: str | None) -> Variant | None:
        """The variant that answers; None: there is none of that name."""
        variants = self.config["ProductionVariants"]
        names = [variant["VariantName"] for variant in variants]
        if target is not None:
            return self.fleet[target] if target in names else None
        # By their weights, in turn: the one that is furthest behind its share.
        number = next(self._turn)
        total = sum(variant["InitialVariantWeight"] for variant in variants)
        place = (number * 0.618034) % 1 * total  # low discrepancy: shares hold for few requests
        for variant in variants:
            place -= variant["InitialVariantWeight"]
            if place < 0:
                return self.fleet[variant["VariantName"]]
        return self.fleet[names[-1]]

    def invoke(
        self, variant: Variant, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes, str]:
        """Status, content and media type of a variant's answer. It is captured, and shadows are
        asked too."""
        found = variant.invoke(body, headers)
        self._capture(variant.name, body, headers, found)
        for shadow in self.config.get("ShadowProductionVariants", []):
            name = shadow["VariantName"]
            self._capture(name, body, headers, self.fleet[name].invoke(body, headers))
        return found

    def _capture(
        self,
        variant: str,
        body: bytes,
        headers: Mapping[str, str],
        found: tuple[int, bytes, str],
    ) -> None:
        config = self.config.get("DataCaptureConfig", {})
        share = config.get("InitialSamplingPercentage", 0) / 100
        status, content, media_type = found
        number = next(self._num_captured)
        is_due = int((number + 1) * share) > int(number * share)
        if not config.get("EnableCapture") or not is_due or status != 200:
            return
        header = config.get("CaptureContentTypeHeader", {})
        now = datetime.now(UTC)
        asked_as = headers.get("X-Amzn-SageMaker-Inference-Id")
        event = {
            "captureData": {
                "endpointInput": _captured(body, headers["Content-Type"], "INPUT", header),
                "endpointOutput": _captured(content, media_type, "OUTPUT", header),
            },
            "eventMetadata": {
                "eventId": str(uuid.uuid4()),
                "inferenceTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                **({"inferenceId": asked_as} if asked_as else {}),
            },
            "eventVersion": "0",
        }
        bucket, prefix = split_uri(config["DestinationS3Uri"])
        folder = f"{prefix}/{self.name}/{variant}/{now:%Y/%m/%d/%H}"
        key = f"{folder}/{now:%M-%S-%f}-{uuid.uuid4()}.jsonl"
        self._s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(event).encode() + b"\n")


def _summary(variant: Mapping[str, Any]) -> dict[str, Any]:
    number, weight = variant["InitialInstanceCount"], variant["InitialVariantWeight"]
    return {
        "VariantName": variant["VariantName"],
        "CurrentWeight": weight,
        "DesiredWeight": weight,
        "CurrentInstanceCount": number,
        "DesiredInstanceCount": number,
    }


def _captured(
    content: bytes, media_type: str, mode: str, header: Mapping[str, list[str]]
) -> dict[str, str]:
    encoding = "BASE64"
    if media_type in header.get("CsvContentTypes", []):
        encoding = "CSV"
    elif media_type in header.get("JsonContentTypes", []):
        encoding = "JSON"
    is_text = encoding != "BASE64"
    data = content.decode() if is_text else base64.b64encode(content).decode()
    return {"observedContentType": media_type, "mode": mode, "data": data, "encoding": encoding}
