"""JobSpec: what to run. A YAML file, then `--set a.b=c` overrides; every key is checked before
anything starts."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_jobs.errors import SpecError
from ray_jobs.models.base import MemberConfig
from ray_jobs.models.registry import FAMILIES
from ray_jobs.result import Objective

CONFIGS = Path(__file__).parent / "configs"
METRICS = {"f1": "max", "accuracy": "max", "auc": "max", "log_loss": "min"}

_ROLES = ("label", "group", "time", "id")
Share = Annotated[float, Field(gt=0, lt=1)]


if TYPE_CHECKING:
    AnyMember = MemberConfig
else:  # each family's own keys are checked, chosen by `family`
    AnyMember = Annotated[Union[tuple(FAMILIES.values())], Field(discriminator="family")]  # noqa: UP007


class _Section(BaseModel):
    # A column or a run may well be called 7: numbers are taken where a text is wanted.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class SplitShares(_Section):
    """Shares of the rows; whole groups go to one split."""

    train: Share = 0.7
    val: Share = 0.15
    test: Share = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitShares:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares must add up to 1, but train + val + test = {total:g}")
        return self


class DataSpec(_Section):
    """Where the rows come from."""

    source: Literal["simulator", "table"] | None = None  # default: table if a path is given
    path: str | None = None  # table: a file, folder, glob or s3:// prefix of CSV or Parquet
    samples: Annotated[int, Field(ge=100)] | None = None  # simulator: default 100,000
    generator: Literal["episodes", "independent"] | None = None  # simulator: default episodes
    label_column: str | None = None
    feature_columns: list[str] | None = None  # default: every numeric column
    group_column: str | None = None  # rows of one group stay in one split
    time_column: str | None = None  # order within a group; default: the file's order
    id_column: str | None = None  # default: the row's position
    nonfinite: Literal["refuse", "drop", "impute"] = "refuse"  # NaN and inf cells
    allow_leaks: list[str] = []  # columns that predict the label alone, kept on purpose
    shuffle_labels: bool = False  # the null experiment: what a score of no information looks like
    split: SplitShares = SplitShares()

    @model_validator(mode="after")
    def _fits_source(self) -> DataSpec:
        source = self.source or ("table" if self.path else "simulator")
        only = {
            "simulator": ("samples", "generator"),
            "table": ("path", "feature_columns", *(f"{role}_column" for role in _ROLES)),
        }
        other = "table" if source == "simulator" else "simulator"
        for key in only[other]:
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} belongs to data.source={other}, but data.source is {source}"
                )
        if source == "table" and not self.path:
            raise ValueError(
                "data.source=table needs data.path: a file, folder, glob or s3:// prefix"
            )
        values: dict[str, Any] = {"source": source}
        if source == "simulator":
            values |= {
                "samples": self.samples or 100_000,
                "generator": self.generator or "episodes",
            }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        return self


class EnsembleSpec(_Section):
    """How members become one prediction."""

    strategy: Literal["auto", "exponential", "equal", "greedy", "stacking", "single"] = "auto"
    calibration: Literal["auto", "none", "sigmoid", "isotonic"] = "auto"
    min_members: Annotated[int, Field(ge=1)] = 1  # fewer fitted members than this fail the run


class ResourceSpec(_Section):
    """What the job may use on this machine or cluster."""

    num_cpus: Annotated[int, Field(ge=1)] | None = None  # default: all of this machine's
    cpus_per_member: Annotated[int, Field(ge=1)] | None = None  # default: half of num_cpus


class TrackingSpec(_Section):
    """What goes to MLflow. The server is MLFLOW_TRACKING_URI, or sqlite under the storage root."""

    enabled: bool = True
    experiment: str | None = None  # default: the workload's name
    model_name: str | None = None  # registered model; default: the workload's name


class JobSpec(_Section):
    """One job, complete: the same spec, seed and versions give the same numbers."""

    workload: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    storage: str = "./runs"
    target: Literal["local"] = "local"
    objective: Objective
    data: DataSpec = DataSpec()
    members: dict[str, AnyMember]
    parallel: bool = True  # members side by side, as far as the CPUs go
    ensemble: EnsembleSpec = EnsembleSpec()
    resources: ResourceSpec = ResourceSpec()
    tracking: TrackingSpec = TrackingSpec()

    @field_validator("objective")
    @classmethod
    def _known_metric(cls, objective: Objective) -> Objective:
        if objective.metric not in METRICS:
            raise ValueError(f"metric {objective.metric!r} is not one of {', '.join(METRICS)}")
        if objective.mode != METRICS[objective.metric]:
            raise ValueError(
                f"the mode of {objective.metric} is {METRICS[objective.metric]!r}, "
                f"not {objective.mode!r}"
            )
        return objective

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

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def digest(self, *parts: str) -> str:
        """sha256 of the named top-level parts, or of all that decides the outcome."""
        dump = self.model_dump(
            mode="json", exclude=None if parts else {"storage", "target", "resources", "parallel"}
        )
        chosen = {part: dump[part] for part in parts} if parts else dump
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def load_spec(
    workload: str | None,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    **flags: str | None,
) -> JobSpec:
    """Read a job description and check every key.

    Args:
        workload: one of `workloads()`; None: whatever `config` describes.
        config: a YAML file; default: the one shipped for the workload.
        overrides: `a.b=value` texts, values in YAML.
        flags: top-level keys given on the command line (`storage`, `target`); None means not given.

    Raises:
        SpecError: names the key, the file, what is allowed and the nearest valid name.
    """
    if workload is not None and config is None and workload not in workloads():
        raise SpecError(f"no workload {workload!r}; there is {_listing(workloads(), workload)}")
    path = config or CONFIGS / f"{workload}.yaml"
    raw = _read_yaml(path)
    overridden = {_apply_override(raw, override) for override in overrides}
    raw |= {key: value for key, value in flags.items() if value is not None}
    if workload is not None and raw.setdefault("workload", workload) != workload:
        raise SpecError(f"{path.name} describes the workload {raw['workload']!r}, not {workload!r}")
    return parse_spec(raw, source=path.name, overridden=frozenset(overridden))


def parse_spec(
    raw: dict[str, Any], *, source: str, overridden: frozenset[tuple[str, ...]] = frozenset()
) -> JobSpec:
    """Validate a job description already read. `source` is the file that messages name.

    Raises:
        SpecError: as `load_spec`.
    """
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault, source, overridden) for fault in error.errors(include_url=False)]
        raise SpecError("\n".join(lines)) from None


def workloads() -> list[str]:
    """The shipped workloads: one job description each."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; a job description must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_bytes(), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; --config takes a job description in YAML") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise SpecError(
            f"{path.name}: a job description is a mapping of keys, not a {type(raw).__name__}"
        )
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    key, separator, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise SpecError(f"--set {override!r}: write it as key.subkey=value")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    section = raw
    for depth, part in enumerate(parts[:-1]):
        inner = section.get(part)
        if isinstance(inner, list) and depth == 0 and part == "members":
            inner = {name: {} for name in inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise SpecError(
                f"--set {override!r}: {'.'.join(parts[: depth + 1])} is a value, not a section"
            )
        section[part] = inner
        section = inner
    section[parts[-1]] = value
    return parts


def _explain(fault: Any, source: str, overridden: frozenset[tuple[str, ...]]) -> str:
    """One line for one validation error: where, what, what is allowed, the nearest name."""
    location = [str(part) for part in fault["loc"]]
    model: Any = JobSpec
    if location[:1] == ["members"] and len(location) > 2 and location[2] in FAMILIES:
        model = FAMILIES[location.pop(2)]  # pydantic puts the union's tag there
        fields = list(model.model_fields)
    else:
        for part in location[:-1]:
            annotation = (
                model.model_fields[part].annotation
                if part in getattr(model, "model_fields", {})
                else None
            )
            model = annotation
        fields = list(getattr(model, "model_fields", {}))
    is_override = any(
        all(a == b for a, b in zip(key, location, strict=False)) for key in overridden
    )
    where = "--set" if is_override else source
    key = ".".join(location)
    kind = fault["type"]
    if kind == "extra_forbidden":
        section = ".".join(location[:-1]) or "the top level"
        return f"{where}: {key}: unknown key; {section} has {_listing(fields, location[-1])}"
    if kind == "union_tag_invalid":
        tag = fault["ctx"]["tag"]
        return f"{where}: {key}: no model family {tag!r}; there is {_listing(list(FAMILIES), tag)}"
    if kind == "missing":
        return f"{where}: {key}: this key is required"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if kind != "value_error" else message
    given = fault["input"]
    shown = (
        f" (given: {given!r})"
        if kind != "value_error" and isinstance(given, str | int | float | bool)
        else ""
    )
    return f"{where}: {key + ': ' if key else ''}{message}{shown}"


def _listing(names: list[str], given: str) -> str:
    """`a, b, c`, and a guess at what was meant."""
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return ", ".join(names) + (f" (did you mean {near[0]!r}?)" if near else "")
