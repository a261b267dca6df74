from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data import simulator
from ray_jobs.data.features import FEATURES, INTERVAL_S, extract_features
from ray_jobs.data.shards import Roles, read_roles
from ray_jobs.data.simulator import activities, faults, fires, gas, generate, thermal
from ray_jobs.data.simulator.episodes import MAX_READINGS, MIN_READINGS, SCENARIOS
from ray_jobs.data.simulator.independent import CLIP, draw_rows, fire_score
from ray_jobs.data.simulator.scene import CO2_L_PER_KJ, Room, Scene, Source
from ray_jobs.data.simulator.signals import lag, wander
from ray_jobs.errors import RetryableError
from ray_jobs.storage import Storage
from tests.conftest import real_data

ROOM = Room(
    floor_area_m2=20,
    height_m=2.5,
    air_changes_per_h=3,
    ambient_c=20,
    outdoor_co2_ppm=420,
    initial_co2_ppm=900,
    pixels_per_m=8,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """16,000 rows of simulated episodes."""
    storage = Storage(tmp_path_factory.mktemp("dataset"))
    shards = simulator.generate_shards(
        storage, "rows", generator="episodes", num_samples=16_000, seed=3
    )
    return pa.concat_tables(pq.read_table(storage.full(shard)) for shard in shards)


def features_of(table: pa.Table) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in FEATURES], axis=1)


# Rooms, gas and fire


def test_co2_settles_where_people_and_ventilation_balance() -> None:
    scene = Scene(ROOM, 2000)
    scene.release(np.full(2000, 4 * activities.METABOLIC_KW), activities.METABOLIC_QUOTIENT)
    assert scene.co2_l_s[0] == pytest.approx(4 * 0.005, rel=0.03)
    expected_ppm = 420 + 1e6 * 0.001 * scene.co2_l_s[0] * 3600 / (3 * 50)
    assert gas.room_co2_ppm(scene)[-1] == pytest.approx(expected_ppm, abs=0.5)


def test_co2_of_an_empty_room_decays_by_its_air_changes() -> None:
    scene = Scene(ROOM, 500)
    elapsed_h = (scene.time_s + INTERVAL_S) / 3600
    expected_ppm = 420 + (900 - 420) * np.exp(-3 * elapsed_h)
    np.testing.assert_allclose(gas.room_co2_ppm(scene), expected_ppm, rtol=1e-9)


def test_the_sensor_lags_and_stays_near_the_truth() -> None:
    scene = Scene(ROOM, 1500)
    scene.release(np.where(scene.time_s > 1000, 0.8, 0.0), 0.85)
    truth = gas.room_co2_ppm(scene)
    read = np.mean([gas.measure_co2(rng(seed), scene) for seed in range(40)], axis=0)
    assert read[-1] == pytest.approx(truth[-1], rel=0.02)  # 40 sensors' errors cancel
    rises = truth > (truth[200] + truth[-1]) / 2
    lagging = read > (read[200] + read[-1]) / 2
    lag_s = (np.argmax(lagging) - np.argmax(rises)) * INTERVAL_S
    assert 60 < lag_s < 180
    single = gas.measure_co2(rng(1), scene)
    assert np.array_equal(single, np.round(single))  # an SCD41 reports whole ppm


def test_burning_gas_gives_the_co2_of_its_carbon() -> None:
    # Methane: 35.8 kJ a litre at 15 degC, 35.2 at 20 degC, and a litre of CO2 from each.
    assert pytest.approx(1 / 35.2, rel=0.02) == activities.METHANE_QUOTIENT * CO2_L_PER_KJ


def test_growth_reaches_a_megawatt_when_nfpa_says() -> None:
    for growth, expected_s in (
        (fires.SLOW, 600),
        (fires.MEDIUM, 300),
        (fires.FAST, 150),
        (fires.ULTRAFAST, 75),
    ):
        assert np.sqrt(1055 / growth) == pytest.approx(expected_s, rel=0.001)


