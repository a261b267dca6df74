"""The reaper: `python -m ray_jobs.reap` stops what pipeline steps have left behind.

A step stops what it has started when it is asked to end. One that was killed, or whose pod was
deleted, cannot: its RayJobs, Ray jobs and training jobs name the pod that owns them, and are
stopped once that pod has been gone, or at its end, for a while. What names no owner, or one that
is still there, is left alone; so is everything whose owner cannot be asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, get_args

from ray_jobs import logs
from ray_jobs.errors import EXIT_OK, EmberlineError, RetryableError
from ray_jobs.owners import OwnedJob, Owner
from ray_jobs.targets.kube import Kube

_LIVE = ("Pending", "Running", "Unknown")  # Unknown: its node does not answer, but may yet
_KFP_RUN_LABEL = "pipeline/runid"  # that KFP gives the pods of a run
_SIDE_BY_SIDE = 8  # jobs that are looked at, and stopped, at once
What = Literal["stopped", "would stop", "left", "failed"]


class Place(Protocol):
    """A service that carries out jobs."""

    label: str

    def owned_jobs(self) -> Iterator[OwnedJob]:
        """Those of this project that go on and name an owner.

        Raises:
            EmberlineError: the service refuses, or does not answer.
        """


@dataclass(frozen=True)
class Finding:
    """What became of one job, or why a place could not be looked at."""

    what: What
    kind: str
    name: str
    owner: str = ""
    reason: str = ""

    def __str__(self) -> str:
        job = f"{self.kind} job {self.name}" if self.name else self.kind
        of = f" of {self.owner}" if self.owner else ""
        return f"{self.what}: {job}{of}: {self.reason}"


@dataclass(frozen=True)
class Verdict:
    """Whether a job is an orphan, and why or why not."""

    is_orphan: bool
    reason: str


class Pods:
    """The owners, as one cluster of Kubernetes knows them."""

    def __init__(self, kubes: Sequence[Kube], grace_s: float, now: datetime):
        """Args:
        kubes: the namespaces whose pods may be asked for.
        grace_s: for so long an owner has to be gone, or at its end.
        """
        self._kubes = {kube.namespace: kube for kube in kubes}
        self._grace_s, self._now = grace_s, now

    def judge(self, job: OwnedJob) -> Verdict:
        """Whether nobody waits for the job any more. In doubt somebody does.

        Raises:
            EmberlineError: Kubernetes refuses, or does not answer.
        """
        owner = job.owner
        kube = self._kubes.get(owner.namespace)
        if kube is None:
            return Verdict(False, f"namespace {owner.namespace} is not looked at")
        if job.kind != "rayjob" and owner.cluster != kube.cluster_id:
            return Verdict(False, "its pod is of another cluster")
        pod = kube.pod(owner.namespace, owner.pod)
        reason = _end_of(pod, owner)
        if reason is None:
            return Verdict(False, "its pod is there")
        ended = _ended_at(pod, owner) or job.made_at
        if ended is None or (self._now - ended).total_seconds() < self._grace_s:
            return Verdict(False, f"{reason}, but not for {self._grace_s:g} s yet")
        if job.kind == "ray" and owner.kfp_run and self._goes_on(kube, owner.kfp_run):
            # The metadata of a Ray job never change: the step's next pod may be attached to it.
            return Verdict(False, f"{reason}, but its pipeline's run goes on")
        return Verdict(True, reason)

    def _goes_on(self, kube: Kube, kfp_run: str) -> bool:
        return any(_phase(pod) in _LIVE for pod in kube.pods(f"{_KFP_RUN_LABEL}={kfp_run}"))


def _end_of(pod: dict[str, Any] | None, owner: Owner) -> str | None:
    """How the owner has ended; None if it has not."""
    if pod is None:
        return "its pod is gone"
    if owner.uid is not None and _uid(pod) != owner.uid:
        return "its pod is gone; another has its name"
    phase = _phase(pod)
    return None if phase in _LIVE else f"its pod has ended ({phase})"


def _ended_at(pod: dict[str, Any] | None, owner: Owner) -> datetime | None:
    """When the owner ended. A pod that is gone has left no time of its end."""
    if pod is None or owner.uid not in (None, _uid(pod)):
        return None
    states = [
        each.get("state") or {} for each in (pod.get("status") or {}).get("containerStatuses") or []
    ]
    times = [_time((state.get("terminated") or {}).get("finishedAt")) for state in states]
    return max((time for time in times if time is not None), default=None)


def reap(places: Sequence[Place], pods: Pods, *, dry_run: bool = False) -> Iterator[Finding]:
    """Stop what nobody waits for, place by place: one that does not answer keeps no other from
    being looked at."""

    def judge(job: OwnedJob) -> Finding:
        owner = str(job.owner)
        try:
            verdict = pods.judge(job)
            if verdict.is_orphan and not dry_run:
                job.stop()
        except EmberlineError as error:
            return Finding("failed", job.kind, job.name, owner, str(error))
        done: What = "would stop" if dry_run else "stopped"
        return Finding(
            done if verdict.is_orphan else "left", job.kind, job.name, owner, verdict.reason
        )

    for place in places:
        try:
            jobs = list(place.owned_jobs())
        except EmberlineError as error:
            yield Finding("failed", place.label, "", reason=str(error))
            continue
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            yield from pool.map(judge, jobs)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for; wrong usage ends the process with 2."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.reap", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would be stopped")
    parser.add_argument("--json", action="store_true", help="one JSON object, on stdout")
    parser.add_argument(
        "--grace", type=float, default=300, metavar="S", help="a pod's end is at least so long ago"
    )
    parser.add_argument("--context", help="of the kubeconfig; default: its current one, or a pod's")
    parser.add_argument(
        "--namespace", action="append", metavar="NS", dest="namespaces",
        help="look for RayJobs there; may be repeated; default: the context's, or this pod's",
    )  # fmt: skip
    parser.add_argument(
        "--ray-address", action="append", default=[], metavar="URL", dest="addresses",
        help="look at a Ray cluster, too: its dashboard's address; may be repeated",
    )  # fmt: skip
    parser.add_argument("--sagemaker", action="store_true", help="look at SageMaker, too")
    parser.add_argument("--region", help="of SageMaker; default: the environment's")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.reap`. Returns 0, or 5 where a service did not answer or refused."""
    options = parse_options(arguments)
    from ray_jobs.targets import owned

    kubes = [Kube(options.context, name) for name in options.namespaces or [None]]
    try:
        logs.setup()
        pods = Pods(kubes, options.grace, datetime.now(UTC))
    except EmberlineError as error:  # no cluster is named
        logs.say_error(error)
        return error.exit_code
    places: list[Place] = [
        *(owned.RayJobs(kube, f"RayJobs in {kube.namespace}") for kube in kubes),
        *(owned.RayCluster(address) for address in options.addresses),
        *([owned.TrainingJobs(options.region)] if options.sagemaker else []),
    ]
    findings = []
    for finding in reap(places, pods, dry_run=options.dry_run):
        findings.append(finding)
        if logs.is_json():
            level = "error" if finding.what == "failed" else "info"
            logs.say(str(finding), level=level, event="reap", **asdict(finding))
        elif not options.json:
            print(finding, flush=True)
    if options.json:
        logs.show(_to_json(places, findings))
    elif not findings:
        print("nothing has an owner")
    has_failed = any(finding.what == "failed" for finding in findings)
    return RetryableError.exit_code if has_failed else EXIT_OK


def _to_json(places: Sequence[Place], findings: Sequence[Finding]) -> str:
    found: dict[str, list[dict[str, str]]] = {what.replace(" ", "_"): [] for what in get_args(What)}
    for finding in findings:
        fields = asdict(finding)
        found[fields.pop("what").replace(" ", "_")].append(fields)
    return json.dumps({**found, "looked_at": [place.label for place in places]}, indent=2)


def _phase(pod: dict[str, Any]) -> str:
    return str((pod.get("status") or {}).get("phase") or "Unknown")


def _uid(pod: dict[str, Any]) -> str | None:
    return (pod.get("metadata") or {}).get("uid")


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


if __name__ == "__main__":
    sys.exit(main())
