"""Single columns that predict the label alone, as a small tree on each shows on unseen rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ray_jobs.data.dataset import Rows
from ray_jobs.errors import DataError
from ray_jobs.result import ColumnLeak

TREE_DEPTH = 3  # up to eight intervals of the column
REPORTED_AUC = 0.9
REFUSED_AUC = 0.999  # together with the next, on train and on validation: the label itself
REFUSED_BALANCED_ACCURACY = 0.995
MIN_CLASS_ROWS = 10  # of each class in validation; fewer prove nothing
MAX_CLASS_ROWS = 10_000  # of each class and split, drawn by the seed


def find_leaks(train: Rows, val: Rows, *, allowed: Collection[str], seed: int) -> list[ColumnLeak]:
    """The columns that alone reach an AUC of 0.9 on validation, best first. Test is not looked at.

    Args:
        train: the trees are fitted on these rows.
        val: and judged on these; both classes must be there.
        allowed: columns that are reported and never refused.
        seed: draws the rows of large splits.
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(seed)
    train, val = _drawn(train, rng), _drawn(val, rng)
    is_evidence = min(np.bincount(val.y, minlength=2)) >= MIN_CLASS_ROWS
    leaks = []
    for j, column in enumerate(train.features):
        tree = DecisionTreeClassifier(
            max_depth=TREE_DEPTH, class_weight="balanced", random_state=seed
        )
        tree.fit(train.x[:, [j]], train.y)
        scores = {}
        for name, rows in (("train", train), ("val", val)):
            probability = tree.predict_proba(rows.x[:, [j]])[:, 1]
            scores[name] = (
                float(roc_auc_score(rows.y, probability)),
                float(balanced_accuracy_score(rows.y, probability > 0.5)),
            )
        auc, accuracy = scores["val"]
        if auc < REPORTED_AUC:
            continue
        is_label = is_evidence and all(
            auc >= REFUSED_AUC and accuracy >= REFUSED_BALANCED_ACCURACY
            for auc, accuracy in scores.values()
        )
        evidence = (
            f"a tree on {column!r} alone, first cut at {tree.tree_.threshold[0]:.6g}, reaches AUC "
            f"{auc:.4f} and balanced accuracy {accuracy:.4f} on validation (train: "
            f"{scores['train'][0]:.4f} and {scores['train'][1]:.4f})"
        )
        leaks.append(
            ColumnLeak(
                column=column,
                auc=auc,
                refused=is_label and column not in allowed,
                evidence=evidence,
            )
        )
    return sorted(leaks, key=lambda leak: -(leak.auc or 0.0))


def refuse_leaks(leaks: Sequence[ColumnLeak]) -> None:
    """Stop if a column is the label in other words.

    Raises:
        DataError: names each such column, the evidence and the fix.
    """
    refused = [leak for leak in leaks if leak.refused]
    if not refused:
        return
    names = [leak.column for leak in refused]
    raise DataError(
        f"the label is given away by {', '.join(map(repr, names))}: "
        f"{'; '.join(leak.evidence for leak in refused)}. Leave such columns out of "
        f"data.feature_columns, or keep them on purpose with data.allow_leaks={names}"
    )


def _drawn(rows: Rows, rng: np.random.Generator) -> Rows:
    """At most `MAX_CLASS_ROWS` of each class: neither measure minds the balance of the classes."""
    chosen = [rng.permutation(np.flatnonzero(rows.y == label))[:MAX_CLASS_ROWS] for label in (0, 1)]
    return rows.take(np.sort(np.concatenate(chosen)))