@settings(deadline=None)
@given(st.sampled_from(sorted(fires.KINDS)), st.integers(0, 10_000), st.floats(0, 600))
def test_a_fire_starts_at_ignition_grows_and_dies_at_its_end(
    kind: str, seed: int, ignition_s: float
) -> None:
    fire = fires.draw_fire(rng(seed), fires.KINDS[kind], ignition_s)
    time_s = np.arange(0, 1500, 5.0)
    power_kw, burning = fire.heat_release_kw(time_s), fire.is_burning(time_s)
    assert not power_kw[time_s < ignition_s].any()
    assert (power_kw[burning] > 0).all()
    assert (np.diff(power_kw[burning]) >= 0).all()
    assert power_kw.max() <= fires.KINDS[kind].peak_kw[1]
    assert np.array_equal(burning, (time_s >= ignition_s) & (time_s < fire.end_s))
    out = time_s > fire.end_s + 60
    assert (power_kw[out] < 0.1).all()


def test_lag_is_the_step_response_of_first_order() -> None:
    step = np.r_[0.0, np.ones(99)]
    expected = 1 - np.exp(-5.0 * np.arange(100) / 30)
    np.testing.assert_allclose(lag(step, 30), expected, atol=1e-12)
    assert (lag(np.full(9, 7.0), 30) == 7).all()


def test_wander_is_stationary() -> None:
    paths = np.array([wander(rng(seed), 60, 2.0, 30.0) for seed in range(3000)])
    np.testing.assert_allclose(paths.std(0), 2, rtol=0.08)
    correlation = np.mean(paths[:, 10] * paths[:, 16]) / 4
    assert correlation == pytest.approx(np.exp(-1), abs=0.06)


# The camera


def test_radiance_and_temperature_are_inverse() -> None:
    celsius = np.linspace(-40, 1200, 500, dtype=np.float32)
    np.testing.assert_allclose(
        thermal.apparent_temperature(thermal.radiance(celsius)), celsius, atol=0.05
    )


def image_of(source: Source) -> np.ndarray:
    scene = Scene(ROOM, 1, sources=[source])
    backdrop = np.full((1, 24, 32), 20, np.float32)
    return thermal.draw_radiance(scene, backdrop)[0]


def test_a_source_fills_its_place_in_the_picture() -> None:
    body = Source(x_m=1, y_m=1.5, half_width_m=0.5, half_height_m=1, excess_k=15, opacity=1.0)
    picture = thermal.apparent_temperature(image_of(body))
    assert picture[12, 8] == pytest.approx(35, abs=0.01)  # 1 m right, 1.5 m up, 8 pixels a metre
    assert picture[12, 20] == pytest.approx(20, abs=0.1)
    assert picture[1, 8] == pytest.approx(20, abs=0.1)
    warm = picture > 27.5
    assert warm.sum() == pytest.approx(8 * 16, rel=0.15)


@settings(deadline=None, max_examples=30)
@given(st.floats(1, 3), st.floats(1, 2), st.floats(0.005, 0.06))
def test_a_source_smaller_than_a_pixel_gives_it_a_share(
    x_m: float, y_m: float, half: float
) -> None:
    flame = Source(
        x_m=x_m, y_m=y_m, half_width_m=half, half_height_m=half, excess_k=900, soft=True, opacity=1
    )
    cold, hot = thermal.radiance(np.array([20, 920], dtype=np.float32))
    share = float((image_of(flame) - cold).sum() / (hot - cold))
    area_of_a_bump = np.pi / np.log(2) * (8 * half) ** 2
    assert share == pytest.approx(area_of_a_bump, rel=0.25)


