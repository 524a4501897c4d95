"""Live progress of a training run: a panel on a terminal, one line per step elsewhere."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.local.training_log import TrainingLog

_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 40
_SILENT_AT_MOST_S = 10.0
_ETA_STEPS = 10

_FIGURES: tuple[tuple[str, str], ...] = (
    ("reward", "reward"),
    ("  accuracy part", "reward_accuracy"),
    ("  format part", "reward_format"),
    ("  tool part", "reward_tool"),
    ("accuracy", "accuracy"),
    ("box area", "box_area"),
    ("zooms per trajectory", "zooms"),
    ("entropy (nats)", "entropy_nats"),
    ("entropy increase ΔH (nats)", "entropy_increase_nats"),
    ("mismatch KL", "mismatch_kl"),
)
"""What it is called, and its field in `steps.jsonl`."""


@dataclass(frozen=True)
class Surroundings:
    """What is known of a run besides its log."""

    num_fed: int = 0
    stream_length: int = 0
    """Groups waiting for the trainer."""
    outstanding: int = 0
    """Groups fed and without a fate."""
    fates: Mapping[str, int] = field(default_factory=dict[str, int])
    policy_version: str = "?"
    restarts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Processes that were started again after a crash."""


def sparkline(values: list[float]) -> str:
    """The last values as bars between their least and greatest."""
    shown = values[-_SPARK_WIDTH:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    if span == 0:
        return _SPARKS[0] * len(shown)
    return "".join(_SPARKS[int((v - low) / span * (len(_SPARKS) - 1))] for v in shown)


def seconds_left(log: TrainingLog, max_steps: int) -> float | None:
    """Steps to go times the pace of the last ten; None before there is a pace."""
    steps = log.steps[-_ETA_STEPS - 1 :]
    times = [log.figure(step, "time") for step in steps]
    known = [t for t in times if t is not None]
    if len(known) < 2:
        return None
    return (max_steps - steps[-1]) * (known[-1] - known[0]) / (len(known) - 1)


def span(seconds: float | None) -> str:
    """`4:05`, or a dash."""
    return "—" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _number(value: float | None, *, per_cent: bool = False) -> str:
    if value is None:
        return "—"
    return f"{100 * value:.1f} %" if per_cent else f"{value:.3f}"


class TrainingDisplay:
    """Shows a run while it goes on. Use as a context manager."""

    def __init__(self, console: Console, title: str, max_steps: int) -> None:
        self._console = console
        self._title = title
        self._max_steps = max_steps
        self._said_step = -1
        self._said_at = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> "TrainingDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, log: TrainingLog, around: Surroundings, elapsed_s: float) -> None:
        """Draw the run as it is now; `elapsed_s` is the time spent in training so far."""
        if self._console.is_terminal:
            self._live.update(self._panel(log, around, elapsed_s), refresh=True)
            return
        step = log.steps[-1] if log.steps else 0
        is_silent = time.monotonic() - self._said_at > _SILENT_AT_MOST_S
        if step != self._said_step or is_silent:
            self._said_step, self._said_at = step, time.monotonic()
            line = self._line(log, around, elapsed_s)
            self._console.print(line, highlight=False, soft_wrap=True)

    def _panel(self, log: TrainingLog, around: Surroundings, elapsed_s: float) -> Group:
        step = log.steps[-1] if log.steps else 0
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=self._max_steps, completed=step, width=40),
            f"step {step}/{self._max_steps}",
            f"{span(elapsed_s)} so far, {span(seconds_left(log, self._max_steps))} to go",
        )
        figures = Table.grid(padding=(0, 2))
        rates = list(log.hit_rates().values())
        figures.add_row(
            "zoom hit rate", _number(log.recent_hit_rate(), per_cent=True), sparkline(rates)
        )
        for title, name in _FIGURES:
            values = [v for s in log.steps if (v := log.figure(s, name)) is not None]
            shares = name in ("accuracy", "box_area")
            figures.add_row(title, _number(log.recent(name), per_cent=shares), sparkline(values))
        return Group(head, figures, Text(self._surroundings(around), style="dim"))

    @staticmethod
    def _surroundings(around: Surroundings) -> str:
        fates = ", ".join(f"{n} {fate}" for fate, n in sorted(around.fates.items())) or "none"
        text = (
            f"policy version {around.policy_version}; {around.num_fed} groups fed, "
            f"{around.outstanding} outstanding, {around.stream_length} on the stream; "
            f"fates: {fates}"
        )
        crashed = [f"{name} {n}×" for name, n in around.restarts.items() if n]
        return text + (f"; started again: {', '.join(crashed)}" if crashed else "")

    def _line(self, log: TrainingLog, around: Surroundings, elapsed_s: float) -> str:
        step = log.steps[-1] if log.steps else 0
        figures = ", ".join(
            f"{title.strip()} {_number(log.recent(name))}" for title, name in _FIGURES
        )
        hits = _number(log.recent_hit_rate(), per_cent=True)
        return (
            f"{self._title}: step {step}/{self._max_steps}, {span(elapsed_s)} so far, "
            f"{span(seconds_left(log, self._max_steps))} to go; zoom hit rate {hits}, {figures}; "
            f"{self._surroundings(around)}"
        )
