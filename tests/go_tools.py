"""Published Go programs that tests run for real: built once into the user's cache, then kept.

`python -m tests.go_tools NAME…` builds some ahead of time (none named: all) and prints where they
are.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_PROCESSES = 2  # compilers at a time: a cold build of Kubernetes takes 1-2 GB with each
_TIMEOUT_S = 3000


class GoMissing(RuntimeError):
    """There is no Go to build a tool with, and none was built before."""


class BuildFailed(RuntimeError):
    """Go would not fetch or build a tool."""


@dataclass(frozen=True)
class GoTool:
    """A program of a published module. `package` is its folder in the module, "" for the root."""

    module: str
    version: str
    package: str = ""
    ldflags: str = ""
    # A module's own replacements count for nothing outside it, so they are made again here.
    replace: Mapping[str, str] = field(default_factory=dict)  # module -> "module version"
    unreleased: str = ""  # the version to take for what go.mod requires at v0.0.0

    @property
    def import_path(self) -> str:
        return f"{self.module}/{self.package}" if self.package else self.module


_KUBERNETES = "1.34.10"
_VERSION = "k8s.io/component-base/version"


def _kubernetes(command: str) -> GoTool:
    """Unstamped programs call themselves v0.0.0, and refuse each other by their version skew."""
    major, minor, patch = _KUBERNETES.split(".")
    return GoTool(
        "k8s.io/kubernetes",
        f"v{_KUBERNETES}",
        f"cmd/{command}",
        ldflags=f"-X {_VERSION}.gitVersion=v{_KUBERNETES} -X {_VERSION}.gitMajor={major}"
        f" -X {_VERSION}.gitMinor={minor}",
        unreleased=f"v0.{minor}.{patch}",
    )


# As in Helm's own releases; else `helm template` and `helm lint` take the cluster for v1.20.
_HELM_FLAGS = " ".join(
    f"-X helm.sh/helm/v3/pkg/{package}.k8sVersion{part}={value}"
    for package in ("chartutil", "lint/rules")
    for part, value in zip(("Major", "Minor"), _KUBERNETES.split(".")[:2], strict=True)
)

TOOLS = {
    **{
        command: _kubernetes(command)
        for command in (
            "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet",
        )
    },
    "kine": GoTool("github.com/k3s-io/kine", "v0.14.16"),
    "helm": GoTool("helm.sh/helm/v3", "v3.21.4", "cmd/helm", ldflags=_HELM_FLAGS),
    "kubeconform": GoTool("github.com/yannh/kubeconform", "v0.7.0", "cmd/kubeconform"),
    "minio": GoTool("github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c"),
    "ray-operator": GoTool("github.com/ray-project/kuberay/ray-operator", "v1.6.2"),
}  # fmt: skip


def tool(name: str) -> Path:
    """The program `name` of `TOOLS`; the first call builds it (Kubernetes: 5-10 minutes).

    Raises GoMissing without Go, BuildFailed with the end of what Go said.
    """
    wanted, program = TOOLS[name], _program(name)
    if program.is_file():
        return program
    _need_go(f"{name} {wanted.version}")
    with _alone(name):
        if not program.is_file():
            print(f"building {name} {wanted.version} (once)", file=sys.stderr, flush=True)
            _build(wanted, program)
    return program


def tool_or_skip(name: str) -> Path:
    """`tool`, in a test: skipped where there is no Go."""
    try:
        return tool(name)
    except GoMissing as error:
        pytest.skip(str(error))


def built(name: str) -> Path | None:
    """The program `name`, if it has been built before."""
    program = _program(name)
    return program if program.is_file() else None


def module_folder(module: str, version: str) -> Path:
    """A published module's files, read-only: some carry CRDs and the like.

    Raises GoMissing, BuildFailed.
    """
    _need_go(f"the files of {module} {version}")
    return Path(_downloaded(module, version)["Dir"])


def _program(name: str) -> Path:
    return _cache() / f"{name}-{TOOLS[name].version}" / name


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "emberline-tools"


def _need_go(what: str) -> None:
    if shutil.which("go") is None:
        raise GoMissing(f"no Go on the PATH for {what}: install Go 1.26 or newer")


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Two test runs that want one tool build it once."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(wanted: GoTool, program: Path) -> None:
    """In a small module of its own, as `go install` refuses a module that replaces others."""
    replace = dict(wanted.replace)
    if wanted.unreleased:
        for module in _unreleased(Path(_downloaded(wanted.module, wanted.version)["GoMod"])):
            replace[module] = f"{module} {wanted.unreleased}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "go.mod").write_text(
            "module emberline-tools\n"
            + "".join(f"replace {old} => {new}\n" for old, new in replace.items())
        )
        _go("get", "-tool", f"{wanted.import_path}@{wanted.version}", cwd=folder)
        program.parent.mkdir(parents=True, exist_ok=True)
        built = program.with_suffix(".new")
        _go(
            "build", "-p", str(_PROCESSES), "-trimpath", "-ldflags", f"-s -w {wanted.ldflags}",
            "-o", str(built), wanted.import_path, cwd=folder,
        )  # fmt: skip
        built.replace(program)


def _unreleased(go_mod: Path) -> list[str]:
    """What a go.mod requires at v0.0.0: modules that live in the same repository."""
    lines = [line.split() for line in go_mod.read_text().splitlines()]
    return [words[0] for words in lines if words[1:2] == ["v0.0.0"]]


def _downloaded(module: str, version: str) -> dict[str, str]:
    return json.loads(_go("mod", "download", "-json", f"{module}@{version}"))


def _go(*words: str, cwd: str | None = None) -> str:
    # A session's GOFLAGS may ask for a vendor folder or a read-only go.mod.
    done = subprocess.run(
        ["nice", "-n", "10", "go", *words],
        cwd=cwd or tempfile.gettempdir(),
        env={**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise BuildFailed(f"go {' '.join(words)} failed:\n{said}")
    return done.stdout


if __name__ == "__main__":
    for chosen in sys.argv[1:] or TOOLS:
        print(tool(chosen))
