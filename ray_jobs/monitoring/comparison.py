"""LiveComparison: champion and challenger on live requests, and whether a difference is decided.

What is compared is a mean over requests, not over rows, for the rows of a request are alike. A
shadow is asked what the champion is asked, so they are compared in pairs; of a split each request
has one answer, and the two samples are apart.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from ray_jobs.errors import DataError
from ray_jobs.monitoring.judging import Better, Judge, Truths, checked_truth
from ray_jobs.monitoring.outcomes import Outcomes
from ray_jobs.monitoring.records import Record
from ray_jobs.monitoring.sequential import Estimate, difference, mean, paired_difference
from ray_jobs.serving.routing import Mode, Role

Values = Mapping[str, float]  # by request id, in the order in which they came to be known


@dataclass(frozen=True)
class Side:
    """One version's requests."""

    version: str
    digest: str
    num_requests: int
    num_errors: int  # answered with another code than 2xx
    p50_s: float | None  # of those that were answered and timed; None: none was
    p99_s: float | None
    shares: dict[str, float]  # of the predictions, by decision
    means: dict[str, Estimate] = field(default_factory=dict)  # by measure


@dataclass(frozen=True)
class Difference:
    """The challenger less the champion, in one measure."""

    measure: str
    better: Better | None  # None: neither is
    estimate: Estimate

    @property
    def is_decided(self) -> bool:
        return self.estimate.is_steady and not self.estimate.low <= 0 <= self.estimate.high

    @property
    def winner(self) -> Role | None:
        """Who is better, once it is decided."""
        if not self.is_decided or self.better is None:
            return None
        is_higher = self.estimate.low > 0
        return "challenger" if is_higher == (self.better == "higher") else "champion"


@dataclass(frozen=True)
class LiveComparison:
    """Both versions since both have been asked. Each interval holds at all times at once with the
    confidence given, so that looking early is allowed; each by itself."""

    mode: Mode
    confidence: float
    start: datetime
    end: datetime
    champion: Side
    challenger: Side
    agreement: Estimate | None  # of a shadow's decisions with the champion's; None: not known
    differences: tuple[Difference, ...]  # the one that decides first
    num_judged: int  # requests of which the truth is known
    num_unused: int  # outcomes of requests that were not recorded, or of rows that they lack
    num_malformed: int = 0  # lines of records that were skipped

    @property
    def deciding(self) -> Difference:
        return self.differences[0]

    @property
    def verdict(self) -> Literal["champion", "challenger", "undecided"]:
        return self.deciding.winner or "undecided"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        found, estimate = self.deciding, self.deciding.estimate
        if not estimate.is_steady:
            said = (
                f"not decided {self._after}: the difference in {found.measure} has changed "
                "meanwhile; compare what came later, with --since"
            )
        elif found.winner is None:
            said = (
                f"not decided yet {self._after}: the challenger's {found.measure} less the "
                f"champion's is between {estimate.low:+.4f} and {estimate.high:+.4f}"
            )
        else:
            side = self.challenger if found.winner == "challenger" else self.champion
            least, most = sorted((abs(estimate.low), abs(estimate.high)))
            said = (
                f"decided: the {found.winner} (version {side.version}) is better in "
                f"{found.measure} by {abs(estimate.value):.4f} ({least:.4f} to {most:.4f}) "
                f"{self._after}"
            )
        if self.num_judged:
            return said
        if self.num_unused:
            return f"{said}; none of the outcomes is of a request that was recorded meanwhile"
        return f"{said}; which predictions are right is not known: give --outcomes"

    @property
    def _after(self) -> str:
        """How much the deciding difference has seen."""
        num = self.deciding.estimate.num
        if self.mode == "shadow":
            return f"after {num:,} pairs"
        first, second = (
            side.means[self.deciding.measure].num for side in (self.champion, self.challenger)
        )
        return f"after {num:,} requests, {first:,} to the champion and {second:,} to the challenger"

    def to_json(self) -> str:
        fields = {
            **asdict(self),
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "differences": [
                {**asdict(each), "is_decided": each.is_decided, "winner": each.winner}
                for each in self.differences
            ],
            "verdict": self.verdict,
            "sentence": self.sentence,
        }
        return json.dumps(fields, indent=2)


