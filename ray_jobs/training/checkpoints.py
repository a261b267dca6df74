"""Checkpoints: all that a training run needs to go on, on the run's storage, without pickle.

    <folder>/epoch-0003-batch-000120/   weights.safetensors   of the network
                                        state.safetensors     tensors of everything else
                                        state.json            numbers of everything else
                                        manifest.json         sha256 of those; written last
    <folder>/best-0002/                 weights.safetensors, manifest.json

A folder without a manifest, or with a file that is not the one the manifest names, is no
checkpoint: the one before it is used. The last two are kept, and the best weights they know of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_jobs.errors import RetryableError
from ray_jobs.storage import Storage, brief_cause

if TYPE_CHECKING:
    from torch import Tensor

NUM_KEPT = 2
_WEIGHTS, _STATE, _TREE = "weights.safetensors", "state.safetensors", "state.json"
_MANIFEST = "manifest.json"
_TENSOR, _ITEMS, _TUPLE = "__tensor__", "__items__", "__tuple__"

Weights = Mapping[str, "Tensor"]


class DamagedCheckpoint(ValueError):
    """A checkpoint's files are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read back, on the CPU."""

    name: str
    weights: dict[str, Tensor]
    state: dict[str, Any]
    best: dict[str, Tensor] | None


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one model.

    Args:
        folder: relative to the storage root.
        emit: the journal; receives `checkpoint` and `warning`.
    """

    storage: Storage
    folder: str
    emit: Callable[..., None]

    def save(
        self,
        epoch: int,
        batch: int,
        weights: Weights,
        state: Mapping[str, Any],
        best: tuple[int, Weights] | None,
    ) -> None:
        """Write a checkpoint, then let go of those that are no longer needed.

        Args:
            epoch, batch: the next batch to learn from; epochs from 1, batches from 0.
            state: nested mappings and lists of numbers, texts and tensors.
            best: epoch and weights of the best epoch so far.

        Raises:
            RetryableError: the storage does not take it. Earlier checkpoints still stand.
        """
        name = f"epoch-{epoch:04d}-batch-{batch:06d}"
        best_name = None if best is None else f"best-{best[0]:04d}"
        try:
            if best is not None and best_name is not None and not self._has(best_name):
                self._write(best_name, {_WEIGHTS: _to_bytes(best[1])})
            tensors: dict[str, Tensor] = {}
            tree = {"best": best_name, "state": _pack(dict(state), tensors)}
            content = {
                _WEIGHTS: _to_bytes(weights),
                _STATE: _to_bytes(tensors),
                _TREE: json.dumps(tree).encode(),
            }
            self._write(name, content)
            self._prune()
        except OSError as error:
            raise RetryableError(
                f"no checkpoint could be written to {self.storage.display(self.folder)} "
                f"({brief_cause(error)}). Make room or mend the storage; the same command with the "
                "same --run-id goes on from the checkpoint before"
            ) from error
        self.emit("checkpoint", epoch=epoch, batch=batch, name=name)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. A damaged one is told of and passed over.

        Raises:
            RetryableError: the storage cannot be read.
        """
        try:
            return self._load()
        except OSError as error:
            raise RetryableError(
                f"the checkpoints in {self.storage.display(self.folder)} cannot be read "
                f"({brief_cause(error)}); the same command with the same --run-id tries again"
            ) from error

    def _load(self) -> Checkpoint | None:
        names = [name for name in reversed(self._names("epoch-")) if self._has(name)]
        for name in names:
            try:
                checkpoint = self._read(name)
            except DamagedCheckpoint as error:
                self._disown(name)  # it must not outlast those written from here on
                is_last = name == names[-1]
                use = "training begins anew" if is_last else "the one before it is used"
                self.emit("warning", message=f"checkpoint {name} is damaged ({error}); {use}")
            else:
                self._disown_best_after(checkpoint.state["epoch"] - 1)
                return checkpoint
        self._disown_best_after(0)
        return None

    def clear(self) -> None:
        """Delete them all: training is over, or begins anew."""
        self.storage.delete_folder(self.folder)

    def _disown_best_after(self, epoch: int) -> None:
        """Best weights of epochs that will now be trained again: off the CPU they may differ."""
        for name in self._names("best-"):
            if name > f"best-{epoch:04d}":
                self._disown(name)

    def _disown(self, name: str) -> None:
        with suppress(FileNotFoundError):  # every worker of a run does this
            self.storage.delete(f"{self.folder}/{name}/{_MANIFEST}")

    def _read(self, name: str) -> Checkpoint:
        files = self._verified(name)
        tree = json.loads(files[_TREE])
        tensors = _from_bytes(files[_STATE])
        best = None
        if tree["best"] is not None:
            best = _from_bytes(self._verified(tree["best"])[_WEIGHTS])
        state = _unpack(tree["state"], tensors)
        return Checkpoint(name, _from_bytes(files[_WEIGHTS]), state, best)

    def _verified(self, name: str) -> dict[str, bytes]:
        """The files of a folder, each with the digest that its manifest has of it."""
        path = f"{self.folder}/{name}"
        try:
            manifest = json.loads(self.storage.read_bytes(f"{path}/{_MANIFEST}"))
            digests = dict(manifest["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise DamagedCheckpoint(f"{name}/{_MANIFEST} cannot be read") from None
        files = {}
        for file, digest in digests.items():
            try:
                content = self.storage.read_bytes(f"{path}/{file}")
            except FileNotFoundError:
                raise DamagedCheckpoint(f"{name}/{file} is missing") from None
            if hashlib.sha256(content).hexdigest() != digest:
                raise DamagedCheckpoint(f"{name}/{file}: its sha256 is another")
            files[file] = content
        return files

    def _write(self, name: str, files: Mapping[str, bytes]) -> None:
        path = f"{self.folder}/{name}"
        self._disown(name)  # written over: until the new manifest stands, it is none
        for file, content in files.items():
            self.storage.write_bytes(f"{path}/{file}", content)
        digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        manifest = json.dumps({"sha256": digests}, indent=2)
        self.storage.write_text(f"{path}/{_MANIFEST}", manifest)

    def _has(self, name: str) -> bool:
        return self.storage.exists(f"{self.folder}/{name}/{_MANIFEST}")

    def _names(self, prefix: str) -> list[str]:
        names = (path.rpartition("/")[2] for path in self.storage.list(self.folder))
        return sorted(name for name in names if name.startswith(prefix))

    def _prune(self) -> None:
        whole = [name for name in self._names("epoch-") if self._has(name)]
        kept = set(whole[-NUM_KEPT:])
        for name in kept.copy():
            try:
                tree = json.loads(self.storage.read_bytes(f"{self.folder}/{name}/{_TREE}"))
            except (FileNotFoundError, ValueError):
                continue  # damaged, and found to be so when it is needed
            kept.add(tree["best"])
        for name in (*self._names("epoch-"), *self._names("best-")):
            if name not in kept:
                # The manifest first: a folder half deleted must not look whole.
                self._disown(name)
                self.storage.delete_folder(f"{self.folder}/{name}")


def _to_bytes(tensors: Weights) -> bytes:
    from safetensors.torch import save

    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.numel() and copy.untyped_storage().data_ptr() in seen:  # tied weights
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        plain[name] = copy
    return save(plain)


def _from_bytes(content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedCheckpoint(str(error)) from None


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON; its tensors go to `tensors` and leave their names."""
    import torch

    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):  # JSON would make texts of an optimizer's numbered keys
        return {_ITEMS: [[key, _pack(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(inner, tensors) for inner in value]}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_pack(inner, tensors) for inner in value]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_unpack(inner, tensors) for inner in value[_TUPLE])
    return {key: _unpack(inner, tensors) for key, inner in value[_ITEMS]}
