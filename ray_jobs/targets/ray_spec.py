"""The section `ray` of a job description: the cluster that `target: ray` submits to."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from ray_jobs.section import Section

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RaySpec(Section):
    """Where the job is submitted, and what its driver gets there.

    The token of a cluster that asks for one is no part of it: Ray's own RAY_AUTH_MODE and
    RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, give it.
    """

    address: str | None = None  # of the cluster's dashboard: http://HOST:8265
    working_dir: str | None = "."  # the project's tree; null: the cluster's image has it installed
    excludes: list[str] = []  # of the working tree, beside what git ignores
    runtime_env: dict[str, Any] = {}  # Ray's own: pip, env_vars, ...
    env: list[str] = []  # variables of this environment that the job gets too, such as AWS_PROFILE
    python: str = "python"  # on the cluster's nodes
    entrypoint_num_cpus: Amount = 0  # that the driver itself takes
    entrypoint_num_gpus: Amount = 0
    entrypoint_memory_gb: Amount = 0
    entrypoint_resources: dict[str, Amount] = {}
    stop_wait_s: Annotated[int, Field(ge=1)] = 60  # for a checkpoint, before a stop is a kill
    max_attempts: Annotated[int, Field(ge=1)] = 3  # of a job that loses its node

    @field_validator("address")
    @classmethod
    def _of_the_dashboard(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", address):
            raise ValueError(
                f"{address!r} is not the address of a cluster's dashboard; write it as "
                "http://HOST:8265"
            )
        return address

    @field_validator("runtime_env")
    @classmethod
    def _without_the_tree(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("working_dir", "excludes"):
            if key in value:
                raise ValueError(f"set ray.{key} and not ray.runtime_env.{key}")
        if not isinstance(value.get("env_vars", {}), dict):
            raise ValueError("env_vars is a mapping of names to texts")
        return value

    @field_validator("env")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(
                    f"{name!r} is not the name of a variable; its value goes to "
                    "ray.runtime_env.env_vars"
                )
        return names
