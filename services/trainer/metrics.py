"""Where a step's figures go: Prometheus, TensorBoard and steps.jsonl, under the same names.

`services.trainer.record.StepRecord` documents every field. boxes.jsonl beside it holds where each
consumed group looked, so that whoever knows the true lesions can tell the hit rate; the trainer
does not. Both files hold each step once: a resumed run first drops the lines after its checkpoint,
because it takes those steps again.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from torch.utils.tensorboard import SummaryWriter

from services.trainer.record import GroupBoxes, StepRecord
from shared.stream import Fate
from shared.trajectory import TrajectoryGroup

PREFIX = "medvr_trainer_"

_NUMERIC = tuple(name for name in StepRecord.__struct_fields__ if name != "time")


class Recorder:
    """Prometheus, TensorBoard and steps.jsonl of one run."""

    def __init__(self, registry: CollectorRegistry, folder: Path, resumed_at_step: int) -> None:
        self._gauges = {
            name: Gauge(f"{PREFIX}{name}", f"{name} of the last step.", registry=registry)
            for name in _NUMERIC
        }
        self._tokens = Counter(f"{PREFIX}tokens", "Tokens trained.", registry=registry)
        self._closed = Counter(
            f"{PREFIX}groups",
            "Groups closed by this process, by fate.",
            ["fate"],
            registry=registry,
        )
        self._staleness = Histogram(
            f"{PREFIX}group_staleness",
            "Steps a consumed group was behind.",
            buckets=(0, 1, 2, 3, 4, 6, 8, 16),
            registry=registry,
        )
        self._staleness_steps: list[int] = []
        self._waiting = Gauge(
            f"{PREFIX}waiting_for_groups",
            "Groups still missing for the next step.",
            registry=registry,
        )
        self.published_version = Gauge(
            f"{PREFIX}published_version", "Version last published.", registry=registry
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._steps = folder / "steps.jsonl"
        self._boxes = folder / "boxes.jsonl"
        _drop_lines_after(self._steps, StepRecord, resumed_at_step)
        _drop_lines_after(self._boxes, GroupBoxes, resumed_at_step)
        self._board: SummaryWriter = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resumed_at_step + 1
        )

    def count_fate(self, fate: Fate, num_groups: int = 1) -> None:
        """Groups were closed."""
        self._closed.labels(fate.value).inc(num_groups)

    def observe_staleness(self, steps: int) -> None:
        """A group was consumed this many steps after its oldest token."""
        self._staleness.observe(steps)
        self._staleness_steps.append(steps)

    def set_missing(self, num_groups: int) -> None:
        """So many groups with signal are still missing for the next step."""
        self._waiting.set(num_groups)

    def set_queue(self, figures: Mapping[str, float]) -> None:
        """How the queue stands while the trainer waits; a step's record sets them too."""
        for name, value in figures.items():
            self._gauges[name].set(value)

    def write(self, record: StepRecord, consumed: Sequence[TrajectoryGroup]) -> None:
        """Put a step's figures everywhere, and where its groups looked beside them."""
        self._tokens.inc(record.tokens_trained)
        for name in _NUMERIC:
            value = float(getattr(record, name))
            self._gauges[name].set(value)
            self._board.add_scalar(f"{PREFIX}{name}", value, record.step)
        if self._staleness_steps:
            steps = np.array(self._staleness_steps)
            self._board.add_histogram(f"{PREFIX}group_staleness", steps, record.step)
            self._staleness_steps.clear()
        self._board.flush()
        _append(self._boxes, [GroupBoxes.of(group, record.step) for group in consumed])
        _append(self._steps, [record])

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        self._board.close()


Line = TypeVar("Line", StepRecord, GroupBoxes)


def _append(path: Path, lines: Sequence[msgspec.Struct]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _drop_lines_after(path: Path, kind: type[Line], step: int) -> None:
    """Keep the whole lines of steps up to `step`; atomically."""
    if not path.is_file():
        return
    kept = [line for line in read_lines(path, kind) if line.step <= step]
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(b"")
    _append(temporary, kept)
    os.replace(temporary, path)


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """The records of a file; a torn last line (of a killed process) is left out."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [msgspec.json.decode(line, type=kind) for line in lines if line.endswith(b"\n")]