@dataclass(frozen=True)
class _Sample:
    """The requests of one version, by id, in the order of time."""

    records: Mapping[str, Record]
    readable: Mapping[str, Record]  # those that were answered with predictions


@dataclass(frozen=True)
class _Measure:
    """A value of each request to each version."""

    name: str
    better: Better | None
    champion: Values
    challenger: Values

    def difference(self, mode: Mode, alpha: float) -> Difference | None:
        """None where there is nothing to compare."""
        if mode == "shadow":
            ids = [request_id for request_id in self.challenger if request_id in self.champion]
            pairs = [[side[i] for i in ids] for side in (self.champion, self.challenger)]
            estimate = paired_difference(pairs[0], pairs[1], alpha) if ids else None
        elif self.champion and self.challenger:
            both = list(self.champion.values()), list(self.challenger.values())
            estimate = difference(*both, alpha)
        else:
            estimate = None
        return None if estimate is None else Difference(self.name, self.better, estimate)


def compare(
    records: Iterable[Record],
    judge: Judge,
    *,
    outcomes: Outcomes | None = None,
    confidence: float = 0.95,
) -> LiveComparison:
    """Compare the versions that were asked last, since both are.

    Raises:
        DataError: there are no records of both, or an outcome is no label.
    """
    alpha = 1 - confidence
    mode, champion, challenger = _last_pair(records, judge)
    scores = _scores(champion, challenger, judge, outcomes) if outcomes else []
    measures = [*scores, *_rates(champion, challenger, judge)]
    found = [measure.difference(mode, alpha) for measure in measures]
    times = [r.time for sample in (champion, challenger) for r in sample.records.values()]
    judged = {
        i for score in scores for values in (score.champion, score.challenger) for i in values
    }
    return LiveComparison(
        mode=mode,
        confidence=confidence,
        start=min(times),
        end=max(times),
        champion=_side(champion, judge, {m.name: m.champion for m in measures}, alpha),
        challenger=_side(challenger, judge, {m.name: m.challenger for m in measures}, alpha),
        agreement=_agreement(champion, challenger, judge, alpha) if mode == "shadow" else None,
        differences=tuple(each for each in found if each is not None),
        num_judged=len(judged),
        num_unused=len(outcomes.labels.keys() - judged) if outcomes else 0,
    )


def _last_pair(records: Iterable[Record], judge: Judge) -> tuple[Mode, _Sample, _Sample]:
    """The requests to the versions that were asked last, since both were; of an id the first."""
    in_order = sorted(records, key=lambda record: record.time)
    last = {record.variant: record for record in in_order}
    if len(last) < 2:
        missing = "challenger" if "champion" in last else "champion"
        raise DataError(
            f"no request to a {missing} is recorded; deploy with deployment.challenger and "
            "deployment.record.share, or look at --name, --since and --storage"
        )
    mode: Mode = "shadow" if last["challenger"].is_shadow else "split"
    kept = [r for r in in_order if _is_like(r, last[r.variant])]
    first = {r.variant: r.time for r in reversed(kept)}
    samples: dict[Role, dict[str, Record]] = {"champion": {}, "challenger": {}}
    for record in kept:
        # A shadow is asked after the champion has answered: its first pair began before it.
        if mode == "shadow" or record.time >= max(first.values()):
            samples[record.variant].setdefault(record.request_id, record)
    champion, challenger = samples["champion"], samples["challenger"]
    if mode == "shadow":
        champion = {i: champion[i] for i in challenger if i in champion}
        challenger = {i: challenger[i] for i in champion}
    if not champion or not challenger:
        raise DataError(
            "no request was recorded while both versions answered; wait for more, or raise "
            "deployment.record.share"
        )
    return mode, _sample(champion, judge), _sample(challenger, judge)


