from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ray_jobs.errors import RetryableError
from ray_jobs.storage import Storage
from ray_jobs.training.checkpoints import CheckpointStore, _from_bytes, _pack, _to_bytes, _unpack
from tests import toy_training as toy

OLD, NEW, BEST = "epoch-0003-batch-000001", "epoch-0003-batch-000002", "best-0002"


def make_store(root: Path | str) -> tuple[CheckpointStore, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def emit(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    return CheckpointStore(Storage(root), "run/checkpoints", emit), events


def save(
    store: CheckpointStore, epoch: int, batch: int, *, best: int | None = None, size: int = 4
) -> None:
    """A checkpoint whose tensors tell which one they are of."""
    weights = {"w": torch.full((size,), epoch + batch / 100)}
    kept = None if best is None else (best, {"w": torch.full((size,), float(best))})
    state = {"epoch": epoch, "batch": batch, "momentum": {0: torch.tensor(float(batch))}}
    store.save(epoch, batch, weights, state, kept)


def names(store: CheckpointStore) -> list[str]:
    return [path.rpartition("/")[2] for path in store.storage.list(store.folder)]


def messages(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events if event["event"] == "warning"]


# What goes in comes out

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(
        0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | tensors
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=8), inner, max_size=3)
        | st.dictionaries(st.sampled_from(["__tensor__", "__items__", "__tuple__"]), inner)
    ),
    max_leaves=12,
)


