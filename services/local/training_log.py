"""What a training run has written so far, read while it goes on.

`steps.jsonl` has one line per step, `boxes.jsonl` one line per group that the trainer took in
(boxes as cropped, one list per trajectory). The true lesions are joined with the boxes here, in
the process that watches: they never reach the trainer. A trainer that was killed replaces both
files without the steps that it takes again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from shared.geometry import Box, ImageSize
from shared.hits import is_hit
from shared.problem import read_lesions, read_problems

SMOOTHED_STEPS = 5


class GroupBoxes(msgspec.Struct, frozen=True):
    """A line of `boxes.jsonl`."""

    step: int
    group_id: str
    problem_id: str
    boxes: list[list[tuple[int, int, int, int]]]
    """One list per trajectory: (x1, y1, x2, y2) in original pixels."""


class _GrowingFile:
    """Hands out the complete lines that were added since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0

    def new_lines(self) -> tuple[list[bytes], bool]:
        """The lines, and whether these are all there are because the file was replaced."""
        if not self._path.is_file():
            return [], False
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            is_replaced = inode != self._inode
            if is_replaced:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines(), is_replaced


class Truth:
    """The true lesions of a problem set, for whoever watches a training run."""

    def __init__(self, problem_set: Path) -> None:
        self._lesions = read_lesions(problem_set)
        self._sizes: dict[str, ImageSize] = {
            p.problem_id: p.image_size for p in read_problems(problem_set)
        }

    def hit_share(self, group: GroupBoxes) -> float:
        """Share of a group's trajectories that hit the lesion."""
        lesions, size = self._lesions[group.problem_id], self._sizes[group.problem_id]
        hits = [is_hit([Box(*b) for b in boxes], lesions, size) for boxes in group.boxes]
        return sum(hits) / len(hits)


class TrainingLog:
    """Steps and hit rates of a run; `refresh` reads what is new."""

    def __init__(self, run_folder: Path, truth: Truth) -> None:
        self._steps_file = _GrowingFile(run_folder / "steps.jsonl")
        self._boxes_file = _GrowingFile(run_folder / "boxes.jsonl")
        self._truth = truth
        self._figures: dict[int, dict[str, float]] = {}
        self._hits: dict[int, dict[str, float]] = {}

    def refresh(self) -> None:
        """Read the lines that were added; forget those that a resumed trainer has dropped."""
        lines, is_replaced = self._steps_file.new_lines()
        if is_replaced:
            self._figures.clear()
        for line in lines:
            figures = cast("dict[str, float]", json.loads(line))
            self._figures[int(figures["step"])] = figures
        lines, is_replaced = self._boxes_file.new_lines()
        if is_replaced:
            self._hits.clear()
        for line in lines:
            group = msgspec.json.decode(line, type=GroupBoxes)
            self._hits.setdefault(group.step, {})[group.group_id] = self._truth.hit_share(group)

    @property
    def steps(self) -> list[int]:
        """Steps that were finished, in order."""
        return sorted(self._figures)

    def figure(self, step: int, name: str) -> float | None:
        """A figure of a step; None if the step has none of that name."""
        value = self._figures[step].get(name)
        return None if value is None else float(value)

    def hit_rate(self, step: int) -> float | None:
        """Mean over the groups taken in for a step of the share of hits; None without groups."""
        shares = self._hits.get(step)
        return sum(shares.values()) / len(shares) if shares else None

    def hit_rates(self) -> dict[int, float]:
        """By step, where known."""
        rates = {step: self.hit_rate(step) for step in self.steps}
        return {step: rate for step, rate in rates.items() if rate is not None}

    def recent(self, name: str) -> float | None:
        """Mean of a figure over the last few steps; None if none of them has it."""
        values = [self.figure(step, name) for step in self.steps[-SMOOTHED_STEPS:]]
        return mean([v for v in values if v is not None])

    def recent_hit_rate(self) -> float | None:
        """Mean hit rate over the last few steps."""
        return mean(list(self.hit_rates().values())[-SMOOTHED_STEPS:])


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None without a value."""
    return sum(values) / len(values) if values else None


def steps_until(rates: Mapping[int, float], threshold: float) -> int | None:
    """First step at which the mean of the last `SMOOTHED_STEPS` rates reaches the threshold.

    None if it never does. Rates are in the order of their steps; fewer than five do not count.
    """
    steps = list(rates)
    for end in range(SMOOTHED_STEPS, len(steps) + 1):
        window = [rates[step] for step in steps[end - SMOOTHED_STEPS : end]]
        if sum(window) / SMOOTHED_STEPS >= threshold:
            return steps[end - 1]
    return None