def _is_like(record: Record, last: Record) -> bool:
    return (record.digest, record.version, record.is_shadow) == (
        last.digest,
        last.version,
        last.is_shadow,
    )


def _sample(records: Mapping[str, Record], judge: Judge) -> _Sample:
    readable = {i: r for i, r in records.items() if r.is_answered and judge.can_read(r)}
    return _Sample(records, readable)


# Measures


def _scores(
    champion: _Sample, challenger: _Sample, judge: Judge, outcomes: Outcomes
) -> list[_Measure]:
    """How right the predictions were, in the order of the outcomes."""
    truths = {
        request_id: {row: checked_truth(judge, request_id, label) for row, label in rows.items()}
        for request_id, rows in outcomes.labels.items()
    }
    known = [_known(sample, truths, judge) for sample in (champion, challenger)]
    measures = []
    for score in judge.scores:
        values = [
            {i: score.of(sample.readable[i], rows) for i, rows in some.items()}
            for sample, some in zip((champion, challenger), known, strict=True)
        ]
        measures.append(_Measure(score.name, score.better, *values))
    return measures


def _known(
    sample: _Sample, truths: Mapping[str, Mapping[int | None, str]], judge: Judge
) -> dict[str, Truths]:
    """The truth of predictions of a version, by request and number of the prediction."""
    known: dict[str, Truths] = {}
    for request_id, rows in truths.items():
        record = sample.readable.get(request_id)
        if record is None:
            continue
        num = len(judge.decisions(record))
        skipped = record.num_rows - num  # rows that end no window have no prediction
        numbers = {(0 if num == 1 else -1) if row is None else row - skipped: truth
                   for row, truth in rows.items()}  # fmt: skip
        of_request = {number: truth for number, truth in numbers.items() if 0 <= number < num}
        if of_request:
            known[request_id] = of_request
    return known


def _rates(champion: _Sample, challenger: _Sample, judge: Judge) -> list[_Measure]:
    """What is known without outcomes, in the order of time."""
    both = (champion, challenger)
    errors = [{i: float(not r.is_answered) for i, r in side.records.items()} for side in both]
    measures = [_Measure("errors", "lower", *errors)]
    if judge.positive is not None:
        shares = [
            {i: _share(judge.decisions(r), judge.positive) for i, r in side.readable.items()}
            for side in both
        ]
        measures.append(_Measure(f"share of {judge.positive}", None, *shares))
    return measures


def _share(decisions: Sequence[str], wanted: str) -> float:
    return decisions.count(wanted) / len(decisions)


def _agreement(
    champion: _Sample, challenger: _Sample, judge: Judge, alpha: float
) -> Estimate | None:
    """Of a shadow with the champion: the share of a request's predictions."""
    shares = []
    for request_id, record in challenger.readable.items():
        if request_id in champion.readable:
            one = judge.decisions(champion.readable[request_id])
            other = judge.decisions(record)
            if len(one) == len(other):
                shares.append(sum(map(str.__eq__, one, other)) / len(one))
    return mean(shares, alpha) if shares else None


def _side(sample: _Sample, judge: Judge, values: Mapping[str, Values], alpha: float) -> Side:
    first = next(iter(sample.records.values()))
    timed = (record.seconds for record in sample.records.values() if record.is_answered)
    seconds = [each for each in timed if not math.isnan(each)]  # captured ones are not timed
    decided = Counter(d for record in sample.readable.values() for d in judge.decisions(record))
    return Side(
        version=first.version,
        digest=first.digest,
        num_requests=len(sample.records),
        num_errors=sum(not record.is_answered for record in sample.records.values()),
        p50_s=float(np.quantile(seconds, 0.5)) if seconds else None,
        p99_s=float(np.quantile(seconds, 0.99)) if seconds else None,
        shares={name: num / decided.total() for name, num in decided.most_common()},
        means={name: mean(list(v.values()), alpha) for name, v in values.items() if v},
    )
