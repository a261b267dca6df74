"""The documents of a local deployment: what is wanted, and what has come of it.

Both lie in its folder. `wanted.json` is written by whoever deploys, `serving.json` and `state.json`
by the supervisor; each is replaced whole.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs.deployments.process import Process
from ray_jobs.errors import PreflightError

Outcome = Literal["pending", "done", "failed"]


class Document(BaseModel):
    """A JSON file of a deployment's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None: there is none.

        Raises:
            PreflightError: it is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise PreflightError(
                f"{path} is damaged, or of another version; remove the deployment with emberline "
                f"undeploy {path.parent.name} and deploy it again"
            ) from None

    def write(self, path: Path) -> None:
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        draft.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        os.replace(draft, path)


class WantedVariant(BaseModel):
    """A version that is to answer; its bundle is `models/<digest>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    digest: str
    weight: float
    is_shadow: bool = False


class Wanted(Document):
    """What a deployment is to be."""

    revision: str  # of this document: another one is another change
    model: str
    variants: tuple[WantedVariant, ...]  # the champion first
    host: str
    port: int  # 0: any that is free
    start_timeout_s: float
    ping_interval_s: float = 5.0
    record_uri: str  # root of the live records
    record_share: float
    record_max_mb: float

    def says_the_same(self, other: Wanted) -> bool:
        return self == other.model_copy(update={"revision": self.revision})


class State(Document):
    """How a deployment stands."""

    supervisor: Process
    revision: str  # the change that was looked at last
    outcome: Outcome
    reason: str | None = None  # why it failed
    host: str
    port: int
    worker: Process | None = None  # None: none that answers
    num_restarts: int = 0  # since the last change