def same(first: Any, second: Any) -> bool:
    """Equal, of equal types, NaN like NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or (first != first and second != second)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), states, max_size=4))
def test_a_state_comes_back_as_it_was(state: dict[str, Any]) -> None:
    found: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, found))
    assert same(_unpack(json.loads(text), _from_bytes(_to_bytes(found))), state)


def test_the_state_of_every_optimizer_comes_back(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    model = toy.network()
    for batch, kind in enumerate((torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam)):
        optimizer = kind(model.parameters(), lr=1e-2)
        toy.mean_squared_error(model, next(toy.ToyBatches().epoch(1, 0)))[0].backward()
        optimizer.step()
        state = {"epoch": 1, "optimizer": optimizer.state_dict(), "never": -math.inf}
        store.save(1, batch, model.state_dict(), state, None)
        loaded = store.load()
        assert loaded is not None
        assert same(loaded.state, state)
        assert same(dict(sorted(loaded.weights.items())), dict(sorted(model.state_dict().items())))


def test_tied_and_sliced_weights_are_saved_as_they_are(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    table = torch.arange(12.0).view(3, 4)
    parts = {"row": table[1], "column": table[:, 1], "none": table[:0]}
    weights = {"tied": table, "also": table, **parts}
    store.save(1, 0, weights, {"epoch": 1}, None)
    loaded = store.load()
    assert loaded is not None
    assert same(dict(sorted(loaded.weights.items())), dict(sorted(weights.items())))


def test_the_files_are_safetensors_and_json(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 3, 1, best=2)
    folder = tmp_path / "run" / "checkpoints"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        f"{BEST}/manifest.json",
        f"{BEST}/weights.safetensors",
        f"{OLD}/manifest.json",
        f"{OLD}/state.json",
        f"{OLD}/state.safetensors",
        f"{OLD}/weights.safetensors",
    ]
    for path in files:
        if path.endswith(".json"):
            json.loads((folder / path).read_text())
        else:
            load_file(folder / path)


# Which are kept


def test_the_last_two_are_kept_and_the_best_they_know_of(tmp_path: Path) -> None:
    store, events = make_store(tmp_path)
    assert store.load() is None
    save(store, 1, 1)
    save(store, 2, 0, best=1)
    save(store, 2, 1, best=1)
    assert names(store) == ["best-0001", "epoch-0002-batch-000000", "epoch-0002-batch-000001"]
    save(store, 3, 0, best=2)
    assert names(store) == [
        "best-0001", "best-0002", "epoch-0002-batch-000001", "epoch-0003-batch-000000",
    ]  # fmt: skip
    save(store, 3, 1, best=2)
    assert names(store) == ["best-0002", "epoch-0003-batch-000000", "epoch-0003-batch-000001"]
    assert events[-1] == {"event": "checkpoint", "epoch": 3, "batch": 1, "name": OLD}
    loaded = store.load()
    assert loaded is not None
    assert (loaded.name, loaded.state["batch"]) == (OLD, 1)
    assert loaded.best is not None
    assert torch.equal(loaded.best["w"], torch.full((4,), 2.0))
    store.clear()
    assert names(store) == []
    assert store.load() is None


def test_the_best_weights_of_epochs_trained_again_are_written_again(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 2, 3)
    save(store, 3, 1, best=2)
    folder = tmp_path / "run" / "checkpoints"
    (folder / OLD / "manifest.json").unlink()  # killed while it was written
    again, events = make_store(tmp_path)
    loaded = again.load()
    assert loaded is not None
    assert (loaded.name, loaded.best) == ("epoch-0002-batch-000003", None)
    assert messages(events) == []  # it never was one
    again.save(3, 0, {"w": torch.zeros(4)}, {"epoch": 3}, (2, {"w": torch.full((4,), 2.5)}))
    loaded = again.load()
    assert loaded is not None
    assert loaded.best is not None
    assert torch.equal(loaded.best["w"], torch.full((4,), 2.5))


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
@pytest.mark.parametrize("file", ["weights.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_file_is_told_of_and_the_checkpoint_before_is_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    store, events = make_store(tmp_path)
    save(store, 3, 1, best=2)
    save(store, 3, 2, best=2)
    damage(tmp_path / "run" / "checkpoints" / NEW / file)
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == OLD
    assert torch.equal(loaded.weights["w"], torch.full((4,), 3.01))
    cause = "is missing" if damage is Path.unlink else "its sha256 is another"
    separator = " " if damage is Path.unlink else ": "
    assert messages(events) == [
        f"checkpoint {NEW} is damaged ({NEW}/{file}{separator}{cause}); the one before it is used"
    ]


def test_any_flipped_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    store, events = make_store(tmp_path)
    save(store, 3, 1)
    save(store, 3, 2)
    manifest = tmp_path / "run" / "checkpoints" / NEW / "manifest.json"
    content = manifest.read_bytes()
    blank = {position for position, byte in enumerate(content) if chr(byte).isspace()}
    for position in sorted(set(range(len(content))) - blank):
        for bit in (0x01, 0x10, 0x80):
            changed = bytearray(content)
            changed[position] ^= bit
            manifest.write_bytes(changed)
            loaded = store.load()
            assert loaded is not None
            assert loaded.name == OLD, bytes(changed)
    assert all(message.startswith(f"checkpoint {NEW} is damaged") for message in messages(events))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (truncate, f"{NEW}/manifest.json cannot be read"),
        (empty, f"{NEW}/manifest.json cannot be read"),
        (Path.unlink, None),  # as after a kill while it was written: nothing to warn of
    ],
)
def test_without_its_manifest_a_checkpoint_is_none(
    tmp_path: Path, damage: Callable[[Path], None], cause: str | None
) -> None:
    store, events = make_store(tmp_path)
    save(store, 3, 1)
    save(store, 3, 2)
    damage(tmp_path / "run" / "checkpoints" / NEW / "manifest.json")
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == OLD
    expected = [f"checkpoint {NEW} is damaged ({cause}); the one before it is used"]
    assert messages(events) == (expected if cause else [])


def test_damaged_best_weights_are_told_of_and_the_checkpoint_before_is_used(
    tmp_path: Path,
) -> None:
    store, events = make_store(tmp_path)
    save(store, 2, 5, best=1)
    save(store, 3, 0, best=2)
    truncate(tmp_path / "run" / "checkpoints" / BEST / "weights.safetensors")
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == "epoch-0002-batch-000005"
    assert loaded.best is not None
    assert torch.equal(loaded.best["w"], torch.full((4,), 1.0))
    assert messages(events) == [
        "checkpoint epoch-0003-batch-000000 is damaged (best-0002/weights.safetensors: its sha256 "
        "is another); the one before it is used"
    ]
    save(store, 3, 0, best=2)  # the epoch was trained again
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == "epoch-0003-batch-000000"


@pytest.mark.parametrize(
    ("epoch", "batch", "best"),
    [
        (1, 1, None),  # earlier than those that were damaged: they must not outlast it
        (3, 1, 2),  # with the best weights of an epoch whose damaged ones still stand
    ],
)
def test_where_all_are_damaged_training_begins_anew_and_saves_anew(
    tmp_path: Path, epoch: int, batch: int, best: int | None
) -> None:
    store, events = make_store(tmp_path)
    save(store, 3, 1, best=2)
    save(store, 3, 2, best=2)
    truncate(tmp_path / "run" / "checkpoints" / BEST / "weights.safetensors")
    assert store.load() is None
    assert messages(events) == [
        f"checkpoint {name} is damaged ({BEST}/weights.safetensors: its sha256 is another); "
        f"{consequence}"
        for name, consequence in (
            (NEW, "the one before it is used"),
            (OLD, "training begins anew"),
        )
    ]
    events.clear()
    save(store, epoch, batch, best=best)
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == f"epoch-{epoch:04d}-batch-{batch:06d}"
    assert messages(events) == []


# Storage that fails


def save_with_little_room(root: Path) -> str:
    """Runs in a process of its own: the limit cannot be lifted again."""
    store, _ = make_store(root)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        save(store, 4, 0, best=2, size=4096)
    except RetryableError as error:
        return str(error)
    return "saved"


def test_a_write_that_fails_halfway_says_so_and_the_earlier_checkpoints_stand(
    tmp_path: Path,
) -> None:
    store, _ = make_store(tmp_path)
    save(store, 3, 1, best=2)
    save(store, 3, 2, best=2)
    (message,) = toy.on_workers(
        save_with_little_room, tmp_path / "meeting", tmp_path, num_workers=1
    )
    assert message == (
        f"no checkpoint could be written to {tmp_path}/run/checkpoints ([Errno 27] File too "
        "large). Make room or mend the storage; the same command with the same --run-id goes on "
        "from the checkpoint before"
    )
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == NEW
    assert not list(tmp_path.rglob("*.tmp"))
    save(store, 4, 0, best=2)  # once there is room
    assert names(store) == [BEST, NEW, "epoch-0004-batch-000000"]


def test_checkpoints_on_s3(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    store, events = make_store("s3://runs/checkpoints-test")
    save(store, 2, 0, best=1)
    save(store, 3, 1, best=2)
    save(store, 3, 2, best=2)
    assert names(store) == [BEST, OLD, NEW]
    store.storage.write_bytes(f"{store.folder}/{NEW}/weights.safetensors", b"another")
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == OLD
    assert messages(events) == [
        f"checkpoint {NEW} is damaged ({NEW}/weights.safetensors: its sha256 is another); the one "
        "before it is used"
    ]
    missing, _ = make_store("s3://no-such-bucket/run")
    with pytest.raises(RetryableError, match=r"written to s3://no-such-bucket/run/run/checkpoints"):
        save(missing, 1, 0)
    store.clear()
    assert store.load() is None
