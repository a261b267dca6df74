"""Compiled pipelines: `emberline pipelines compile`, and whether the compiled ones are current."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from ray_jobs.errors import EXIT_OK, DriftFound, SpecError
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec, workloads

if TYPE_CHECKING:
    from rich.console import Console

SHIPPED = Path(__file__).parent / "compiled"
ALL = "all"
_NUM_DIFFERING = 20  # lines that are shown of a file that is not current


@dataclass(frozen=True)
class Variant:
    """Which pipeline of a workload."""

    workload: str
    sweeps: bool = False
    retrains: bool = False  # the one that a schedule runs: old and new data, gate, deployment
    promote: bool = False
    deploy: str | None = None  # where to; implies `promote`

    def __post_init__(self) -> None:
        if self.retrains and self.sweeps:
            raise SpecError("--sweep and --retraining are two pipelines; leave one out")
        if self.retrains and self.promote:
            raise SpecError("--promote: the retraining pipeline asks the gate anyway; leave it out")

    @property
    def name(self) -> str:
        """Of its file: `gcode-sweep`, `fire-retraining`, `fire-deploy-local`."""
        parts = [self.workload, "sweep" if self.sweeps else "", "retraining" * self.retrains]
        if self.deploy:
            parts.append(f"deploy-{self.deploy}")
        elif self.promote:
            parts.append("promote")
        return "-".join(filter(None, parts))

    @property
    def options(self) -> str:
        """On the command line."""
        parts = [self.workload, "--sweep" * self.sweeps, "--retraining" * self.retrains]
        parts += ["--promote" * self.promote, f"--deploy {self.deploy}" if self.deploy else ""]
        return " ".join(filter(None, parts))


VARIANTS = (
    *(Variant(workload) for workload in workloads()),
    Variant("gcode", sweeps=True),
    *(Variant(workload, retrains=True) for workload in workloads()),
)


@dataclass(frozen=True)
class Compiled:
    """A pipeline as KFP takes it: IR in YAML, and with it what Kubernetes is told."""

    variant: Variant
    text: str

    @cached_property
    def digest(self) -> str:
        """sha256 of the text: the same pipeline, the same digest."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def pipeline_name(self) -> str:
        """KFP's name of it."""
        import yaml

        first, *_ = yaml.safe_load_all(self.text)
        return str(first["pipelineInfo"]["name"])


def compiled(variant: Variant, job: JobSpec) -> Compiled:
    """The pipeline, compiled for a job: the same job and versions give the same text.

    Raises:
        SpecError: KFP cannot express what the job asks.
    """
    from kfp import compiler

    made = _pipeline(variant, job)
    with TemporaryDirectory(prefix="emberline-") as scratch:
        path = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(made, str(path))
        return Compiled(variant, path.read_text())


def _pipeline(variant: Variant, job: JobSpec) -> Any:
    own: dict[str, Any] = {"deploy": variant.deploy, "kubeflow": job.kubeflow}
    if variant.retrains:
        from pipelines import retrain

        return retrain.pipeline(job, **own)
    module = import_module(f"pipelines.{variant.workload}")
    return module.pipeline(job, promote=variant.promote, **own)


def described(
    variant: Variant, config: Path | None, overrides: Sequence[str], storage: str | None = None
) -> JobSpec:
    """The job that a pipeline is compiled for.

    Raises:
        SpecError: as `load_spec`.
    """
    return load_spec(
        variant.workload,
        config=config,
        overrides=overrides,
        sweeps=variant.sweeps,
        storage=storage,
    )


@dataclass(frozen=True)
class Written:
    """Pipelines that were compiled to files."""

    paths: Sequence[Path]
    digests: Sequence[str]
    exit_code: ClassVar[int] = EXIT_OK

    def to_json(self) -> str:
        found = zip(self.paths, self.digests, strict=True)
        return json.dumps([{"path": str(path), "digest": digest} for path, digest in found])

    def print(self, console: Console) -> None:
        for path in self.paths:
            console.print(str(path), soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Compared:
    """Compiled files beside what the code compiles to now."""

    stale: dict[Path, str]  # file -> how it differs
    num_compared: int

    @property
    def exit_code(self) -> int:
        return DriftFound.exit_code if self.stale else EXIT_OK

    def to_json(self) -> str:
        return json.dumps({"stale": [str(path) for path in self.stale], "num": self.num_compared})

    def print(self, console: Console) -> None:
        for path, difference in self.stale.items():
            console.print(f"{path} is not current:", soft_wrap=True, markup=False)
            console.print(difference, soft_wrap=True, markup=False, highlight=False)
        if self.stale:
            console.print("compile anew, with the same options and without --check", soft_wrap=True)
        else:
            console.print(f"{self.num_compared} compiled pipelines are current")


def write(found: Sequence[Compiled], output: Path) -> Written:
    """Write the pipelines to a folder, or a single one to a file that ends in .yaml.

    Raises:
        SpecError: there are several for one file.
    """
    paths = [_file(one, output, len(found)) for one in found]
    for path, one in zip(paths, found, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.text)
    return Written(paths, [one.digest for one in found])


def compare(found: Sequence[Compiled], output: Path) -> Compared:
    """Whether the files are what the code compiles to. A file of a folder that no pipeline is
    compiled to is stale, too, where all are compared.

    Raises:
        SpecError: as `write`.
    """
    expected = {_file(one, output, len(found)): one.text for one in found}
    stale = {}
    for path, text in expected.items():
        present = path.read_text() if path.exists() else ""
        if present != text:
            stale[path] = _difference(present, text) if present else "there is no such file"
    if len(found) > 1:
        for path in sorted(output.glob("*.yaml")):
            if path not in expected:
                stale[path] = "no pipeline is compiled to it; delete it"
    return Compared(stale, len(found))


def _file(one: Compiled, output: Path, num: int) -> Path:
    if output.suffix not in (".yaml", ".yml"):
        return output / f"{one.variant.name}.yaml"
    if num > 1:
        raise SpecError(f"-o {output}: {num} pipelines are compiled; name a folder")
    return output


def _difference(old: str, new: str) -> str:
    lines = list(
        difflib.unified_diff(
            old.splitlines(), new.splitlines(), "file", "compiled", lineterm="", n=0
        )
    )
    more = len(lines) - _NUM_DIFFERING
    shown = [line[:200] for line in lines[:_NUM_DIFFERING]]
    return "\n".join([*shown, f"... and {more} lines more"] if more > 0 else shown)