# Episodes


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_episode_is_physically_possible(scenario: str) -> None:
    for index in range(4):
        episode = simulator.simulate_episode(1, index, 90, scenario)
        assert episode.frames_c.shape == (90, 24, 32)
        seen, read = np.isfinite(episode.frames_c), np.isfinite(episode.co2_ppm)
        assert seen[0].all()
        assert read[0]
        assert episode.frames_c[seen].min() >= thermal.RANGE_C[0]
        assert episode.frames_c[seen].max() <= thermal.RANGE_C[1]
        assert episode.co2_ppm[read].min() >= 0
        assert episode.co2_ppm[read].max() <= gas.RANGE_PPM[1]
        assert (episode.heat_release_kw[episode.fire] > 0).all()
        if scenario not in fires.KINDS:
            assert not episode.fire.any()
        features = episode.features()
        assert np.isfinite(features).all()
        assert np.array_equal(
            features, extract_features(episode.frames_c, episode.co2_ppm.astype(np.float32))
        )


def test_an_episode_can_be_made_again_and_no_two_are_alike() -> None:
    first, again, other = (simulator.simulate_episode(1, index, 60) for index in (7, 7, 8))
    assert np.array_equal(first.frames_c, again.frames_c, equal_nan=True)
    assert np.array_equal(first.co2_ppm, again.co2_ppm, equal_nan=True)
    assert not np.array_equal(first.frames_c, other.frames_c, equal_nan=True)


@pytest.mark.parametrize("fault", faults.FAULTS)
@pytest.mark.parametrize("sensor", faults.SENSORS)
def test_a_fault_shows_in_what_its_sensor_reads(
    fault: str, sensor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "FAULTS", (fault,))
    monkeypatch.setattr(faults, "SENSORS", (sensor,))
    sound_frames = rng().normal(22, 0.1, (100, 24, 32)).astype(np.float32)
    sound_co2 = rng().normal(600, 9, 100)
    frames, co2 = sound_frames.copy(), sound_co2.copy()
    faults.add_fault(rng(2), frames, co2)
    assert np.array_equal(frames, sound_frames) == (sensor == "co2")
    assert np.array_equal(co2, sound_co2) == (sensor == "camera")
    changed = co2 if sensor == "co2" else frames
    assert np.isnan(changed).any() == (fault == "dropout")
    assert np.isfinite(extract_features(frames, co2.astype(np.float32))).all()


def test_faults_come_with_their_scenario_and_now_and_then_with_any() -> None:
    def is_broken(episode: simulator.Episode) -> bool:
        return bool(np.isnan(episode.co2_ppm).any() or np.isnan(episode.frames_c).any())

    for scenario, low, high in (("sensor_fault", 8, 25), ("people", 0, 6)):
        rooms = [simulator.simulate_episode(4, index, 60, scenario) for index in range(40)]
        assert low <= sum(map(is_broken, rooms)) <= high  # a third of the faults are dropouts


def test_every_scenario_occurs_and_none_gives_the_label_away(dataset: pa.Table) -> None:
    scenario = np.array(dataset["scenario"].to_pylist())
    fire = dataset["fire"].to_numpy()
    assert set(scenario) == set(SCENARIOS)
    for name in fires.KINDS:
        assert 0.2 < fire[scenario == name].mean() < 0.75, name
    assert 0.15 < fire.mean() < 0.35


def test_no_simulated_row_is_impossible(dataset: pa.Table) -> None:
    row = {name: dataset[name].to_numpy() for name in FEATURES}
    assert (row["t_max"] >= row["t_p95"]).all()
    assert (row["t_max"] >= row["t_mean"]).all()
    assert np.mean(row["t_p95"] < row["t_mean"]) < 0.03  # a few hot pixels in an even room
    assert (row["t_hot_largest_blob_pct"] <= row["t_hot_area_pct"]).all()
    assert np.mean((row["gas_val"] <= 0) | (row["gas_val"] >= gas.RANGE_PPM[1])) < 0.001
    assert np.mean(row["t_max"] >= thermal.RANGE_C[1] - 0.01) < 0.001


