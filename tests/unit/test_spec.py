from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import SpecError
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec, parse_spec


def _message(*overrides: str, **flags: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec("fire", overrides=overrides, **flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_shipped_spec_has_the_published_hyperparameters() -> None:
    members = load_spec("fire").members
    assert list(members) == [
        "random_forest",
        "gradient_boosting",
        "logistic_regression",
        "lstm_classifier",
        "transformer",
    ]
    forest, boosting = members["random_forest"], members["gradient_boosting"]
    assert (forest.num_trees, forest.max_depth) == (200, 10)
    assert (boosting.num_rounds, boosting.learning_rate) == (200, 0.1)
    lstm, transformer = members["lstm_classifier"], members["transformer"]
    assert (lstm.learning_rate, lstm.epochs, lstm.batch_size) == (1e-3, 50, 32)
    assert (transformer.learning_rate, transformer.epochs, transformer.batch_size) == (1e-4, 20, 16)
    assert (transformer.weight_decay, transformer.warmup_steps) == (0.01, 100)


def test_resolved_spec_reads_back_as_itself() -> None:
    spec = load_spec("fire", overrides=["data.samples=500"])
    assert parse_spec(yaml.safe_load(spec.to_yaml()), source="spec.yaml") == spec
    assert spec.data.source == "simulator"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "members.lstm_classifier.epocs=3",
            "--set: members.lstm_classifier.epocs: unknown key; members.lstm_classifier has "
            "family, window, epochs, batch_size, learning_rate, weight_decay, warmup_steps, "
            "patience, hidden_size, num_layers, dropout (did you mean 'epochs'?)",
        ),
        (
            "data.spilt.train=0.5",
            "--set: data.spilt: unknown key; data has source, path, added, samples, generator, "
            "label_column, feature_columns, group_column, time_column, id_column, nonfinite, "
            "allow_leaks, shuffle_labels, split (did you mean 'split'?)",
        ),
        (
            "members.lstm_clasifier={}",
            "--set: members.lstm_clasifier: no model family 'lstm_clasifier'; there is "
            "random_forest, gradient_boosting, logistic_regression, lstm_classifier, transformer "
            "(did you mean 'lstm_classifier'?)",
        ),
        (
            "data.samples=many",
            "--set: data.samples: input should be a valid integer, unable to parse string as an "
            "integer (given: 'many')",
        ),
        ("seed=-1", "--set: seed: input should be greater than or equal to 0 (given: -1)"),
        (
            "objective.metric=f2",
            "--set: objective: metric 'f2' is not one of f1, accuracy, auc, log_loss",
        ),
        ("objective.mode=min", "--set: objective: the mode of f1 is 'max', not 'min'"),
        (
            "data.split.train=0.9",
            "--set: data.split: the shares must add up to 1, but train + val + test = 1.2",
        ),
        (
            "data.label_column=fire",
            "--set: data: label_column belongs to data.source=table, but data.source is simulator",
        ),
        (
            "data.source=table",
            "--set: data: data.source=table needs data.path: a file, folder, glob or s3:// prefix",
        ),
        (
            "members.transformer.hidden_size=30",
            "--set: members.transformer: hidden_size must be a multiple of num_heads, but 30 is "
            "not one of 4",
        ),
        ("members=[]", "--set: members: at least one member is needed"),
        ("seed", "--set 'seed': write it as key.subkey=value"),
        ("seed.x=1", "--set 'seed.x=1': seed is a value, not a section"),
    ],
)
def test_a_wrong_key_is_explained(override: str, expected: str) -> None:
    assert _message(override) == expected


def test_every_fault_is_told_at_once() -> None:
    assert len(_message("seed=-1", "members.transformer.epochs=0").splitlines()) == 2


def test_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(
        SpecError,
        match=r"no workload 'fier'; there is fire, waste, gcode \(did you mean 'fire'\?\)",
    ):
        load_spec("fier")


def test_members_as_a_list_left_out_and_renamed() -> None:
    assert list(load_spec("fire", overrides=["members=[random_forest]"]).members) == [
        "random_forest"
    ]
    without = load_spec("fire", overrides=["members.transformer=null"])
    assert "transformer" not in without.members
    two = load_spec("fire", overrides=["members.deep={family: random_forest, max_depth: 20}"])
    assert two.members["deep"].max_depth == 20


