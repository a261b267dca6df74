"""Reading job descriptions: a YAML file, then `--set a.b=c` overrides; every key is checked before
anything starts."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ray_jobs import workloads as registry
from ray_jobs.errors import SpecError
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage, StorageUnavailable, brief_cause
from ray_jobs.sweeping.spec import Distribution

_SOURCES = ("source", "sources", "path")  # keys of `data` that say where it comes from
_SPACE = ("sweep", "space")
CONFIGS = Path(__file__).parent / "configs"


def load_spec(
    workload: str | None,
    *,
    config: Path | str | None = None,
    overrides: Sequence[str] = (),
    sweeps: bool = False,
    **flags: str | None,
) -> JobSpec:
    """Read a job description and check every key.

    Args:
        workload: one of `workloads()`; None: whatever `config` describes.
        config: a YAML file or s3:// URI; default: the one shipped for the workload.
        overrides: `a.b=value` texts, values in YAML.
        sweeps: the job is a sweep, and its section is needed; else it is checked and left out.
        flags: top-level keys given on the command line (`storage`, `target`); None means not given.

    Raises:
        SpecError: names the key, the file, what is allowed and the nearest valid name.
    """
    if workload is not None and config is None and workload not in workloads():
        raise SpecError(f"no workload {workload!r}; there is {_listing(workloads(), workload)}")
    uri = str(config or CONFIGS / f"{workload}.yaml")
    path = PurePosixPath(uri)
    raw = _read_yaml(uri)
    demo = raw.pop("demo", None)
    if demo is not None and not _names_data(raw, overrides):
        _merge(raw, demo)
    overridden = {_apply_override(raw, override) for override in overrides}
    raw |= {key: value for key, value in flags.items() if value is not None}
    if workload is not None and raw.setdefault("workload", workload) != workload:
        raise SpecError(f"{path.name} describes the workload {raw['workload']!r}, not {workload!r}")
    spec = parse_spec(raw, source=path.name, overridden=frozenset(overridden))
    return _as_sweep(spec, path.name) if sweeps else _without_sweep(spec, overridden)


def _as_sweep(spec: JobSpec, source: str) -> JobSpec:
    if spec.sweeps:
        return spec
    known = [name for name in registry.NAMES if "sweep" in registry.find(name).spec.model_fields]
    if spec.workload not in known:
        raise SpecError(f"{spec.workload} cannot be swept; {' and '.join(known)} can")
    raise SpecError(
        f"{source}: sweep: this key is required; say what to try, such as --set "
        "'sweep.space={train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}'"
    )


def _without_sweep(spec: JobSpec, overridden: set[tuple[str, ...]]) -> JobSpec:
    if not spec.sweeps:
        return spec
    for key in sorted(overridden):
        if key[0] == "sweep":
            raise SpecError(
                f"--set {'.'.join(key)}: it belongs to emberline sweep {spec.workload}; this "
                "command trains one network"
            )
    return spec.model_copy(update={"sweep": None})


def parse_spec(
    raw: dict[str, Any], *, source: str, overridden: frozenset[tuple[str, ...]] = frozenset()
) -> JobSpec:
    """Validate a job description already read. `source` is the file that messages name.

    Raises:
        SpecError: as `load_spec`.
    """
    name = raw.get("workload")
    if name not in registry.NAMES:
        given = f": no workload {name!r}" if name is not None else ": this key is required"
        known = _listing(list(registry.NAMES), str(name))
        raise SpecError(f"{source}: workload{given}; there is {known}")
    model = registry.find(name).spec
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise SpecError(
            "\n".join(_explain(fault, model, source, overridden) for fault in faults)
        ) from None


def workloads() -> list[str]:
    """The shipped workloads: one job description each."""
    return list(registry.NAMES)


def _names_data(raw: dict[str, Any], overrides: Sequence[str]) -> bool:
    """Whether the user says where the data come from. A description may have a section `demo` for
    when nobody does: what is then drawn needs no large model."""
    trial = copy.deepcopy(raw)
    for override in overrides:
        _apply_override(trial, override)
    data = trial.get("data")
    return isinstance(data, dict) and any(data.get(key) for key in _SOURCES)


def _merge(into: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


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


def _read(uri: str) -> bytes:
    if "://" not in uri:
        return Path(uri).read_bytes()
    folder, _, name = uri.rpartition("/")
    return Storage(folder).read_bytes(name)


def _read_yaml(uri: str) -> dict[str, Any]:
    path = Path(uri)
    try:
        raw = yaml.load(_read(uri), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise SpecError(f"{uri}: no such file; --config takes a job description in YAML") from None
    except StorageUnavailable:
        raise
    except OSError as error:
        raise SpecError(f"{uri}: cannot be read: {error.strerror or brief_cause(error)}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise SpecError(
            f"{path.name}: a job description is a mapping of keys, not a {type(raw).__name__}"
        )
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    key, separator, text = override.partition("=")
    parts = _parts(key.strip())
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
    if value is None and parts[:-1] == _SPACE:  # not to be tried, although the file says so
        section.pop(parts[-1], None)
    else:
        section[parts[-1]] = value
    return parts


def _parts(key: str) -> tuple[str, ...]:
    """The keys that lead to a value. Those of sweep.space have dots of their own."""
    parts = tuple(key.split("."))
    if parts[: len(_SPACE)] != _SPACE or len(parts) == len(_SPACE):
        return parts
    *path, last = parts[len(_SPACE) :]
    if path and last in Distribution.model_fields:
        return (*_SPACE, ".".join(path), last)
    return (*_SPACE, ".".join([*path, last]))


def _explain(
    fault: Any, model: type[BaseModel], source: str, overridden: frozenset[tuple[str, ...]]
) -> str:
    """One line for one validation error: where, what, what is allowed, the nearest name."""
    location = [str(part) for part in fault["loc"]]
    fields = _fields_at(model, location)
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
        tag, known = fault["ctx"]["tag"], fault["ctx"]["expected_tags"]
        names = [name.strip().strip("'") for name in known.split(",")]
        return f"{where}: {key}: no model family {tag!r}; there is {_listing(names, tag)}"
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


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that the section of `location` has. Takes out of `location` the tag that pydantic
    adds where a section is one of several."""
    candidates: list[type[BaseModel]] = [model]
    depth = 0
    while depth < len(location) - 1:
        part = location[depth]
        tagged = [m for m in candidates if "family" in m.model_fields and _tag(m) == part]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            location.pop(depth)
            continue
        found = [m.model_fields[part].annotation for m in candidates if part in m.model_fields]
        if found:
            candidates = [inner for annotation in found for inner in _models_in(annotation)]
        depth += 1  # else an index of a list or a name in a mapping
    return list(candidates[0].model_fields) if candidates else []


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["family"].default


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation such as `dict[str, A | B]` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for inner in get_args(annotation):
            yield from _models_in(inner)


def _listing(names: list[str], given: str) -> str:
    """`a, b, c`, and a guess at what was meant."""
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return ", ".join(names) + (f" (did you mean {near[0]!r}?)" if near else "")
