"""A RayJob of Kubernetes as a target: Ray pods of the run's own, which end with it.

KubeRay starts them, submits the job, tries it again on new pods if it fails, and takes them away.
The run goes on from its folder, so the storage must be one that the pods and this machine reach.

Source: KubeRay v1.7.0, "RayJob" (ray.io/v1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ray_jobs.checks import Checklist
from ray_jobs.errors import EXIT_INTERRUPTED, PreflightError, RetryableError, SpecError
from ray_jobs.owners import Owner, this_step
from ray_jobs.run import Run
from ray_jobs.targets.base import Handle, JobState, Target, last_error, stored_events, stored_state
from ray_jobs.targets.kube import Kube
from ray_jobs.targets.names import rayjob_name
from ray_jobs.targets.rayjob_manifest import (
    NAME_LABEL,
    PART,
    ROLE_LABEL,
    RUN_ID,
    STORAGE,
    WORKLOAD,
    adoption,
    rayjob_of,
)
from ray_jobs.targets.rayjob_spec import RayJobSpec
from ray_jobs.targets.rayjob_status import RayJobState, identity_of, parse_rayjob

_POLL_INTERVAL_S = 0.5
_AFTER_DELETE_S = 60.0  # for the pods' own notice
_LOG_INTERVAL_S = 2.0  # between two looks for a pod whose log can be read
# Of KubeRay's reasons for a failure, those that new pods may mend.
_PASSING = frozenset(
    {
        "SubmissionFailed",
        "PreRunningDeadlineExceeded",
        "JobDeploymentStatusTransitionGracePeriodExceeded",
        "JobStatusCheckTimeoutExceeded",
    }
)


def connect(spec: Any) -> RayJobTarget:
    return RayJobTarget(spec.rayjob)


class RayJobTarget(Target):
    """RayJobs of one namespace. Nothing is asked of the cluster before the first method is
    called."""

    name = "rayjob"
    poll_interval_s = 2.0

    def __init__(self, settings: RayJobSpec, part: str | None = None, owner: Owner | None = None):
        """Args:
        part: of the runs, that the jobs carry out; None: all of it.
        owner: the pod of the step that submits; None: this one's, if it is one.
        """
        self._settings, self._part = settings, part
        self._owner = owner or this_step()
        self._kube = Kube(settings.context, settings.namespace)
        self._submitted: set[str] = set()  # names

    def check(self, spec: Any, *, seconds: float | None = None) -> Checklist:
        from ray_jobs.targets.rayjob_checks import examine

        return examine(self._kube, spec, self._settings, self._owner)

    def handle(self, run: Run) -> Handle:
        workload = run.spec.workload
        name = rayjob_name(workload, run.run_id, self._part)
        return Handle(self.name, workload, run.run_id, run.storage.uri, name)

    def submit(self, run: Run) -> Handle:
        handle = self.handle(run)
        stored = stored_state(run, self._part)
        if stored is not None and stored.status == "SUCCEEDED":
            return handle
        state = self._look(handle.name)
        if state is not None and state.fault:
            raise RetryableError(f"RayJob {handle.name}: {state.fault}; try again")
        if state is not None and not state.is_deleting and not state.has_ended:
            self._adopt(handle.name)
        else:
            if state is not None:  # a name is free again once what had it is gone
                self._delete(handle.name, state)
                self._wait_until_gone(handle)
            run.clear_stop()
            job = rayjob_of(run, handle.name, self._settings, self._part, self._owner)
            manifest = job.manifest(self._kube.namespace)
            if not self._kube.create_rayjob(manifest):
                self._adopt(handle.name)  # another process was quicker
        self._submitted.add(handle.name)
        return handle

    def status(self, handle: Handle) -> JobState:
        run = handle.open()
        try:
            state = self._look(handle.name)
        except (PreflightError, RetryableError):
            stored = stored_state(run, self._part)
            if stored is None or stored.status != "SUCCEEDED":
                raise
            return stored  # it outlives its cluster
        if state is not None:
            return self._state(run, state)
        stored = stored_state(run, self._part)
        if stored is not None:
            return stored
        is_known = handle.name in self._submitted
        if not is_known and (self._part or not stored_events(run)):
            return JobState("PENDING", "it has not been submitted", is_submitted=False)
        if run.is_stop_requested():
            return JobState("STOPPED", "it was stopped before it had written a result")
        return JobState(
            "FAILED",
            f"there is no RayJob {handle.name} in {self._kube.namespace} any more: it, or the pod "
            "that owned it, was deleted; submit the run again to go on where it ended",
            may_be_retried=True,
        )

    def logs(self, handle: Handle, *, follow: bool = False) -> Iterator[str]:
        run = handle.open()
        seen: set[str] = set()
        while True:
            has_ended = not follow or self._has_ended(run, handle)
            pods = self._kube.pods(f"{NAME_LABEL}={handle.name},{ROLE_LABEL}=submitter")
            for pod in [pod["metadata"]["name"] for pod in pods][-1:]:  # the newest attempt's
                if pod in seen:
                    continue
                for line in self._kube.log(pod, follow=follow and not has_ended):
                    seen.add(pod)
                    yield line
            if has_ended:
                return
            time.sleep(_LOG_INTERVAL_S)

    def stop(self, handle: Handle) -> None:
        state = self._look(handle.name)
        if state is None or (state.has_ended and state.fault is None):
            return
        try:
            run = handle.open()
        except SpecError:  # its folder is gone, which its pods may not be
            run = None
        if run is not None and not state.is_deleting:
            self._ask_to_stop(run, handle, state)
        self._delete(handle.name, state)
        self._wait_until_gone(handle)

    # How far it is

    def _look(self, name: str) -> RayJobState | None:
        found = self._kube.rayjob(name)
        return None if found is None else parse_rayjob(found)

    def _has_ended(self, run: Run, handle: Handle) -> bool:
        state = self._look(handle.name)
        return state is None or state.has_ended

    def _state(self, run: Run, state: RayJobState) -> JobState:
        """What KubeRay says of it; once it has ended, what its own files say."""
        if state.fault is not None:
            return JobState("FAILED", state.fault, secondary="unreadable")
        details = {"attempt": str(state.num_failed + 1)}
        if state.exit_code is not None:
            details["exit_code"] = str(state.exit_code)
        known = JobState(
            state.status,
            started_at=state.started_at,
            ended_at=state.ended_at,
            secondary=" ".join(filter(None, (state.deployment, state.reason))).lower() or "new",
            details=details,
        )
        if not state.has_ended:
            return known
        stored = stored_state(run, self._part)
        if stored is not None and stored.status == "SUCCEEDED":
            return replace(known, status="SUCCEEDED", ended_at=state.ended_at or stored.ended_at)
        if state.status == "STOPPED" or state.exit_code == EXIT_INTERRUPTED:
            reason = stored.reason if stored is not None and stored.status == "STOPPED" else None
            return replace(known, status="STOPPED", reason=reason or "it was stopped")
        if stored is not None and state.reason != "DeadlineExceeded":
            reason = stored.reason
        else:
            reason = self._why(run, state)
        code = state.exit_code
        may_be_retried = state.reason in _PASSING or (
            code is not None and (code == RetryableError.exit_code or code < 0 or code > 128)
        )
        return replace(known, status="FAILED", reason=reason, may_be_retried=may_be_retried)

    def _why(self, run: Run, state: RayJobState) -> str:
        settings = self._settings
        if state.status == "SUCCEEDED":
            return f"the job ended without a result in {run.storage.display(run.folder)}"
        if state.reason == "DeadlineExceeded":
            return (
                f"it was not done within rayjob.max_run_s={settings.max_run_s}; set it higher and "
                "submit the run again: it goes on where it ended"
            )
        if state.reason == "PreRunningDeadlineExceeded":
            return (
                f"its pods did not run within rayjob.start_s={settings.start_s}; look why with "
                f"kubectl describe pods -n {self._kube.namespace} "
                f"-l {NAME_LABEL}={self.handle(run).name}"
            )
        words = last_error(state.message) or " ".join(state.message.split())[:300]
        return f"{state.reason or 'KubeRay gives no reason'}: {words}" if words else state.reason

    # RayJobs

    def _adopt(self, name: str) -> None:
        """Have a RayJob that a lost step has started belong to this one."""
        found = self._kube.rayjob(name)
        if self._owner is not None and isinstance(found, dict):
            changes = adoption(found, self._owner, self._kube.namespace)
            if changes:
                self._kube.patch_rayjob(name, changes)

    def _ask_to_stop(self, run: Run, handle: Handle, state: RayJobState) -> None:
        """Have it write a checkpoint, as far as it can; KubeRay would try a job that ends so again,
        so it is deleted at once then."""
        run.request_stop()
        if state.status != "RUNNING" or not run.workload.stops_when_asked:
            return
        deadline = time.monotonic() + self._settings.stop_wait_s
        while time.monotonic() < deadline:
            latest = self._look(handle.name)
            if latest is None or latest.status != "RUNNING" or latest.exit_code is not None:
                return
            if stored_state(run, self._part) is not None:
                return
            time.sleep(_POLL_INTERVAL_S)

    def _delete(self, name: str, state: RayJobState) -> None:
        if not state.is_deleting:
            self._kube.delete_rayjob(name, state.uid)

    def _wait_until_gone(self, handle: Handle) -> None:
        """Raises RetryableError: it, or a pod of it, is still there."""
        deadline = time.monotonic() + self._settings.stop_wait_s + _AFTER_DELETE_S
        while True:
            left = ["itself"] if self._kube.rayjob(handle.name) is not None else []
            left += [
                pod["metadata"]["name"]
                for pod in self._kube.pods(f"{NAME_LABEL}={handle.name}")
                if (pod.get("status") or {}).get("phase") in ("Pending", "Running", "Unknown")
            ]
            if not left:
                return
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"run {handle.run_id!r}: RayJob {handle.name} is deleted, but not gone "
                    f"({', '.join(left)}); look whether KubeRay's operator is up, and stop the run "
                    "again"
                )
            time.sleep(_POLL_INTERVAL_S)

    def list(self) -> list[Handle]:
        jobs = [each for each in self._kube.rayjobs(NAME_LABEL) if parse_rayjob(each).uid]
        jobs.sort(key=lambda job: str(job["metadata"].get("creationTimestamp")))
        known = [identity_of(job) for job in jobs]
        return [
            Handle(self.name, each[WORKLOAD], each[RUN_ID], each[STORAGE], each["name"])
            for each in known
            if {WORKLOAD, RUN_ID, STORAGE} <= each.keys() and PART not in each
        ]
