"""The page of a sweep: what it says, that it says nothing else, and that it stands alone."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import EVIL, Page

from ray_jobs.reporting.sweep_figures import visible_range
from ray_jobs.reporting.sweep_report import render_sweep_report, standings
from ray_jobs.reporting.sweep_timeline import find_turns, timeline
from ray_jobs.result import Objective
from ray_jobs.sweeping.importance import assess_importance, first_rung_values
from ray_jobs.sweeping.labels import config_text, distribution_text, short_keys
from ray_jobs.sweeping.records import TrialRecord
from ray_jobs.sweeping.result import SweepResult, find_winner, promotion_result, trial_result
from ray_jobs.sweeping.rungs import Mode, Rungs, rung_epochs
from ray_jobs.sweeping.schedule import Schedule
from ray_jobs.sweeping.search import propose
from ray_jobs.sweeping.spec import Distribution

SPACE = {
    "loss.command": Distribution(values=["cross_entropy", "focal"]),
    "model.dropout": Distribution(low=0.0, high=0.3),
    "model.hidden_dim": Distribution(values=[192, 256, 320, 384]),
    "model.num_heads": Distribution(values=[4, 8, 16]),
    "model.num_layers": Distribution(low=2, high=6, integer=True),
    "train.batch_size": Distribution(values=[16, 24, 32]),
    "train.learning_rate": Distribution(low=4e-5, high=8e-4, log=True),
    "train.weight_decay": Distribution(low=0.03, high=0.08),
}
ONE_KEY = {"train.learning_rate": SPACE["train.learning_rate"]}


def quality(config: dict[str, Any]) -> float:
    """Grows as the learning rate nears 1.8e-4; nothing else counts but a little."""
    return 0.9 - 0.3 * abs(math.log10(config["train.learning_rate"] / 1.8e-4)) ** 2


def make_sweep(
    num_trials: int = 12,
    *,
    mode: Mode = "max",
    scheduler: str = "pausing_asha",
    space: dict[str, Distribution] = SPACE,
    fail_at: dict[int, int] = {},  # noqa: B006 - only read
    stop_at: dict[int, int] = {},  # noqa: B006 - only read
) -> SweepResult:
    """A sweep of 18 epochs with rungs at 2 and 6, as the schedule has it."""
    max_epochs, sign = 18, 1 if mode == "max" else -1
    levels = rung_epochs(2, max_epochs, 3) if scheduler != "none" else [max_epochs]
    configs = {trial: propose(space, seed=0, trial=trial) for trial in range(num_trials)}
    rungs = Rungs(levels, 3, mode)
    epochs = {trial: {**fail_at, **stop_at}.get(trial, max_epochs) for trial in range(num_trials)}
    schedule = Schedule(rungs, num_trials=num_trials, num_slots=3)
    reached = dict.fromkeys(range(num_trials), 0)

    def values(trial: int) -> list[float]:
        best = quality(configs[trial])
        return [sign * best * (1 - 0.5**epoch) for epoch in range(1, reached[trial] + 1)]

    while scheduler == "pausing_asha" and not schedule.is_over:
        trial = next(schedule.wanted())
        level = schedule._jobs[trial]
        reached[trial] = min(levels[level], epochs[trial])
        if reached[trial] < levels[level]:
            schedule.end(trial, None if trial in fail_at else values(trial)[-1])
        else:
            schedule.finish(trial, level, values(trial)[-1])
    if scheduler != "pausing_asha":
        reached = {trial: epochs[trial] for trial in reached}
    records = {}
    for trial in range(num_trials):
        is_parked = reached[trial] < epochs[trial]
        records[trial] = TrialRecord(
            config=configs[trial],
            values=values(trial),
            status="FAILED" if trial in fail_at else "RUNNING" if is_parked else "SUCCEEDED",
            reason="the loss became NaN" if trial in fail_at else None,
        )
    return SweepResult(
        scheduler=scheduler,
        search="random",
        seed=0,
        objective=Objective(metric="composite_acc" if mode == "max" else "val_loss", mode=mode),
        num_slots=3,
        rungs=levels,
        winner=f"{find_winner(records, mode):04d}",
        trials=[trial_result(t, record, levels, mode) for t, record in records.items()],
        promotions=[promotion_result(each) for each in schedule.promotions]
        if scheduler == "pausing_asha"
        else [],
        num_epochs=sum(reached.values()),
        num_full_epochs=num_trials * max_epochs,
    )


def make_events(sweep: SweepResult) -> list[dict[str, Any]]:
    """The journal of a sweep in which each epoch took a second and each trial its turn."""
    now = datetime(2026, 3, 4, 9, 12, tzinfo=UTC)
    events = []

    def emit(event: str, **fields: Any) -> None:
        events.append({"time": now.isoformat(), "step": "sweep", "event": event, **fields})

    for trial in sweep.trials:
        emit("trial_started", trial=trial.id, epoch=0, config=trial.config)
        for epoch, value in enumerate(trial.history, start=1):
            now += timedelta(seconds=1)
            emit("trial_epoch", trial=trial.id, epoch=epoch, value=value, best=value, metrics={})
        emit("trial_ended", trial=trial.id, status=trial.status, epoch=trial.epochs)
    return events


def render(sweep: SweepResult, space: dict[str, Distribution] = SPACE, **more: Any) -> str:
    return render_sweep_report(sweep, workload="gcode", run_id="a-run", space=space, **more)


@pytest.fixture(scope="module")
def sweep() -> SweepResult:
    return make_sweep(fail_at={4: 1}, stop_at={7: 1})


@pytest.fixture(scope="module")
def html(sweep: SweepResult) -> str:
    return render(sweep, events=make_events(sweep))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def titles(html: str) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", html)[1:]  # the first is the page's


def test_page_is_well_formed_and_its_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 6
    assert {str(link).removeprefix("#") for link in links} <= set(ids)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_page_needs_nothing_beside_itself(page: Page, html: str) -> None:
    assert not {"script", "link", "img", "iframe", "image", "use"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "style", "xlink:href"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"https?:|url\(|@import", html)
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    used = {name for _, a in page.tags for name in str(a.get("class") or "").split()}
    drawn = {"shade-0", "reach", "trial", "wide", "rung", "axis", "turn"}
    assert drawn <= used
    assert not [name for name in drawn if f".{name}" not in page.style]


def test_headline_names_the_winner_and_the_price(page: Page, sweep: SweepResult) -> None:
    winner, words = sweep.trial(sweep.winner), " ".join(page.text.split())
    assert (
        f"Trial {winner.id} wins with composite accuracy {winner.best_value:.3f} on validation, "
        f"at epoch {winner.best_epoch}." in words
    )
    share = 100 * sweep.num_epochs / 216
    assert (
        f"{sweep.num_epochs} of 216 epochs were trained, {share:.1f} % of training every trial in "
        "full." in words
    )
    in_full = sum(trial.epochs == 18 for trial in sweep.trials)
    assert f"12 trials: {in_full} trained in full, 1 ended by early stopping" in words
    assert f"{10 - in_full} parked for good, 1 failed." in words
    assert f"{len(sweep.promotions)} promotions." in words


def test_winners_hyperparameters_stand_beside_what_was_tried(
    page: Page, sweep: SweepResult
) -> None:
    config = sweep.trial(sweep.winner).config
    rate = config["train.learning_rate"]
    assert page.row("train.learning_rate") == [
        "train.learning_rate", f"{rate:.3g}", "4e-05 to 0.0008, log",
    ]  # fmt: skip
    layers = str(config["model.num_layers"])
    assert page.row("model.num_layers")[1:] == [layers, "2 to 6, whole numbers"]
    assert page.row("loss.command")[1:] == [config["loss.command"], "cross_entropy, focal"]


def test_rungs_tell_who_came_and_who_went_on(page: Page, sweep: SweepResult) -> None:
    start = next(i for i, row in enumerate(page.rows) if row and row[0] == "Epoch")
    rows = page.rows[start + 1 : start + 4]
    promoted = [
        [each.value for each in sweep.promotions if each.from_epoch == epoch] for epoch in (2, 6)
    ]
    assert [row[:3] for row in rows] == [
        ["2", "12", str(len(promoted[0]))],
        ["6", str(len(promoted[0])), str(len(promoted[1]))],
        ["18", str(len(promoted[1])), "—"],
    ]
    assert [row[4] for row in rows] == [*(f"{min(values):.3f}" for values in promoted), "—"]


def test_table_says_why_each_trial_ended(page: Page, sweep: SweepResult) -> None:
    winner = page.row(f"{sweep.winner} winner")
    best = sweep.trial(sweep.winner)
    assert winner[1:] == [
        "ended", "trained in full", "18", "18", "", f"{best.best_value:.3f}", "18", "2 → 6 → 18",
    ]  # fmt: skip
    assert page.row("0004")[1:5] == ["failed", "the loss became NaN", "—", "1"]
    assert page.row("0007")[1:5] == ["ended", "early stopping at epoch 1", "—", "1"]
    # The last of the eleven with a value at the first rung, the failed one behind it.
    ranked = sorted((t for t in sweep.trials if t.id != "0004"), key=lambda t: -max(t.history[:2]))
    last = next(t for t in reversed(ranked) if t.status == "STOPPED" and t.epochs == 2)
    place = [t.id for t in ranked].index(last.id) + 1
    assert page.row(last.id)[1:5] == ["parked", f"rank {place} of 12 at epoch 2", "2", "2"]


def test_failed_trial_stands_last_on_a_rung_and_an_early_stopped_one_on_every_later() -> None:
    sweep = make_sweep(fail_at={4: 1}, stop_at={0: 1, 7: 5})
    first = standings(sweep, 0)
    assert list(first)[-1] == "0004"
    assert first["0004"] is None
    assert first["0000"] == sweep.trial("0000").best_value
    for level in (1, 2):
        promoted = {p.trial for p in sweep.promotions if p.to_epoch == sweep.rungs[level]}
        assert standings(sweep, level).keys() == promoted


def test_every_line_and_bar_names_its_trial(html: str, sweep: SweepResult) -> None:
    lines = [title for title in titles(html) if title.startswith("Trial ")]
    bars = [title for title in titles(html) if title.startswith("After ")]
    assert len(bars) == len(sweep.trials)
    for trial in sweep.trials:
        told = [title for title in lines if title.startswith(f"Trial {trial.id}")]
        assert len(told) in (1, 2), trial.id  # parallel coordinates; its curve, if in range
        assert f"{trial.epochs} epoch" in told[0]
        assert config_text(trial.config) in told[0]
    assert len(re.findall(r'class="line s-ensemble"', html)) == 5  # 2 lines, 2 legends, 1 row


def test_importance_finds_the_key_that_matters() -> None:
    sweep = make_sweep(30)
    importance = assess_importance(sweep, SPACE)
    first = next(iter(importance.shares))
    assert first == "train.learning_rate"
    assert importance.shares[first] > 0.5
    assert importance.num_trials == 30
    assert sum(importance.shares.values()) + importance.jointly == pytest.approx(1)
    assert assess_importance(sweep, SPACE) == importance


def test_importance_reads_the_first_rung_not_the_end() -> None:
    sweep = make_sweep(9, fail_at={1: 1, 2: 4}, stop_at={3: 1})
    values = first_rung_values(sweep)
    assert "0001" not in values  # it failed before the rung
    assert values["0003"] == sweep.trial("0003").best_value
    assert values["0002"] == sweep.trial("0002").history[1]
    winner = sweep.trial(sweep.winner)
    assert values[winner.id] == max(winner.history[:2]) < winner.best_value


@pytest.mark.parametrize(
    ("sweep", "space", "reason"),
    [
        (
            make_sweep(9, fail_at={1: 1, 2: 1}),
            SPACE,
            "Trials with a value at the first rung: 7 of 9; with fewer than 8 there is nothing to "
            "go by.",
        ),
        (
            make_sweep(9, space=ONE_KEY),
            ONE_KEY,
            "The trials differ in train.learning_rate alone.",
        ),
    ],
)
def test_importance_is_absent_with_the_reason(
    sweep: SweepResult, space: dict[str, Distribution], reason: str
) -> None:
    page = Page(render(sweep, space))
    assert f"— {reason}" in page.text
    assert "fANOVA" not in page.text


def test_importance_of_equal_values_is_absent() -> None:
    sweep = make_sweep(9)
    flat = [
        trial.model_copy(update={"history": [0.5] * trial.epochs, "best_value": 0.5})
        for trial in sweep.trials
    ]
    importance = assess_importance(sweep.model_copy(update={"trials": flat}), SPACE)
    assert importance.why_absent == "All trials have the same value at the first rung."
    assert importance.shares == {}


@pytest.mark.parametrize("scheduler", ["pausing_asha", "asha", "none"])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("num_trials", [1, 3])
def test_small_sweeps_of_every_kind_render(num_trials: int, mode: Mode, scheduler: str) -> None:
    sweep = make_sweep(num_trials, mode=mode, scheduler=scheduler, space=ONE_KEY)
    page = Page(render(sweep, ONE_KEY))
    assert f"Trial {sweep.winner} wins with" in page.text
    assert ("promotion" in " ".join(page.text.split())) == (scheduler == "pausing_asha")
    assert ("lower is better" in page.text) == (mode == "min")
    assert "— The journal of the run is not at hand." in page.text
    labels = [a.get("aria-label") for _, a in page.tags]
    assert "Best value so far of every trial by epoch" in labels
    assert "Hyperparameters and best value of every trial" in labels


def test_trials_of_rays_asha_are_stopped_not_parked() -> None:
    sweep = make_sweep(4, scheduler="asha")
    stopped = sweep.trials[1].model_copy(
        update={"status": "STOPPED", "epochs": 2, "rung": 2, "history": [0.1, 0.2]}
    )
    trials = [sweep.trials[0], stopped, *sweep.trials[2:]]
    page = Page(render(sweep.model_copy(update={"trials": trials, "winner": "0000"})))
    assert page.row("0001")[1:3] == ["stopped", "rank 4 of 4 at epoch 2"]
    assert "3 trained in full, 1 stopped." in page.text


def test_values_that_are_not_finite_are_dashes_and_gaps() -> None:
    sweep = make_sweep(3, fail_at={1: 2})
    history = [None] * 2
    lost = sweep.trials[1].model_copy(
        update={"history": history, "best_value": None, "best_epoch": None}
    )
    late = sweep.trials[0].model_copy(update={"history": [None, *sweep.trials[0].history[1:]]})
    html = render(sweep.model_copy(update={"trials": [late, lost, sweep.trials[2]]}))
    page = Page(html)
    assert page.row("0001")[6:8] == ["—", "—"]
    assert "nan" not in html.lower().replace("became nan", "")
    assert "without a value" in page.text
    assert html.count('class="line lost"') == 2  # its line, and the legend's


def test_forty_trials_of_eight_keys_stay_light_and_wide() -> None:
    sweep = make_sweep(40, fail_at={5: 1}, stop_at={8: 4})
    html = render(sweep, events=make_events(sweep))
    assert len(html.encode()) < 300_000
    page = Page(html)
    for key, name in short_keys(SPACE).items():
        assert f">{name}</text>" in html
        assert page.row(key)[2] == distribution_text(SPACE[key])


def test_text_from_outside_stays_text(sweep: SweepResult) -> None:
    space = {**SPACE, "loss.command": Distribution(values=[EVIL, "focal"])}
    trials = [
        trial.model_copy(
            update={
                "reason": EVIL if trial.status == "FAILED" else None,
                "config": {**trial.config, "loss.command": EVIL},
            }
        )
        for trial in sweep.trials
    ]
    html = render_sweep_report(
        sweep.model_copy(update={"trials": trials}), workload=EVIL, run_id=EVIL, space=space
    )
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 12
    assert page.style.count("<") == 0


def test_timeline_leaves_out_the_time_between_a_kill_and_the_resumption() -> None:
    sweep = make_sweep(3)

    def event(second: float, kind: str, trial: str = "0000", **more: Any) -> dict[str, Any]:
        at = datetime(2026, 3, 4, tzinfo=UTC) + timedelta(seconds=second)
        return {"time": at.isoformat(), "step": "sweep", "event": kind, "trial": trial, **more}

    turns = find_turns(
        [
            {"time": "2026-03-04T00:00:00+00:00", "step": "sweep", "event": "step_started"},
            event(0, "trial_started"),
            event(10, "trial_epoch"),
            event(3600, "trial_resumed"),  # after a kill
            event(3630, "trial_paused"),
            event(3635, "trial_started", "0001"),
            event(3640, "trial_promoted", "0001"),  # it went on without a pause
            event(3650, "trial_ended", "0001"),
        ]
    )
    lasted = {
        trial: [(stop - start).total_seconds() for start, stop in of_one]
        for trial, of_one in turns.items()
    }
    assert lasted == {"0000": [10, 30], "0001": [15]}
    drawn = str(timeline(sweep, turns))
    assert re.findall(r"After ([^,]+), for ([^.]+ s)\.", drawn) == [
        ("0.0 s", "10 s"), ("10 s", "30 s"), ("40 s", "15 s"),
    ]  # fmt: skip
    assert timeline(sweep, {}) is None


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from(["max", "min"]))
def test_visible_range_keeps_the_best_and_most_of_the_rest(values: list[float], mode: str) -> None:
    low, high = visible_range(values, mode)
    assert (high == max(values)) if mode == "max" else (low == min(values))
    assert sum(low <= value <= high for value in values) >= 0.75 * len(values) - 1


def test_visible_range_leaves_out_a_trial_far_worse_than_the_rest() -> None:
    assert visible_range([0.8, 0.81, 0.82, 0.83, 0.84, 0.1], "max") == (0.8, 0.84)
    assert visible_range([0.8, 0.81, 0.82, 0.83, 0.84, 9.9], "min") == (0.8, 0.84)


def test_labels_of_hyperparameters() -> None:
    assert short_keys(["a.lr", "b.size", "c.size"]) == {
        "a.lr": "lr", "b.size": "b.size", "c.size": "c.size",
    }  # fmt: skip
    config = {"a.lr": 5.2345e-05, "b.size": 16, "b.on": True, "b.kind": "x"}
    assert config_text(config) == "lr 5.23e-05, size 16, on true, kind x"
