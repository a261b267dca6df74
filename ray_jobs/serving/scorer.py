"""Scorer: what one workload's model takes, says, and in which form."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ray_jobs.monitoring.observation import Observation

JSON, CSV = "application/json", "text/csv"


@dataclass(frozen=True)
class Limits:
    """What the app takes on at once."""

    max_body_bytes: int
    max_rows: int  # of one request
    max_batch_rows: int  # scored in one call; a longer request is a call of its own
    max_queue: int  # requests that are read, waiting or being scored
    max_wait_s: float = 0.0  # that an idle model waits for company; a busy one gathers it anyway
    timeout_s: float = 30.0  # of a request; SageMaker gives up after 60


Inputs = TypeVar("Inputs", bound=Sized)
Answer = TypeVar("Answer")


class Scorer(Protocol[Inputs, Answer]):
    """A loaded model. The length of an input is the rows it has.

    `parse` and `render` are called by any thread, `score` by one alone.
    """

    limits: Limits
    media_types: tuple[str, ...]  # of requests
    answer_types: tuple[str, ...]  # of answers, the usual one first
    num_threads: int  # of the calls of `score`
    parses_slowly: bool  # too slowly for the thread that also answers /ping

    def parse(self, body: bytes, media_type: str) -> Inputs:
        """What a request's body says.

        Raises:
            BadInput: the model cannot take it.
        """
        ...

    def score(self, batch: Sequence[Inputs]) -> list[Answer]:
        """The answers to several requests, in one call of the model."""
        ...

    def render(self, answer: Answer, media_type: str, model_version: str) -> bytes:
        """The body of a response."""
        ...

    def example(self) -> Inputs:
        """An input of one row, to warm the model up with."""
        ...

    def observe(self, inputs: Inputs, answer: Answer | None) -> Observation:
        """What is watched of a request and its answer; None: of the request alone."""
        ...

    def request_content(self) -> dict[str, Any]:
        """OpenAPI's description of a request's body: a media type to its schema."""
        ...

    def prediction_schema(self) -> dict[str, Any]:
        """JSON schema of one prediction."""
        ...
