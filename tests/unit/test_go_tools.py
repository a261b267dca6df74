"""Go programs of tests: what is built is kept, and what cannot be built is told."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests import go_tools


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no program on the PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache" / "emberline-tools"


def test_without_go_it_is_told_what_to_install(cache: Path) -> None:
    with pytest.raises(go_tools.GoMissing) as error:
        go_tools.tool("helm")
    wanted = go_tools.TOOLS["helm"].version
    assert str(error.value) == f"no Go on the PATH for helm {wanted}: install Go 1.26 or newer"
    assert not cache.exists()


def test_what_was_built_needs_no_go(cache: Path) -> None:
    program = cache / f"helm-{go_tools.TOOLS['helm'].version}" / "helm"
    program.parent.mkdir(parents=True)
    program.touch(stat.S_IRWXU)
    assert go_tools.tool("helm") == program


def test_a_failed_build_tells_the_end_of_what_go_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    _script(bin_folder / "go", 'echo "no such module" >&2; exit 1')
    _script(bin_folder / "nice", 'shift 2; exec "$@"')
    with pytest.raises(go_tools.BuildFailed, match=r"^go get -tool .* failed:\nno such module$"):
        go_tools.tool("helm")
    assert not list(cache.glob("helm-*/helm"))


def test_modules_of_the_same_repository_are_found(tmp_path: Path) -> None:
    go_mod = tmp_path / "go.mod"
    go_mod.write_text(
        "module k8s.io/kubernetes\n\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.1.0\n)\n"
    )
    assert go_tools._unreleased(go_mod) == ["k8s.io/api"]


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