def test_fires_and_everyday_life_overlap(dataset: pa.Table) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    x, fire = features_of(dataset), dataset["fire"].to_numpy()
    test = dataset["episode"].to_numpy() % 3 == 0
    model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, learning_rate=0.15)
    with threadpool_limits(1):  # OpenMP threads that wait for a busy core spin
        model.fit(x[~test], fire[~test])
    auc = roc_auc_score(fire[test], model.predict_proba(x[test])[:, 1])
    assert 0.9 < auc < 0.995
    best_alone = max(roc_auc_score(fire, x[:, column]) for column in range(len(FEATURES)))
    assert best_alone < 0.96


def test_co2_of_a_quiet_room_is_like_that_of_a_real_one() -> None:
    real_ppm, real_change = [], []
    for path in sorted(real_data("uci_occupancy_co2").glob("*.txt")):
        with path.open() as file:
            trace = np.array([float(row[5]) for row in list(csv.reader(file))[1:]])
        real_ppm.append(trace)
        real_change.append(np.diff(trace))  # a reading a minute
    rooms = [simulator.simulate_episode(2, index, 100, "quiet").features() for index in range(60)]
    ppm, change = (
        np.concatenate([room[:, FEATURES.index(name)] for room in rooms])
        for name in ("gas_val", "gas_delta")
    )
    shares = [0.01, 0.25, 0.5, 0.75, 0.99]
    real = np.quantile(np.concatenate(real_ppm), shares)
    np.testing.assert_allclose(np.quantile(ppm, shares), real, rtol=0.4)
    # The real readings are means over a minute, ours are single ones.
    real_spread = np.quantile(np.abs(np.concatenate(real_change)), 0.9)
    assert real_spread < np.quantile(np.abs(change), 0.9) < 4 * real_spread


# Datasets


@settings(deadline=None)
@given(
    st.sampled_from(["episodes", "independent"]), st.integers(1, 60_000), st.integers(0, 2**32 - 1)
)
def test_a_plan_holds_the_rows_asked_for(
    generator: generate.GeneratorName, num_samples: int, seed: int
) -> None:
    plans = generate.plan_shards(generator, num_samples, seed)
    assert sum(plan.num_rows for plan in plans) == num_samples
    assert [plan.index for plan in plans] == list(range(len(plans)))
    next_row = next_episode = 0
    for plan in plans:
        assert (plan.first_row, plan.first_episode) == (next_row, next_episode)
        assert 0 < plan.num_rows < generate.SHARD_ROWS + MAX_READINGS
        next_row += plan.num_rows
        if generator == "episodes":
            assert all(MIN_READINGS <= length <= MAX_READINGS for length in plan.lengths)
            is_last = plan is plans[-1]
            assert sum(plan.lengths) == plan.num_rows or is_last
            assert sum(plan.lengths[:-1]) < plan.num_rows
            next_episode += len(plan.lengths)
    longer = generate.plan_shards(generator, num_samples + 20_000, seed)
    assert longer[: len(plans) - 1] == plans[:-1]


def test_the_same_seed_gives_the_same_bytes_from_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "SHARD_ROWS", 250)
    storage, told = Storage(tmp_path), []

    def make(folder: str, seed: int, num_workers: int) -> list[bytes]:
        shards = simulator.generate_shards(
            storage,
            folder,
            generator="episodes",
            num_samples=1003,
            seed=seed,
            num_workers=num_workers,
            progress=lambda done, total: told.append((done, total)),
        )
        assert shards == [f"{folder}/rows-{index:05d}.parquet" for index in range(len(shards))]
        assert storage.list(folder) == shards
        return [storage.read_bytes(shard) for shard in shards]

    alone = make("alone", 5, 1)
    assert len(alone) >= 4
    assert make("together", 5, 2) == alone
    assert make("otherwise", 6, 1) != alone
    assert [total for _, total in told] == [1003] * len(told)
    done = [rows for rows, _ in told[: len(alone)]]
    assert done == sorted(done)
    assert done[-1] == 1003


