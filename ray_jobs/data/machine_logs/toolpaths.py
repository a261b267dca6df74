"""Programs for a small three-axis mill: facing, pocketing, contouring, adaptive clearing.

All lengths are in inches, feeds in inches a minute, as on the machine whose logs they resemble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KINDS = ("face", "pocket", "contour", "adaptive")
RAPID_FEED = 100.0
PLUNGE_FEED = 7.3
SAFE_Z, NEAR_Z = 0.6, 0.2
HOME = (3.8, 2.3, 1.0)

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Move:
    """One line of a program and the motion that it makes."""

    text: str
    command: str  # G0, G1, G2, G3, M30
    start: Point
    end: Point
    radius: float  # of an arc; 0: straight
    feed: float
    cuts: bool  # whether the tool is in the material


class _Program:
    """Writes moves as a post-processor does: commands, coordinates and feeds only when they
    change."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self._at: Point = HOME
        self._command = ""
        self._feed = 0.0

    def go(
        self,
        command: str,
        x: float | None = None,
        y: float | None = None,
        z: float | None = None,
        *,
        radius: float = 0.0,
        feed: float = 0.0,
    ) -> None:
        old = self._at
        given = (old[0] if x is None else x, old[1] if y is None else y, old[2] if z is None else z)
        end = (round(given[0], 4), round(given[1], 4), round(given[2], 4))
        words = [command] if command != self._command else []
        words += [
            f"{name}{_number(new)}"
            for name, new, before in zip("XYZ", end, old, strict=True)
            if new != before
        ]
        if radius:
            words.append(f"R{_number(radius)}")
        if feed and feed != self._feed:
            words.append(f"F{_number(feed)}")
            self._feed = feed
        speed = RAPID_FEED if command == "G0" else self._feed
        text = " ".join(words)
        self.moves.append(
            Move(text, command, old, end, radius, speed, command != "G0" and end[2] < 0.1)
        )
        self._at, self._command = end, command

    def enter(self, x: float, y: float, z: float) -> None:
        """Rapid to above a point, then plunge."""
        self.go("G0", x, y)
        self.go("G0", z=NEAR_Z)
        self.go("G1", z=z, feed=PLUNGE_FEED)

    def leave(self) -> None:
        self.go("G0", z=SAFE_Z)

    def end(self) -> list[Move]:
        self.go("G0", *HOME)
        self.moves.append(Move("M30", "M30", self._at, self._at, 0.0, 0.0, False))
        return self.moves


def _number(value: float) -> str:
    """As CAM software writes it: no trailing zeros, and always a point."""
    return f"{value + 0.0:.4f}".rstrip("0")  # + 0.0: no negative zero


def program(kind: str, rng: np.random.Generator) -> list[Move]:
    """The moves of a program of this kind, its sizes drawn."""
    path = _Program()
    feed = float(rng.choice([13.0, 16.0, 22.0]))
    _KINDS[kind](path, rng, feed)
    path.leave()
    return path.end()


def _face(path: _Program, rng: np.random.Generator, feed: float) -> None:
    """Parallel passes joined by half circles, a layer or two."""
    x0, x1 = rng.uniform(0.0, 0.4), rng.uniform(2.0, 3.2)
    step = rng.uniform(0.15, 0.25)
    passes = int(rng.integers(5, 9))
    y = rng.uniform(0.0, 0.5)
    path.enter(x0, y, -0.01)
    path.go("G1", x1, feed=feed)
    for k in range(1, passes):
        to_right = k % 2 == 0
        y += step
        path.go("G2" if to_right else "G3", y=y, radius=step / 2)
        path.go("G1", x1 if to_right else x0)


def _pocket(path: _Program, rng: np.random.Generator, feed: float) -> None:
    """Growing rectangles with rounded corners, layer by layer."""
    x, y = rng.uniform(1.2, 2.0), rng.uniform(1.0, 1.5)
    width, height = rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.7)
    corner = rng.uniform(0.05, 0.1)
    path.enter(x, y, 0.02)
    for depth in np.arange(1, int(rng.integers(2, 4))) * -0.06:
        path.go("G1", z=float(depth), feed=PLUNGE_FEED)
        for share in (0.4, 0.7, 1.0):
            w, h = share * width, share * height
            path.go("G1", x - w + corner, y - h, feed=feed)
            path.go("G1", x + w - corner)
            path.go("G3", x + w, y - h + corner, radius=corner)
            path.go("G1", y=y + h - corner)
            path.go("G3", x + w - corner, y + h, radius=corner)
            path.go("G1", x - w + corner)
            path.go("G3", x - w, y + h - corner, radius=corner)
            path.go("G1", y=y - h + corner)
            path.go("G3", x - w + corner, y - h, radius=corner)


def _contour(path: _Program, rng: np.random.Generator, feed: float) -> None:
    """Circles and a slot, each entered from above."""
    for _ in range(int(rng.integers(3, 5))):
        x, y, radius = rng.uniform(0.8, 2.8), rng.uniform(0.7, 1.7), rng.uniform(0.2, 0.45)
        depth = -rng.uniform(0.05, 0.12)
        path.enter(x + radius, y, depth)
        path.go("G3", x - radius, y, radius=radius, feed=feed)
        path.go("G3", x + radius, y, radius=radius)
        path.go("G2", x, y - radius, radius=radius)
        path.go("G1", x - radius)
        path.leave()


def _adaptive(path: _Program, rng: np.random.Generator, feed: float) -> None:
    """A helix of short lines down into the material, then a spiral of them outwards."""
    x, y, r = rng.uniform(1.3, 2.0), rng.uniform(1.2, 1.6), rng.uniform(0.1, 0.15)
    path.enter(x + r, y, 0.05)
    angles = np.arange(1, 61) * (2 * np.pi / 20)
    for angle in angles:
        z = 0.05 - 0.1 * angle / angles[-1]
        path.go("G1", x + r * np.cos(angle), y + r * np.sin(angle), z, feed=PLUNGE_FEED)
    spiral = np.arange(1, 161) * (2 * np.pi / 24)
    for angle in spiral:
        grown = r + 0.45 * angle / spiral[-1]
        path.go("G1", x + grown * np.cos(angle), y + grown * np.sin(angle), feed=feed)


_KINDS: dict[str, Callable[[_Program, np.random.Generator, float], None]] = {
    "face": _face, "pocket": _pocket, "contour": _contour, "adaptive": _adaptive
}  # fmt: skip
