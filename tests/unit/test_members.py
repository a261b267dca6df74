"""Every family: it learns, it is deterministic, and what it saves predicts the same when loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ray_jobs.data.dataset import Rows
from ray_jobs.errors import JobFailed
from ray_jobs.metrics import objective_value
from ray_jobs.models.base import FitContext
from ray_jobs.models.registry import FAMILIES
from ray_jobs.result import Objective

OBJECTIVE = Objective(metric="f1", mode="max")
SMALL = {
    "random_forest": {"num_trees": 20},
    "gradient_boosting": {"num_rounds": 20},
    "logistic_regression": {},
    "lstm_classifier": {"epochs": 4, "hidden_size": 16, "window": 4, "learning_rate": 1e-2},
    "transformer": {
        "epochs": 4, "hidden_size": 16, "window": 4, "learning_rate": 3e-3, "warmup_steps": 5,
    },
}  # fmt: skip


def make_rows(count: int, seed: int, group_length: int = 10) -> Rows:
    """Two features; the label follows the first, now and (less) one reading ago."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    signal = 2 * x[:, 0] + np.r_[0, x[:-1, 0]] + rng.logistic(scale=0.3, size=count)
    group = np.arange(count) // group_length
    return Rows(x, (signal > 0).astype(np.int8), group, np.arange(count), ("a", "b"))


TRAIN, VAL = make_rows(3000, 0), make_rows(600, 1)


def fit(family: str, context: FitContext | None = None) -> tuple:
    member = FAMILIES[family].model_validate(SMALL[family]).build()
    report = member.fit(TRAIN, VAL, context or FitContext(7, OBJECTIVE))
    return member, report


def test_every_family_is_tested() -> None:
    assert SMALL.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_saves_and_loads_the_same(family: str, tmp_path: Path) -> None:
    member, report = fit(family)
    p = member.predict_proba(VAL)
    assert p.shape == (len(VAL),)
    assert ((p >= 0) & (p <= 1)).all()
    assert objective_value(VAL.y, p, "auc") > 0.85
    if report.history:
        assert report.best_epoch in [entry["epoch"] for entry in report.history]
    member.save(tmp_path)
    assert not list(tmp_path.glob("*.pkl"))
    loaded = FAMILIES[family].model_validate(SMALL[family]).build()
    loaded.load(tmp_path)
    assert np.array_equal(loaded.predict_proba(VAL), p)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_predictions(family: str) -> None:
    first, second = (fit(family)[0].predict_proba(VAL) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("family", ["lstm_classifier", "transformer"])
def test_a_sequence_member_reads_history_but_never_the_future_or_another_group(family: str) -> None:
    member, _ = fit(family)
    whole = member.predict_proba(VAL)
    alone = member.predict_proba(VAL.take(np.arange(0, 600, 10)))  # first reading of each group
    assert np.allclose(whole[::10], alone, atol=1e-6)
    cut = VAL.take(slice(0, 5))  # the first five readings of the first group
    assert np.allclose(member.predict_proba(cut), whole[:5], atol=1e-6)
    history = objective_value(VAL.y, whole, "auc")
    separate = Rows(VAL.x, VAL.y, np.arange(len(VAL)), VAL.row_id, VAL.features)
    assert history > objective_value(VAL.y, member.predict_proba(separate), "auc") + 0.01


def test_epochs_are_reported_with_what_a_user_wants_to_see() -> None:
    events: list[dict] = []
    fit("lstm_classifier", FitContext(0, OBJECTIVE, 1, lambda event, **f: events.append(f)))
    assert [event["epoch"] for event in events] == [1, 2, 3, 4]
    assert {"metrics", "train", "best", "patience", "learning_rate"} <= events[0].keys()
    assert set(events[0]["metrics"]) == {"val_loss", "f1"}


def test_a_loss_that_is_not_finite_stops_the_member_with_advice() -> None:
    config = FAMILIES["lstm_classifier"].model_validate({**SMALL["lstm_classifier"]})
    broken = TRAIN.x.copy()
    broken[5, 0] = np.nan
    rows = Rows(broken, TRAIN.y, TRAIN.group, TRAIN.row_id, TRAIN.features)
    with pytest.raises(
        JobFailed, match=r"was not finite in 10 steps in a row; lower the learning_rate"
    ):
        config.build().fit(rows, VAL, FitContext(0, OBJECTIVE))


def test_an_untrusted_type_in_a_model_file_is_refused(tmp_path: Path) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(FunctionTransformer(func=eval), tmp_path / "model.skops")
    with pytest.raises(Exception, match=r"Untrusted types|untrusted"):
        FAMILIES["logistic_regression"]().build().load(tmp_path)


def test_the_learning_rate_follows_the_windows_in_a_batch() -> None:
    config = FAMILIES["transformer"].model_validate({"window": 16, "learning_rate": 1e-4})
    assert config.build()._learning_rate(make_rows(64, 0, group_length=32)) == 1e-4
    assert config.build()._learning_rate(make_rows(64, 0, group_length=1)) == 4e-4
