"""Datasets of any size, written shard by shard over several processes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_jobs.data import features
from ray_jobs.data.features import FEATURES
from ray_jobs.data.pool import map_unordered
from ray_jobs.data.shards import Roles, shard_path, write_shard
from ray_jobs.data.simulator.episodes import SCENARIOS, episode_lengths, simulate_episode
from ray_jobs.data.simulator.independent import draw_rows
from ray_jobs.storage import Storage

GeneratorName = Literal["episodes", "independent"]
Columns = Mapping[str, NDArray[np.generic] | pa.Array]

SHARD_ROWS = 10_000

ROLES = {
    "episodes": Roles(label="fire", features=FEATURES, group="episode", time="time_s", id="row_id"),
    "independent": Roles(label="fire", features=FEATURES, id="row_id", true_probability="p_fire"),
}


@dataclass(frozen=True)
class ShardPlan:
    """Which rows one shard holds; enough to make it in any process."""

    generator: GeneratorName
    seed: int
    index: int
    first_row: int
    num_rows: int
    first_episode: int = 0
    lengths: tuple[int, ...] = ()  # readings of each episode; rows beyond num_rows are cut off


def generate_shards(
    storage: Storage,
    folder: str,
    *,
    generator: GeneratorName,
    num_samples: int,
    seed: int,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Simulate a dataset into `folder` and return its shards' paths.

    The same seed gives the same bytes, however many workers there are. `episodes` has the columns
    row_id, episode, time_s, the 18 features, fire and scenario; `independent` has row_id, the
    features, fire and p_fire.

    Args:
        num_samples: rows in all.
        num_workers: processes; default: one per CPU that this process may use.
        progress: called with the rows written so far and `num_samples`, once a shard.

    Raises:
        ValueError: `num_samples` is not positive.
        OSError: the storage cannot be written.
        RetryableError: a worker was killed.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    plans = plan_shards(generator, num_samples, seed)
    done_rows = 0
    # Closed by name: a progress that raises must stop the workers at once.
    write = functools.partial(_write_remotely, storage.uri, folder)
    with closing(map_unordered(write, plans, num_workers, max_chunk=1)) as done:
        for _, num_rows in done:
            done_rows += sum(num_rows)
            if progress:
                progress(done_rows, num_samples)
    return [shard_path(folder, plan.index) for plan in plans]


@functools.cache
def generator_digest() -> str:
    """sha256 of the sources that decide the numbers: when it changes, so may a seed's data."""
    sources = [Path(features.__file__), *sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def plan_shards(generator: GeneratorName, num_samples: int, seed: int) -> list[ShardPlan]:
    """Shards of about `SHARD_ROWS` rows; no episode is spread over two."""
    if generator == "independent":
        return [
            ShardPlan(generator, seed, index, first_row, min(SHARD_ROWS, num_samples - first_row))
            for index, first_row in enumerate(range(0, num_samples, SHARD_ROWS))
        ]
    lengths = episode_lengths(seed, num_samples)
    starts = np.cumsum(lengths) - lengths
    first_episodes = np.flatnonzero(np.diff(starts // SHARD_ROWS, prepend=-1))
    first_rows = [*starts[first_episodes].tolist(), num_samples]
    return [
        ShardPlan(
            generator,
            seed,
            index,
            first_row=first_rows[index],
            num_rows=first_rows[index + 1] - first_rows[index],
            first_episode=int(first_episodes[index]),
            lengths=tuple(of_shard.tolist()),
        )
        for index, of_shard in enumerate(np.split(lengths, first_episodes[1:]))
    ]


def _write_remotely(uri: str, folder: str, plan: ShardPlan) -> int:
    return _write_plan(Storage(uri), folder, plan)


def _write_plan(storage: Storage, folder: str, plan: ShardPlan) -> int:
    columns = _independent_columns(plan) if not plan.lengths else _episode_columns(plan)
    write_shard(storage, shard_path(folder, plan.index), columns, ROLES[plan.generator])
    return plan.num_rows


def _episode_columns(plan: ShardPlan) -> Columns:
    parts = [
        _columns_of_one(plan.seed, plan.first_episode + position, length)
        for position, length in enumerate(plan.lengths)
    ]
    columns = {
        name: np.concatenate([part[name] for part in parts])[: plan.num_rows] for name in parts[0]
    }
    scenario = pa.DictionaryArray.from_arrays(columns.pop("scenario"), list(SCENARIOS))
    return {"row_id": _row_ids(plan), **columns, "scenario": scenario}


def _columns_of_one(seed: int, index: int, length: int) -> dict[str, NDArray[np.generic]]:
    episode = simulate_episode(seed, index, length)
    return {
        "episode": np.full(length, index, dtype=np.int64),
        "time_s": episode.time_s.astype(np.float32),
        **dict(zip(FEATURES, episode.features().T, strict=True)),
        "fire": episode.fire.astype(np.int8),
        "scenario": np.full(length, list(SCENARIOS).index(episode.scenario), dtype=np.int8),
    }


def _independent_columns(plan: ShardPlan) -> Columns:
    table, fire, p_fire = draw_rows(plan.seed, plan.index, plan.num_rows)
    return {
        "row_id": _row_ids(plan),
        **dict(zip(FEATURES, table.T, strict=True)),
        "fire": fire,
        "p_fire": p_fire,
    }


def _row_ids(plan: ShardPlan) -> NDArray[np.int64]:
    return np.arange(plan.first_row, plan.first_row + plan.num_rows, dtype=np.int64)
