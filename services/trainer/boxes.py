"""`<run folder>/boxes.jsonl`: where the trajectories of each step looked, for whoever watches.

One line per step with every consumed group. The trainer knows no lesion; a display that does can
turn these boxes into a hit rate without the truth ever coming near the training. A step that was
taken again after a crash has a second line, and the last one counts.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from shared.trajectory import TrajectoryGroup


class GroupBoxes(msgspec.Struct, frozen=True):
    """Where the trajectories of one group looked."""

    group_id: str
    problem_id: str
    boxes: list[list[tuple[int, int, int, int]]]
    """One list per trajectory: (x1, y1, x2, y2) as cropped and shown, in original pixels."""


class StepBoxes(msgspec.Struct, frozen=True):
    """A line of boxes.jsonl."""

    step: int
    groups: list[GroupBoxes]


def append_boxes(path: Path, step: int, groups: Sequence[TrajectoryGroup]) -> None:
    """Add the line of a step; a line torn by a kill is cut off first."""
    line = StepBoxes(
        step=step,
        groups=[
            GroupBoxes(
                group_id=group.group_id,
                problem_id=group.problem_id,
                boxes=[[box.as_tuple() for box in t.boxes] for t in group.trajectories],
            )
            for group in groups
        ],
    )
    path.touch()
    with path.open("r+b") as file:
        written = file.read()
        file.seek(written.rfind(b"\n") + 1)
        file.truncate()
        file.write(msgspec.json.encode(line) + b"\n")
