"""Checks that each wait for a service: made side by side, listed in the order they are named in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ray_jobs.checks import Check, Checklist
from ray_jobs.errors import EmberlineError


class Unknown(Exception):
    """What cannot be known from here: neither passed nor failed."""


class ParallelChecks:
    """Rows of a checklist, each made as soon as those that it needs have passed."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool
        self._rows: dict[str, tuple[Future[list[Check]], int]] = {}

    def make(self, name: str, look: Callable[[], str], *, needs: Iterable[str] = ()) -> None:
        """A row of what `look` finds or raises; it is called if all rows in `needs` have passed."""
        self.make_all([name], lambda: [Check(name, True, look())], needs=needs)

    def make_all(
        self, names: Sequence[str], look: Callable[[], list[Check]], *, needs: Iterable[str] = ()
    ) -> None:
        """The rows of these names, which one `look` returns in this order."""
        # The pool takes its tasks in turn: what a task waits for has begun before it.
        needed = {need: self._rows[need] for need in needs}
        task = self._pool.submit(_look, names, look, needed)
        for number, name in enumerate(names):
            assert name not in self._rows, name
            self._rows[name] = (task, number)

    def checklist(self) -> Checklist:
        """All rows, once they are made."""
        return Checklist([task.result()[number] for task, number in self._rows.values()])


def _look(
    names: Sequence[str],
    look: Callable[[], list[Check]],
    needed: dict[str, tuple[Future[list[Check]], int]],
) -> list[Check]:
    for need, (task, number) in needed.items():
        if not task.result()[number].passed:
            return [Check(name, None, f"not checked: it needs {need}") for name in names]
    try:
        return look()
    except Unknown as unknown:
        return [Check(name, None, str(unknown)) for name in names]
    except EmberlineError as error:
        return [Check(name, False, str(error)) for name in names]
