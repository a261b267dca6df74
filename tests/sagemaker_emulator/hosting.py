"""The SageMaker API of models, endpoint configurations and endpoints, whose containers really run.

Source: Amazon SageMaker AI API Reference; the words of its errors are those that its clients look
for.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.sagemaker_emulator.endpoint import Endpoint, Fleet
from tests.sagemaker_emulator.listing import page
from tests.sagemaker_emulator.variant import Variant

_NOUNS = {"Model": "model", "EndpointConfig": "endpoint configuration", "Endpoint": "endpoint"}
_RESOURCES = {"Model": "model", "EndpointConfig": "endpoint-config", "Endpoint": "endpoint"}
_FORWARDED = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes",
              "X-Amzn-SageMaker-Inference-Id")  # fmt: skip
_RUNTIME_PATH = re.compile(r"/endpoints/([A-Za-z0-9-]+)/invocations")


class Refused(Exception):
    """An error of the service, as its clients read it."""

    def __init__(self, code: str, message: str, status: int = 400):
        super().__init__(message)
        self.code, self.status = code, status


class Hosting:
    """What the account has of models, configurations and endpoints.

    Args:
        root: below which the containers' trees lie.
        environment: of every container.
        arn: of the account's resources, up to their kind.
    """

    def __init__(self, root: Path, environment: Mapping[str, str], s3: Any, arn: str):
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.mutate: Callable[[dict[str, Any]], object] | None = None  # of DescribeEndpoint
        self.may_go_on = threading.Event()  # cleared: no change of an endpoint comes to its end
        self.may_go_on.set()
        self._root, self._environment, self._s3, self._arn = root, environment, s3, arn

    def close(self) -> None:
        """End every container."""
        for endpoint in self.endpoints.values():
            endpoint.close()

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], object]]:
        return {
            "CreateModel": self._create_model,
            "DescribeModel": lambda request: _bare(self._find("Model", request["ModelName"])),
            "ListModels": lambda request: self._list("Model", request),
            "DeleteModel": self._delete_model,
            "CreateEndpointConfig": self._create_config,
            "DescribeEndpointConfig": lambda request: _bare(
                self._find("EndpointConfig", request["EndpointConfigName"])
            ),
            "ListEndpointConfigs": lambda request: self._list("EndpointConfig", request),
            "DeleteEndpointConfig": self._delete_config,
            "CreateEndpoint": self._create_endpoint,
            "DescribeEndpoint": self._describe_endpoint,
            "ListEndpoints": lambda request: self._list("Endpoint", request),
            "UpdateEndpoint": self._update_endpoint,
            "DeleteEndpoint": self._delete_endpoint,
        }

    def tags_of(self, arn: str) -> dict[str, str] | None:
        """The tags of a resource, to be changed in place; None: it is none of these."""
        for endpoint in self.endpoints.values():
            if endpoint.arn == arn:
                return endpoint.tags
        for kind, known in (("Model", self.models), ("EndpointConfig", self.configs)):
            for found in known.values():
                if found[f"{kind}Arn"] == arn:
                    return found["tags"]
        return None

    def invoke(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers of InvokeEndpoint.

        Raises:
            Refused: there is no such endpoint or variant, or its container answers with an error.
        """
        found = _RUNTIME_PATH.fullmatch(path)
        endpoint = self.endpoints.get(found[1]) if found else None
        if endpoint is None or not endpoint.fleet:
            raise Refused("ValidationError", f"Endpoint {path} of account not found.")
        if len(body) > 6 * 2**20:
            raise Refused("ValidationError", "Request body is larger than 6291456 bytes", 413)
        target = headers.get("X-Amzn-SageMaker-Target-Variant")
        variant = endpoint.choose(target)
        if variant is None:
            raise Refused("ValidationError", f"Variant {target} not found in endpoint")
        sent = {name: headers[name] for name in _FORWARDED if headers.get(name)}
        try:
            status, content, media_type = endpoint.invoke(variant, body, sent)
        except TimeoutError:
            raise Refused("ModelError", "the container did not answer in time", 424) from None
        if status != 200:
            text = content.decode("utf-8", "replace")
            raise ModelError(
                f"Received client error ({status}) from {variant.name} with message "
                f'"{text}". See the logs of the endpoint for more information.',
                status,
                text,
            )
        return status, content, {
            "Content_Type": media_type,
            "x_Amzn_Invoked_Production_Variant": variant.name,
        }  # fmt: skip

    # Models and configurations

    def _create_model(self, request: dict[str, Any]) -> object:
        return self._create("Model", self.models, request)

    def _create_config(self, request: dict[str, Any]) -> object:
        shadows = request.get("ShadowProductionVariants", [])
        if shadows and (len(shadows) > 1 or len(request["ProductionVariants"]) > 1):
            raise Refused(
                "ValidationException",
                "You can only specify one production variant and one shadow variant.",
            )
        for variant in (*request["ProductionVariants"], *shadows):
            self._find("Model", variant["ModelName"])
        return self._create("EndpointConfig", self.configs, request)

    def _create(self, kind: str, known: dict[str, Any], request: dict[str, Any]) -> object:
        name = request[f"{kind}Name"]
        arn = self._arn_of(kind, name)
        if name in known:
            raise Refused(
                "ValidationException", f'Cannot create already existing {_NOUNS[kind]} "{arn}".'
            )
        tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])}
        bare = {key: value for key, value in request.items() if key != "Tags"}
        known[name] = bare | {f"{kind}Arn": arn, "CreationTime": time.time(), "tags": tags}
        return {f"{kind}Arn": arn}

    def _delete_model(self, request: dict[str, Any]) -> object:
        self._find("Model", request["ModelName"])
        del self.models[request["ModelName"]]
        return {}

    def _delete_config(self, request: dict[str, Any]) -> object:
        """The service deletes one that is in use too; whoever does so cannot go back to it."""
        name = request["EndpointConfigName"]
        self._find("EndpointConfig", name)
        used = [one.name for one in self.endpoints.values() if one.config.get(
            "EndpointConfigName") == name]  # fmt: skip
        assert not used, f"{name} is deleted, and {used} uses it"
        del self.configs[name]
        return {}

    # Endpoints

    def _create_endpoint(self, request: dict[str, Any]) -> object:
        name = request["EndpointName"]
        arn = self._arn_of("Endpoint", name)
        if name.lower() in map(str.lower, self.endpoints):
            raise Refused(
                "ValidationException", f'Cannot create already existing endpoint "{arn}".'
            )
        config = self._find("EndpointConfig", request["EndpointConfigName"])
        endpoint = Endpoint(
            name,
            arn,
            {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])},
            self._fleet,
            root=self._root / "endpoints" / f"{name}-{time.time_ns()}",
            s3=self._s3,
            environment=self._environment,
            may_go_on=self.may_go_on,
        )
        self.endpoints[name] = endpoint
        endpoint.change(config, request.get("DeploymentConfig"))
        return {"EndpointArn": arn}

    def _update_endpoint(self, request: dict[str, Any]) -> object:
        endpoint = self._endpoint(request)
        config = self._find("EndpointConfig", request["EndpointConfigName"])
        if endpoint.is_changing:
            raise Refused(
                "ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".'
            )
        if not endpoint.fleet:
            raise Refused("ValidationException", f'Cannot update failed endpoint "{endpoint.arn}".')
        if endpoint.config["EndpointConfigName"] == config["EndpointConfigName"]:
            raise Refused(
                "ValidationException", "Cannot update endpoint to the configuration it has."
            )
        deployment = request.get("DeploymentConfig")
        if deployment and _names(endpoint.config) != _names(config):
            raise Refused(
                "ValidationException",
                "The variant names of the new endpoint configuration must match those of the "
                "existing one when DeploymentConfig is given.",
            )
        endpoint.change(config, deployment)
        return {"EndpointArn": endpoint.arn}

    def _describe_endpoint(self, request: dict[str, Any]) -> object:
        answer = self._endpoint(request).describe()
        return answer if self.mutate is None else self.mutate(answer)

    def _delete_endpoint(self, request: dict[str, Any]) -> object:
        endpoint = self._endpoint(request)
        if endpoint.is_changing:
            raise Refused(
                "ValidationException", f'Cannot delete in-progress endpoint "{endpoint.arn}".'
            )
        endpoint.close()
        del self.endpoints[endpoint.name]
        return {}

    def _endpoint(self, request: dict[str, Any]) -> Endpoint:
        endpoint = self.endpoints.get(request["EndpointName"])
        if endpoint is None:
            raise self._missing("Endpoint", request["EndpointName"])
        return endpoint

    def _fleet(self, config: Mapping[str, Any], root: Path) -> Fleet:
        variants = [*config["ProductionVariants"], *config.get("ShadowProductionVariants", [])]
        return {
            variant["VariantName"]: Variant(
                root / variant["VariantName"],
                variant["VariantName"],
                variant,
                self.models[variant["ModelName"]],
            )
            for variant in variants
        }

    # All of them

    def _find(self, kind: str, name: str) -> dict[str, Any]:
        known = self.models if kind == "Model" else self.configs
        if name not in known:
            raise self._missing(kind, name)
        return known[name]

    def _missing(self, kind: str, name: str) -> Refused:
        arn = self._arn_of(kind, name)
        return Refused("ValidationException", f'Could not find {_NOUNS[kind]} "{arn}".')

    def _arn_of(self, kind: str, name: str) -> str:
        return (
            f"{self._arn}{_NOUNS[kind].replace('configuration', 'config').replace(' ', '-')}/{name}"
        )

    def _list(self, kind: str, request: dict[str, Any]) -> object:
        if kind == "Endpoint":
            known = {name: one.describe() for name, one in self.endpoints.items()}
        else:
            known = self.models if kind == "Model" else self.configs
        keys = (f"{kind}Name", f"{kind}Arn", "CreationTime", "LastModifiedTime", "EndpointStatus")
        summaries = [
            {key: one[key] for key in keys if key in one}
            for name, one in sorted(known.items())
            if request.get("NameContains", "") in name
        ]
        found, token = page(summaries, request)
        return {f"{kind}s": found} | token


class ModelError(Refused):
    """What a container has answered, other than 200."""

    def __init__(self, message: str, status: int, text: str):
        super().__init__("ModelError", message, 424)
        self.details = {"OriginalStatusCode": status, "OriginalMessage": text}


def _names(config: Mapping[str, Any]) -> set[str]:
    variants = [*config["ProductionVariants"], *config.get("ShadowProductionVariants", [])]
    return {variant["VariantName"] for variant in variants}


def _bare(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "tags"}
