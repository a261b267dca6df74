"""fire: an ensemble over thermal and gas sensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, field_validator

from ray_jobs.data.spec import DataSpec
from ray_jobs.models.base import MemberConfig
from ray_jobs.models.registry import FAMILIES
from ray_jobs.result import DataSummary, JobResult, MemberResult
from ray_jobs.sections import JobSpec, Section
from ray_jobs.workloads.base import ModelForm, Request, Workload, draw

if TYPE_CHECKING:
    from ray_jobs.run import Run

    AnyMember = MemberConfig
else:  # each family's own keys are checked, chosen by `family`
    AnyMember = Annotated[Union[tuple(FAMILIES.values())], Field(discriminator="family")]  # noqa: UP007


class EnsembleSpec(Section):
    """How members become one prediction."""

    strategy: Literal["auto", "exponential", "equal", "greedy", "stacking", "single"] = "auto"
    calibration: Literal["auto", "none", "sigmoid", "isotonic"] = "auto"
    min_members: Annotated[int, Field(ge=1)] = 1  # fewer fitted members than this fail the run


class FireSpec(JobSpec):
    """The job description of an ensemble."""

    METRICS: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "f1": "max",
        "accuracy": "max",
        "auc": "max",
        "log_loss": "min",
    }

    data: DataSpec = DataSpec()
    members: dict[str, AnyMember]
    parallel: bool = True  # members side by side, as far as the CPUs go
    ensemble: EnsembleSpec = EnsembleSpec()

    @field_validator("members", mode="before")
    @classmethod
    def _name_families(cls, value: Any) -> Any:
        """A list of families, or a mapping name -> hyperparameters; the name is the family
        unless one is given."""
        if isinstance(value, list):
            value = {str(name): {} for name in value}
        if not isinstance(value, dict):
            return value
        named = {}
        for name, config in value.items():
            if config is None:  # `--set members.lstm_classifier=null` leaves a member out
                continue
            named[name] = {"family": name, **config} if isinstance(config, dict) else config
        return named

    @field_validator("members")
    @classmethod
    def _valid_names(cls, members: dict[str, MemberConfig]) -> dict[str, MemberConfig]:
        if not members:
            raise ValueError("at least one member is needed")
        for name in members:
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
                raise ValueError(
                    f"member name {name!r} must be lower-case letters, digits and _ (at most 40)"
                )
        return members

    def families(self) -> dict[str, str]:
        return {name: config.family for name, config in self.members.items()}

    def hyperparameters(self, member: str) -> dict[str, Any]:
        return self.members[member].model_dump(mode="json")


class Fire(Workload):
    """Prepare, fit each member, combine them, test once, register."""

    spec = FireSpec
    preparation = "ray_jobs.data.prepare:prepare"

    def work(self, run: Run) -> None:
        from ray_jobs.members import longest_first, train_members
        from ray_jobs.prepare import prepare

        data = prepare(run)
        train_members(run, longest_first(run.spec, data))
        self._finish(run)

    def train_member(self, run: Run, name: str) -> MemberResult:
        from ray_jobs.members import train_members
        from ray_jobs.prepare import prepare

        prepare(run)
        (result,) = train_members(run, [name])
        return result

    def fail_member(self, run: Run, name: str, reason: str, since: datetime | None) -> None:
        from ray_jobs.members import fail_member

        fail_member(run, name, reason, since)

    def combine(self, run: Run) -> None:
        from ray_jobs.prepare import prepare

        prepare(run)
        self._finish(run)

    def _finish(self, run: Run) -> None:
        from ray_jobs.ensemble import build
        from ray_jobs.evaluate import evaluate
        from ray_jobs.register import register

        build(run)
        evaluate(run)
        register(run)

    def score(self, run: Run, members: list[MemberResult]) -> dict[str, Any]:
        from ray_jobs.ensemble import score

        return score(run, members)

    def render(self, run: Run, result: JobResult) -> str:
        from ray_jobs.ensemble import TEST, VAL
        from ray_jobs.members import read_history
        from ray_jobs.predictions import Predictions
        from ray_jobs.reporting.report import render_report

        paths = {"val": run.path(VAL), "test": run.path(TEST)}
        predictions = {
            split: Predictions.read(run.storage, path)
            for split, path in paths.items()
            if run.storage.exists(path)
        }
        histories = {name: read_history(run, name) for name in run.spec.members}
        return render_report(
            result, predictions=predictions, histories=histories, spec_yaml=run.spec.to_yaml()
        )

    def params(self, run: Run, result: JobResult) -> dict[str, Any]:
        ensemble = result.ensemble
        assert ensemble is not None, "only evaluated runs are logged"
        return {
            "ensemble.strategy": ensemble.strategy,
            "ensemble.calibration": ensemble.calibration,
            "ensemble.threshold": ensemble.threshold,
        }

    def write_model(self, run: Run, result: JobResult, folder: Path) -> ModelForm:
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

        from ray_jobs.bundle import write_bundle
        from ray_jobs.data.prepare import load_rows
        from ray_jobs.ensemble import read_ensemble

        assert result.data is not None, "only evaluated runs are logged"
        features, ensemble = result.data.features, read_ensemble(run)
        write_bundle(run, folder, features=features, ensemble=ensemble, members=result.members)
        rows = load_rows(run.storage, result.data, "val").x[:3]
        return ModelForm(
            code=Path(__file__).parents[1] / "tracking" / "model_code.py",
            signature=ModelSignature(
                inputs=Schema([ColSpec("double", name) for name in features]),
                outputs=Schema([ColSpec("double", "probability"), ColSpec("boolean", "decision")]),
                params=ParamSchema([ParamSpec("as_history", "boolean", False)]),
            ),
            example=pd.DataFrame(rows, columns=features).astype(float),
            requirements=(
                "scikit-learn",
                "torch",
                "numpy",
                "scipy",
                "skops",
                "safetensors",
                "pyarrow",
                "pydantic",
                "pyyaml",
            ),
            tags={},
        )

    def requests(self, run: Run, data: DataSummary, split: str, num: int) -> Iterator[Request]:
        """Each stands alone, without the readings before it."""
        from ray_jobs.data.prepare import load_rows

        rows = load_rows(run.storage, data, split)
        rows = rows.take(draw(len(rows), num, run.spec.seed))
        for x, group in zip(rows.x.tolist(), rows.independent.tolist(), strict=True):
            yield Request("text/csv", ",".join(map(repr, x)).encode(), group)


WORKLOAD = Fire()