def test_a_file_is_named_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "workload: fire\nobjective: {metric: f1, mode: max}\nmembers: [random_forest]\nsed: 3\n"
    )
    with pytest.raises(
        SpecError, match=r"^mine.yaml: sed: unknown key; the top level has .*'seed'"
    ):
        load_spec("fire", config=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "twice"),
        ("seed: [1\n", "not valid YAML"),
        ("- seed\n", "a job description is a mapping of keys, not a list"),
        ("workload: gcode\n", "describes the workload 'gcode', not 'fire'"),
        ("seed: 1\n", "objective: this key is required"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=expected):
        load_spec("fire", config=path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file; --config takes a job description in YAML"):
        load_spec("fire", config=tmp_path / "absent.yaml")


def test_digest_ignores_where_and_how_fast_a_job_runs() -> None:
    here, there = load_spec("fire"), load_spec("fire", overrides=["parallel=false"], storage="/x")
    assert here.digest() == there.digest()
    assert here.digest() != load_spec("fire", overrides=["seed=1"]).digest()


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text(), st.booleans())))
def test_any_mapping_is_a_spec_or_a_message(raw: dict[str, object]) -> None:
    objective = {"metric": "f1", "mode": "max"}
    base = {"workload": "fire", "objective": objective, "members": ["transformer"]}
    try:
        outcome: object = parse_spec({**base, **raw}, source="x.yaml")
    except SpecError as error:
        outcome = str(error)
    assert isinstance(outcome, JobSpec) or str(outcome).startswith("x.yaml: ")


def test_a_workload_without_data_runs_its_demo_and_flags_still_win() -> None:
    demo = load_spec("waste", overrides=["train.epochs=2"])
    assert (demo.model.name, demo.model.pretrained, demo.model.image_size) == (
        "resnet10t", False, 64,
    )  # fmt: skip
    assert demo.train.epochs == 2
    own = load_spec("waste", overrides=["data.sources=[{path: photos}]"])
    assert own.model.name == "eva02_base_patch14_224.mim_in22k"
    assert own.train.layer_decay == 0.75
    assert "demo" not in own.to_yaml()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "data.sources=[{path: p, mapp: {}}]",
            "--set: data.sources.0.mapp: unknown key; data.sources.0 has path, map, ignore "
            "(did you mean 'map'?)",
        ),
        (
            "data.sources=[{path: p, map: {glass: glas}}]",
            "--set: data: sources.0.map.glass: no class 'glas' in data.classes",
        ),
        (
            "train.epocs=3",
            "--set: train.epocs: unknown key; train has epochs, batch_size",
        ),
        (
            "objective.metric=f1",
            "--set: objective: metric 'f1' is not one of macro_f1, accuracy, balanced_accuracy, "
            "log_loss",
        ),
        ("members=[lstm]", "--set: members: unknown key; the top level has workload, seed"),
    ],
)
def test_a_wrong_key_of_pictures_is_explained(override: str, expected: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_spec("waste", overrides=[override])
    assert str(raised.value).startswith(expected)


def test_what_a_sweep_tries_is_set_key_by_key() -> None:
    spec = load_spec(
        "gcode",
        overrides=[
            "sweep.space.model.hidden_dim={values: [16, 32]}",
            "sweep.space.train.learning_rate.low=1.0e-4",
            "sweep.space.model.num_layers=null",
        ],
        sweeps=True,
    )
    assert spec.sweep.space["model.hidden_dim"].values == [16, 32]
    assert spec.sweep.space["train.learning_rate"].low == 1e-4
    assert spec.sweep.space["train.learning_rate"].log
    assert "model.num_layers" not in spec.sweep.space
    with pytest.raises(SpecError, match=r"--set: .*sweep\.space.*train\.learning_rat"):
        load_spec("gcode", overrides=["sweep.space.train.learning_rat.low=1"], sweeps=True)


def test_a_description_is_swept_only_when_asked() -> None:
    assert load_spec("gcode").sweep is None
    assert load_spec("gcode", sweeps=True).sweeps
    with pytest.raises(SpecError, match="fire cannot be swept; waste and gcode can"):
        load_spec("fire", sweeps=True)
    with pytest.raises(SpecError, match=r"waste\.yaml: sweep: this key is required; say what"):
        load_spec("waste", sweeps=True)
    with pytest.raises(SpecError, match=r"--set sweep\.num_trials: it belongs to emberline sweep"):
        load_spec("gcode", overrides=["sweep.num_trials=3"])
    with pytest.raises(SpecError, match=r"max_epochs=2 epochs, and train\.warmup_epochs=3 leaves"):
        load_spec(
            "gcode",
            overrides=["sweep.max_epochs=2", "sweep.grace_epochs=1", "train.warmup_epochs=3"],
            sweeps=True,
        )
