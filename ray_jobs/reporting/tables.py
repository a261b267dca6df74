"""The report's tables: what stands in their rows, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ray_jobs.predictions import Predictions
from ray_jobs.reporting import charts, curves, figures, scores
from ray_jobs.reporting.charts import Mark
from ray_jobs.result import JobResult, MemberResult, MetricValue, SplitMetrics

_SCORES_WIDTH, _LEADERBOARD_WIDTH, _CANDIDATES_WIDTH = 300, 200, 150  # of their whiskers, in px


def metric_names(result: JobResult) -> set[str]:
    owners = [result.metrics, *(member.metrics for member in result.members)]
    return {name for metrics in owners for split in metrics.values() for name in split}


@dataclass(frozen=True)
class ScoreRow:
    label: str
    meaning: str
    is_objective: bool
    test: MetricValue | None
    val: MetricValue | None
    gap: float | None
    landmarks: dict[str, float]
    chart: Markup


@dataclass(frozen=True)
class ScoreTable:
    title: str
    axis: Markup
    rows: list[ScoreRow]


def score_tables(result: JobResult) -> list[ScoreTable]:
    """Test beside validation for every metric: where more is better, then where less is."""
    val, test = result.metrics.get("val", {}), result.metrics.get("test", {})
    names = scores.in_order({*val, *test})
    tables = []
    for direction, title in ((1, "Higher is better"), (-1, "Lower is better")):
        chosen = [name for name in names if scores.sign(name, result) == direction]
        if not chosen:
            continue
        landmarks = {name: scores.landmarks(name, result) for name in chosen}
        axis = figures.axis_of_scores(
            [metrics[name] for metrics in (val, test) for name in chosen if name in metrics],
            [value for known in landmarks.values() for value in known.values()],
        )
        rows = [
            ScoreRow(
                label=scores.metric_label(name),
                meaning=scores.metric_meaning(name),
                is_objective=name == result.objective.metric,
                test=test.get(name),
                val=val.get(name),
                gap=test[name].value - val[name].value if name in test and name in val else None,
                landmarks=landmarks[name],
                chart=charts.whiskers(
                    split_marks(scores.metric_label(name), result.metrics, name, figures.ENSEMBLE),
                    axis,
                    landmarks=landmarks[name],
                    width=_SCORES_WIDTH,
                ),
            )
            for name in chosen
        ]
        tables.append(ScoreTable(title, charts.whisker_axis(axis, width=_SCORES_WIDTH), rows))
    return tables


def split_marks(label: str, metrics: SplitMetrics, metric: str, css: str) -> list[Mark]:
    """Test, then validation, as far as they are known."""
    return [
        figures.score_mark(metrics[split][metric], f"{split} {css}", f"{label} on {split}")
        for split in ("test", "val")
        if metric in metrics.get(split, {})
    ]


@dataclass(frozen=True)
class Standing:
    """A row of the leaderboard."""

    name: str
    swatch: Markup
    is_ensemble: bool
    member: MemberResult | None
    metrics: SplitMetrics
    chart: Markup
    weight: float | None
    seconds: float | None


@dataclass(frozen=True)
class Leaderboard:
    axis: Markup
    extra_metrics: Sequence[str]  # beside the objective
    standings: list[Standing]


def leaderboard(result: JobResult) -> Leaderboard:
    """The ensemble, then its members by the objective on validation, those without it last."""
    metric = result.objective.metric
    better = scores.sign(metric, result)

    def worth(member: MemberResult) -> tuple[bool, float]:
        score = member.metrics.get("val", {}).get(metric)
        return (score is None, -better * score.value if score else 0.0)

    owners = [result.metrics, *(member.metrics for member in result.members)]
    axis = figures.axis_of_scores(
        metrics[split][metric]
        for metrics in owners
        for split in ("val", "test")
        if metric in metrics.get(split, {})
    )
    css = figures.colours(member.name for member in result.members)
    weights = result.ensemble.weights if result.ensemble else {}

    def standing(name: str, member: MemberResult | None) -> Standing:
        style = css[member.name] if member else figures.ENSEMBLE
        metrics = member.metrics if member else result.metrics
        return Standing(
            name=name,
            swatch=charts.swatch(style),
            is_ensemble=member is None,
            member=member,
            metrics=metrics,
            chart=charts.whiskers(
                split_marks(f"{scores.metric_label(metric)} of {name}", metrics, metric, style),
                axis,
                width=_LEADERBOARD_WIDTH,
            ),
            weight=weights.get(member.name) if member else None,
            seconds=member.seconds if member else None,
        )

    standings = [standing(member.name, member) for member in sorted(result.members, key=worth)]
    if result.ensemble or result.metrics:
        standings.insert(0, standing("Ensemble", None))
    known = metric_names(result)
    extra = [name for name in ("f1", "auc", "log_loss") if name in known and name != metric]
    return Leaderboard(charts.whisker_axis(axis, width=_LEADERBOARD_WIDTH), extra, standings)


@dataclass(frozen=True)
class Cell:
    count: int
    share: str  # of its row
    heat: int  # the same in tenths, for its shade


def confusion(test: Predictions, threshold: float) -> list[list[Cell]]:
    """Rows [actual][answered] of the confusion matrix on test, the positive class first."""
    counts = curves.confusion(test.y, test.ensemble, threshold)
    return [
        [
            Cell(num, scores.percent(num, sum(row)), round(10 * num / sum(row)) if sum(row) else 0)
            for num in reversed(row)
        ]
        for row in reversed(counts)
    ]


@dataclass(frozen=True)
class BarRow:
    name: str
    value: float
    bar: Markup


def weights(result: JobResult) -> list[BarRow]:
    if result.ensemble is None:
        return []
    weights = result.ensemble.weights
    css = figures.colours(member.name for member in result.members)
    low, high = min([0.0, *weights.values()]), max([0.0, *weights.values()])
    return [
        BarRow(
            name,
            weight,
            charts.bar(
                weight,
                low=low,
                high=high,
                css=css.get(name, figures.ENSEMBLE),
                label=f"weight of {name}: {scores.number(weight)}",
            ),
        )
        for name, weight in weights.items()
    ]


@dataclass(frozen=True)
class CandidateRow:
    strategy: str
    chosen: bool
    objective: MetricValue
    log_loss: MetricValue
    chart: Markup


@dataclass(frozen=True)
class Candidates:
    axis: Markup
    rows: list[CandidateRow]


def candidates(result: JobResult) -> Candidates | None:
    """The strategies that were compared, each with its objective within one standard error."""
    if result.ensemble is None or not result.ensemble.candidates:
        return None

    def within(value: float, stderr: float) -> MetricValue:
        return MetricValue(value=value, low=value - stderr, high=value + stderr)

    pairs = [
        (
            candidate,
            within(candidate.objective, candidate.objective_stderr),
            within(candidate.log_loss, candidate.log_loss_stderr),
        )
        for candidate in result.ensemble.candidates
    ]
    axis = figures.axis_of_scores(objective for _, objective, _ in pairs)
    rows = []
    for candidate, objective, log_loss in pairs:
        css = f"test {figures.ENSEMBLE if candidate.chosen else 's-plain'}"
        mark = figures.score_mark(objective, css, candidate.strategy)
        chart = charts.whiskers([mark], axis, width=_CANDIDATES_WIDTH)
        rows.append(CandidateRow(candidate.strategy, candidate.chosen, objective, log_loss, chart))
    return Candidates(charts.whisker_axis(axis, width=_CANDIDATES_WIDTH), rows)


def phases(result: JobResult) -> list[BarRow]:
    longest = max(result.seconds.values(), default=0.0)
    return [
        BarRow(
            phase,
            seconds,
            charts.bar(
                seconds,
                low=0.0,
                high=longest,
                css="s-plain",
                label=f"{phase}: {scores.duration(seconds)}",
            ),
        )
        for phase, seconds in result.seconds.items()
    ]


def warnings(result: JobResult) -> list[str]:
    """What the run, its data and its members warned of, each thing once."""
    of_data = result.data.warnings if result.data else []
    of_members = [(member.name, text) for member in result.members for text in member.warnings]
    said = {f"{name}: {text}" for name, text in of_members}
    of_run = [text for text in result.warnings if text not in said]
    return list(dict.fromkeys([*of_run, *of_data, *(text for _, text in of_members)]))


@dataclass(frozen=True)
class Skipped:
    where: str
    what: str


def skipped(result: JobResult) -> list[Skipped]:
    """What the run left out or warned about, each thing once."""
    entries = []
    for member in result.members:
        if member.status in ("FAILED", "STOPPED"):
            reason = f": {member.reason}" if member.reason else ""
            entries.append(Skipped(member.name, f"{member.status.lower()}{reason}"))
    data = result.data
    if data and data.num_dropped:
        entries.append(Skipped("data", f"{scores.plural(data.num_dropped, 'row')} dropped"))
    if data and data.num_imputed:
        entries.append(Skipped("data", f"{scores.plural(data.num_imputed, 'cell')} filled in"))
    if result.num_skipped_batches:
        noun = "batch" if result.num_skipped_batches == 1 else "batches"
        entries.append(Skipped("training", f"{result.num_skipped_batches:,} {noun} skipped"))
    entries += [
        Skipped(
            m.name, f"{scores.plural(m.num_failed_samples, 'sample')} left out of their batches"
        )
        for m in result.members
        if m.num_failed_samples
    ]
    entries += [Skipped("data", warning) for warning in (data.warnings if data else [])]
    entries += [Skipped(m.name, warning) for m in result.members for warning in m.warnings]
    # The run's own list repeats what its members and its data said.
    said = {
        form for e in entries for form in (e.what, f"{e.where} {e.what}", f"{e.where}: {e.what}")
    }
    return entries + [Skipped("run", warning) for warning in result.warnings if warning not in said]