def test_shards_of_episodes_say_what_they_hold(dataset: pa.Table) -> None:
    assert read_roles(dataset.schema) == Roles(
        label="fire", features=FEATURES, group="episode", time="time_s", id="row_id"
    )
    assert dataset.column_names == [
        "row_id", "episode", "time_s", *FEATURES, "fire", "scenario"
    ]  # fmt: skip
    assert dataset.num_rows == 16_000
    assert np.array_equal(dataset["row_id"].to_numpy(), np.arange(16_000))
    assert {str(dataset.schema.field(name).type) for name in FEATURES} == {"float"}
    assert dataset.schema.field("fire").type == pa.int8()
    assert sum(column.null_count for column in dataset.columns) == 0
    episode, time_s = dataset["episode"].to_numpy(), dataset["time_s"].to_numpy()
    step = np.diff(time_s)[np.diff(episode) == 0]
    assert (step == INTERVAL_S).all()
    assert (time_s[np.r_[True, np.diff(episode) == 1]] == 0).all()
    assert set(np.diff(episode)) == {0, 1}
    assert episode[0] == 0
    again = simulator.simulate_episode(
        3, int(episode[-2000]), int((episode == episode[-2000]).sum())
    )
    assert np.array_equal(features_of(dataset)[episode == episode[-2000]], again.features())


def test_independent_rows_have_the_ceiling_that_they_were_made_for(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    storage = Storage(tmp_path)
    shards = simulator.generate_shards(
        storage, "rows", generator="independent", num_samples=100_000, seed=11, num_workers=1
    )
    table = pa.concat_tables(pq.read_table(storage.full(shard)) for shard in shards)
    roles = read_roles(table.schema)
    assert roles is not None
    assert (roles.true_probability, roles.group, roles.time) == ("p_fire", None, None)
    fire, p_fire = table["fire"].to_numpy(), table["p_fire"].to_numpy()
    assert roc_auc_score(fire, p_fire) == pytest.approx(0.773, abs=0.005)
    assert np.maximum(p_fire, 1 - p_fire).mean() == pytest.approx(0.70, abs=0.01)
    assert ((p_fire > 0.5) == fire).mean() == pytest.approx(0.70, abs=0.01)
    for tenth in range(10):  # the label is drawn with the probability that is told
        near = (p_fire >= tenth / 10) & (p_fire < (tenth + 1) / 10)
        assert fire[near].mean() == pytest.approx(p_fire[near].mean(), abs=0.04)


def test_independent_rows_can_be_drawn_again() -> None:
    for part, again, other in zip(*(draw_rows(5, shard, 50) for shard in (0, 0, 1)), strict=True):
        assert np.array_equal(part, again)
        assert not np.array_equal(part, other)


def test_the_score_adds_up_the_thresholds_that_are_passed() -> None:
    def score(**values: float) -> float:
        row = [values.get(name, 0.0) for name in FEATURES]
        return float(fire_score(np.array([row], dtype=np.float32))[0])

    assert score() == 0
    assert score(t_max=60, t_p95=55, t_mean=40, t_hot_area_pct=15, gas_val=800) == 0  # not above
    assert score(t_max=61) == pytest.approx(0.3)
    assert score(t_p95=56) == pytest.approx(0.25)
    assert score(t_mean=41) == pytest.approx(0.2)
    assert score(t_hot_area_pct=16) == pytest.approx(0.2)
    assert score(t_hot_largest_blob_pct=6) == pytest.approx(0.15)
    assert score(t_grad_mean=9) == pytest.approx(0.15)
    assert score(t_diff_mean=13) == pytest.approx(0.15)
    assert score(gas_val=801) == pytest.approx(0.25)
    assert score(gas_delta=151) == pytest.approx(0.2)
    assert score(t_max=71, gas_val=1001) == pytest.approx(0.3 + 0.25 + 0.3)
    assert score(t_hot_area_pct=21, t_grad_mean=11) == pytest.approx(0.2 + 0.15 + 0.2)
    assert score(t_max=71, gas_val=1001, t_p95=56) == 1  # clipped


def test_independent_columns_are_independent_and_clipped() -> None:
    features, _, _ = draw_rows(0, 0, 30_000)
    correlation = np.corrcoef(features.T) - np.eye(len(FEATURES))
    assert np.abs(correlation).max() < 0.03
    low, high = np.array([CLIP[name] for name in FEATURES], dtype=np.float32).T
    assert (features >= low).all()
    assert (features <= high).all()
    mean = dict(zip(FEATURES, features.mean(0), strict=True))
    assert mean["t_mean"] == pytest.approx(25, abs=0.5)
    assert mean["t_std"] == pytest.approx(10, abs=0.3)  # Gamma of shape 2 and scale 5
    spread = dict(zip(FEATURES, features.std(0), strict=True))
    assert spread["t_std"] == pytest.approx(5 * 2**0.5, abs=0.3)
    assert spread["t_grad_mean"] == pytest.approx(3 * 2**0.5, abs=0.2)
    assert mean["t_hot_area_pct"] == pytest.approx(200 / 7, abs=0.5)
    assert mean["t_hot_largest_blob_pct"] == pytest.approx(10, abs=0.3)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, not 0"):
        simulator.generate_shards(
            Storage(tmp_path), "rows", generator="episodes", num_samples=0, seed=0
        )


def test_a_killed_worker_ends_the_run_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "SHARD_ROWS", 300)

    def kill_one(_done: int, _total: int) -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with pytest.raises(RetryableError) as error:
        simulator.generate_shards(
            Storage(tmp_path),
            "rows",
            generator="episodes",
            num_samples=100_000,
            seed=0,
            num_workers=2,
            progress=kill_one,
        )
    assert str(error.value) == (
        "a process that prepares data was killed, perhaps for memory: run again, with fewer of "
        "them (resources.num_cpus)"
    )


