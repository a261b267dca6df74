"""This machine as a place of deployments: a supervisor process for each, which goes on when the
command that started it has ended.

A deployment's folder is `.deployments/<name>` under the storage root; if that is an object store,
in a folder of this user.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray_jobs.checks import Check, Checklist, check_packages, check_storage, existing
from ray_jobs.deployments.base import Deployer, Deployment, DeploymentStatus, Release, Say, Variant
from ray_jobs.deployments.documents import State, Wanted, WantedVariant
from ray_jobs.deployments.endpoint import invoke
from ray_jobs.deployments.process import LogPart, Process, holds_within
from ray_jobs.deployments.spec import DeploymentSpec, is_name
from ray_jobs.deployments.supervisor import LOG, SERVING, STATE, WANTED
from ray_jobs.deployments.worker import MODELS, listen
from ray_jobs.errors import JobFailed, PreflightError, RetryableError, SpecError
from ray_jobs.serving.example import read_example
from ray_jobs.storage import Storage
from ray_jobs.targets.base import last_error

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens, and is asked here
_GRACE_S = 30.0  # beyond the start of a worker: for the supervisor's own, and the handing over
_END_S = 60.0  # a worker's last requests, and a little more
_ORPHAN_S = 35.0  # likewise, of a worker whose supervisor was killed
_ANSWER_S = 60.0


class LocalDeployer(Deployer):
    """Deployments by processes of this machine.

    Args:
        storage: the root of all runs.
    """

    name = "local"

    def __init__(self, storage: Storage):
        self._storage = storage
        self._children: list[subprocess.Popen[bytes]] = []

    def check(self, model: str, spec: DeploymentSpec) -> Checklist:
        checklist = Checklist()
        checklist.add(check_packages())
        checklist.add(check_storage(self._storage.uri))
        checklist.make("name", lambda: spec.name_for(model))
        checklist.make("port", lambda: self._look_at_port(model, spec), needs=("name",))
        checklist.add(Check("price", True, "none: it is a process of this machine"))
        return checklist

    def deploy(
        self,
        champion: Release,
        spec: DeploymentSpec,
        *,
        challenger: Release | None = None,
        say: Say,
    ) -> Deployment:
        name = spec.name_for(champion.model.name)
        releases = [champion] + ([challenger] if challenger else [])
        for release in releases:
            read_example(release.bundle)
        wanted = _wanted(champion, challenger, spec, self._storage.uri)
        folder = self._folder(name)
        (folder / MODELS).mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            found = self.find(name)
            if found is not None and found.model != wanted.model:
                raise SpecError(
                    f"{name!r} is a deployment of the model {found.model!r}; set deployment.name, "
                    f"or remove that one: emberline undeploy {name}"
                )
            serving = Wanted.read(folder / SERVING)
            is_same = serving is not None and wanted.says_the_same(serving)
            if found is not None and found.status == "RUNNING" and not found.reason and is_same:
                say(f"{name}: version {champion.model.version} is deployed already")
                return found
            for release in releases:
                _keep(release, folder / MODELS)
            self._change(folder, wanted, say)
            _forget_others(folder / MODELS, wanted)
            deployment = self.find(name)
            assert deployment is not None, "it has just been written"
            return deployment

    def find(self, name: str) -> Deployment | None:
        if not is_name(name):
            return None
        folder = self._folder(name)
        wanted, state = Wanted.read(folder / WANTED), State.read(folder / STATE)
        serving = Wanted.read(folder / SERVING)
        shown = serving or wanted
        if shown is None:
            return None
        status, reason = _status(name, serving, state)
        details = {"folder": str(folder), "log": str(folder / LOG)}
        if state is not None:
            details |= {"supervisor": str(state.supervisor.pid)}
            details |= {"worker": str(state.worker.pid)} if state.worker else {}
            details |= {"restarts": str(state.num_restarts)} if state.num_restarts else {}
        return Deployment(
            target=self.name,
            name=name,
            model=shown.model,
            status=status,
            variants=tuple(
                Variant(one.version, one.digest, one.weight, one.is_shadow)
                for one in (serving.variants if serving else ())
            ),
            url=_url(state) if status in ("RUNNING", "PENDING") and state else None,
            reason=reason,
            details=details,
        )

    def list(self) -> Sequence[Deployment]:
        folder = home(self._storage)
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [found for name in names if (found := self.find(name)) is not None]

    def invoke(self, name: str, body: bytes, media_type: str) -> bytes:
        deployment = self.find(name)
        state = State.read(self._folder(name) / STATE) if deployment else None
        if deployment is None or state is None:
            raise SpecError(_unknown(name, self.list()))
        if deployment.status in ("STOPPED", "FAILED"):
            raise PreflightError(f"{name!r} does not answer: {deployment.reason}")
        host = _ANY.get(state.host, state.host)
        return invoke(host, state.port, body, media_type, timeout_s=_ANSWER_S)

    def delete(self, name: str, say: Say) -> Sequence[str]:
        found = self.find(name)
        if found is None:
            raise SpecError(_unknown(name, self.list()))
        folder = self._folder(name)
        removed = []
        with _alone(folder):
            state = State.read(folder / STATE)
            if state is not None and state.supervisor.is_alive:
                say(f"{name}: the last requests are answered")
                _end(state)
                removed.append(f"the server at {_url(state)}")
            for path in (folder / WANTED, folder / SERVING, folder / STATE):
                path.unlink(missing_ok=True)
            versions = len(list((folder / MODELS).iterdir()))
            shutil.rmtree(folder)
            removed.append(f"{folder}, with {versions} model{'s' * (versions != 1)} and its logs")
        return removed

    # A change

    def _change(self, folder: Path, wanted: Wanted, say: Say) -> None:
        """Have the supervisor make it, and wait.

        Raises:
            JobFailed: the new version was refused.
            RetryableError: the supervisor has not ended its work in time, or was killed.
        """
        before = State.read(folder / STATE)
        if before is not None and before.supervisor.host != socket.gethostname():
            raise PreflightError(
                f"{folder.name!r} is deployed on {before.supervisor.host}: change it there, or "
                f"remove it first: emberline undeploy {folder.name}"
            )
        wanted.write(folder / WANTED)
        log = LogPart.of(folder / LOG)
        if before is not None and before.supervisor.is_alive:
            supervisor = before.supervisor
            os.kill(supervisor.pid, signal.SIGHUP)
        else:
            if before is not None and before.worker is not None:
                before.worker.end(wait_s=_ORPHAN_S)  # it still holds the port
            child = _start_supervisor(folder)
            self._children.append(child)
            supervisor = Process.of(child.pid)
        asked = f"version {_named(wanted)} of {wanted.model}"
        say(f"{folder.name}: {asked} is started and asked its example")

        def decided() -> State | None:
            state = State.read(folder / STATE)
            is_seen = state is not None and state.revision == wanted.revision
            return state if is_seen and state is not None and state.outcome != "pending" else None

        allowed_s = wanted.start_timeout_s * (1 + len(wanted.variants)) + _GRACE_S
        in_time = holds_within(allowed_s, lambda: bool(decided()) or not supervisor.is_alive)
        state = decided()
        if state is None:
            cause = last_error(log.read()) or (
                "its supervisor has ended" if in_time else f"it is not done after {allowed_s:g} s"
            )
            raise RetryableError(
                f"{folder.name}: {cause}; {folder / LOG} may say why. Deploy it again"
            )
        if state.outcome == "failed":
            serving = Wanted.read(folder / SERVING)
            stays = f"version {_named(serving)} stays" if serving else "nothing is deployed"
            raise JobFailed(
                f"version {_named(wanted)} of {wanted.model!r} is not deployed: {state.reason}; "
                f"{stays}"
            )

    def _look_at_port(self, model: str, spec: DeploymentSpec) -> str:
        name, wanted = spec.name_for(model), spec.local
        state = State.read(self._folder(name) / STATE)
        if state is not None and state.supervisor.is_alive and wanted.port in (0, state.port):
            return f"{state.port}, where it listens already"
        if wanted.port == 0:
            return "any that is free"
        listen(wanted.host, wanted.port).close()
        return f"{wanted.port} is free"

    # Folders

    def _folder(self, name: str) -> Path:
        return home(self._storage) / name


def home(storage: Storage) -> Path:
    """The folder of all deployments of a storage root on this machine (XDG Base Directory
    Specification)."""
    if storage.is_local:
        return storage.local(".deployments")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    root = hashlib.sha256(storage.uri.encode()).hexdigest()[:12]
    return state / "emberline" / root / ".deployments"


def _wanted(
    champion: Release, challenger: Release | None, spec: DeploymentSpec, storage: str
) -> Wanted:
    variants = [
        WantedVariant(version=str(champion.model.version), digest=champion.digest, weight=1)
    ]
    if challenger is not None:
        assert spec.challenger is not None, "it is where the challenger comes from"
        weight, is_shadow = spec.challenger.weight, spec.challenger.mode == "shadow"
        if not is_shadow:
            variants[0] = variants[0].model_copy(update={"weight": 1 - weight})
        variants.append(
            WantedVariant(
                version=str(challenger.model.version),
                digest=challenger.digest,
                weight=weight,
                is_shadow=is_shadow,
            )
        )
    return Wanted(
        revision=uuid.uuid4().hex,
        model=champion.model.name,
        variants=tuple(variants),
        host=spec.local.host,
        port=spec.local.port,
        start_timeout_s=spec.local.start_timeout_s,
        ping_interval_s=spec.local.ping_interval_s,
        record_uri=storage,
        record_share=spec.record.share,
        record_max_mb=spec.record.max_mb_per_day,
    )


def _status(
    name: str, serving: Wanted | None, state: State | None
) -> tuple[DeploymentStatus, str | None]:
    if state is None and serving is None:
        return "PENDING", f"its supervisor has not begun; if that lasts, {LOG} says why"
    if state is None or not state.supervisor.is_alive:
        if serving is None and state is not None and state.outcome == "failed":
            return "FAILED", state.reason
        return "STOPPED", (
            "its supervisor has ended: it was killed, or the machine was started anew; bring it "
            "back with emberline deploy"
        )
    refused = f"the last change was taken back: {state.reason}" if state.reason else None
    if serving is None:
        return "PENDING", None
    if state.worker is None or not state.worker.is_alive:
        return "PENDING", f"its worker has ended and is started again; see {LOG}"
    return "RUNNING", refused


def _url(state: State) -> str:
    host = _ANY.get(state.host, state.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{state.port}"


def _named(wanted: Wanted) -> str:
    return " and ".join(variant.version for variant in wanted.variants)


def _unknown(name: str, there: Sequence[Deployment]) -> str:
    names = ", ".join(deployment.name for deployment in there)
    return f"no deployment {name!r} on this machine; there is {names or 'none'}"


# Files


def _keep(release: Release, models: Path) -> None:
    """A copy that no cleaning of the cache takes away. It is checked when it is loaded."""
    target = models / release.digest
    draft = models / f".{uuid.uuid4().hex}.tmp"
    shutil.copytree(release.bundle, draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


def _forget_others(models: Path, wanted: Wanted) -> None:
    for path in models.iterdir():
        if path.name not in [variant.digest for variant in wanted.variants]:
            shutil.rmtree(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of several that change a deployment, one after the other."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Processes


def _start_supervisor(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.deployments.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=existing(folder),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a Ctrl-C here does not reach it
        )


def _end(state: State) -> None:
    process = state.supervisor.find()
    if process is not None:
        process.terminate()
        state.supervisor.end(wait_s=_END_S)
    if state.worker is not None:
        state.worker.end(wait_s=_ORPHAN_S)
