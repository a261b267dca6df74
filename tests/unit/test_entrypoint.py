from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def entrypoint(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-P", "-m", "ray_jobs.entrypoint", *words],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_program_of_the_image_is_run_with_its_own_words() -> None:
    done = entrypoint("python", "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "train", "-x")
    assert (done.returncode, done.stdout) == (7, "['train', '-x']\n"), done.stderr
    assert "Usage: emberline" in entrypoint("emberline", "--help").stdout


def test_train_and_serve_are_sagemakers(tmp_path: Path) -> None:
    done = entrypoint("train", EMBERLINE_ML_DIR=str(tmp_path))
    told = (tmp_path / "output/failure").read_text(encoding="utf-8")
    assert (done.returncode, "hyperparameters.json: not written" in told) == (2, True)
    done = entrypoint("serve", EMBERLINE_ML_DIR=str(tmp_path))
    assert (done.returncode, str(tmp_path / "model") in done.stderr) == (4, True), done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [((), "no command was given"), (("tarin", "-x"), "'tarin' is no command of this image")],
)
def test_other_words_are_refused(words: tuple[str, ...], found: str) -> None:
    done = entrypoint(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {found}; give it one of train, serve, emberline, ray, mlflow, python, python3, or "
        "another program by --entrypoint\n"
    )