def test_a_progress_that_raises_stops_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "SHARD_ROWS", 300)

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        simulator.generate_shards(
            Storage(tmp_path),
            "rows",
            generator="episodes",
            num_samples=100_000,
            seed=0,
            num_workers=2,
            progress=interrupt,
        )
    assert not multiprocessing.active_children(), interrupted


def test_the_digest_tells_generators_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = simulator.generator_digest()
    assert len(digest) == 64
    changed = tmp_path / "features.py"
    changed.write_text(Path(generate.features.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(generate.features, "__file__", str(changed))
    simulator.generator_digest.cache_clear()
    assert simulator.generator_digest() != digest
    simulator.generator_digest.cache_clear()


def test_a_worker_imports_little() -> None:
    code = "import sys, ray_jobs.data.simulator.generate as _; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "ray", "pandas", "sklearn", "scipy", "mlflow", "kfp"} & set(modules)


GENERATE_FOREVER = """
import multiprocessing, sys
from ray_jobs.data.simulator import generate
from ray_jobs.errors import RetryableError
from ray_jobs.storage import Storage

generate.SHARD_ROWS = 200

def tell(done, total):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

generate.generate_shards(
    Storage(sys.argv[1]), "rows", generator="episodes", num_samples=1_000_000, seed=0,
    num_workers=2, progress=tell,
)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_run_that_is_broken_off(how: signal.Signals, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", GENERATE_FOREVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2
    if how == signal.SIGINT:
        os.killpg(run.pid, how)  # a terminal tells every process
    else:
        run.send_signal(how)
    _, messages = run.communicate(timeout=60)
    assert messages.count("Traceback") == (how == signal.SIGINT)  # the parent's alone
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)
    leftovers = [path.name for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert how == signal.SIGKILL or not leftovers


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
