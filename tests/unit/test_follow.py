"""Following a champion: what is deployed when, and what is told of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from pipelines.deploy import DeployOutcome
from pipelines.follow import Follower, follow
from ray_jobs.deployments.base import Deployment
from ray_jobs.errors import JobFailed, RetryableError


class World:
    """A registry whose champion moves, and a place that deploys it or fails."""

    def __init__(self, *champions: int | Exception | None, failures: Sequence[Exception] = ()):
        self.champions, self.failures = list(champions), list(failures)
        self.shown: list[DeployOutcome] = []
        self.said: list[str] = []
        self.num_deployed = 0

    def champion(self) -> int | None:
        found = self.champions.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def deploy(self) -> DeployOutcome:
        self.num_deployed += 1
        if self.failures:
            raise self.failures.pop(0)
        return DeployOutcome(Deployment("local", "fire", "fire", "RUNNING"))

    def follow(self) -> list[float]:
        follower = Follower(
            self.champion,
            self.deploy,
            show=self.shown.append,
            say=self.said.append,
            interval_s=10,
        )
        return [follower.step() for _ in range(len(self.champions))]


def test_each_move_is_deployed_once() -> None:
    world = World(None, None, 1, 1, 2, 2, 1)
    assert world.follow() == [10.0] * 7
    assert world.num_deployed == len(world.shown) == 3
    assert world.said == ["there is no champion yet"]


def test_a_refused_version_is_told_once_and_left_alone() -> None:
    world = World(1, 1, 1, 2, 2, failures=[JobFailed("it does not answer")])
    assert world.follow() == [10.0] * 5
    assert world.num_deployed == 2
    assert len(world.shown) == 1
    assert world.said == ["it does not answer; this version is not tried again"]


def test_what_may_pass_is_tried_again_later_and_later() -> None:
    gone = RetryableError("the place does not answer")
    silent = RetryableError("the registry does not answer")
    world = World(1, 1, 1, silent, silent, 1, failures=[gone, gone])
    assert world.follow() == [20.0, 40.0, 10.0, 20.0, 40.0, 10.0]
    assert world.num_deployed == 3
    assert world.said == [
        "the place does not answer; it is tried again",
        "the registry does not answer; it is tried again",
    ]
    patient = World(*[1] * 10, failures=[gone] * 10)
    assert patient.follow()[-1] == 300.0


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 0, []),
        (signal.SIGINT, 130, ["nothing is followed any more; what is deployed goes on"]),
    ],
)
def test_it_ends_at_a_signal_once_the_deployment_is_done(
    number: signal.Signals, code: int, said: list[str]
) -> None:
    shown: list[DeployOutcome] = []
    before = signal.getsignal(number)

    def deploy() -> DeployOutcome:
        os.kill(os.getpid(), number)
        return DeployOutcome(Deployment("local", "fire", "fire", "RUNNING"))

    told: list[str] = []
    follower = Follower(lambda: 1, deploy, show=shown.append, say=told.append, interval_s=60)
    assert follow(follower, told.append) == code
    assert (len(shown), told) == (1, said)
    assert signal.getsignal(number) is before
