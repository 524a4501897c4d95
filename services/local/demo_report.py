"""The demo's numbers: `.medvr/demo/report.json` and its table.

Read from the reports that the evaluations wrote; nothing is measured here.
"""

import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from services.local.demo_settings import Arm, DemoPlan
from services.local.state import StackError
from shared.weights import ChannelPointer

Interval = tuple[float, float, float]
"""Mean, low, high: 95 % bootstrap over problems."""

BEFORE, AFTER = "before", "after"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one problem set; None where nothing could be measured."""

    accuracy: Interval
    hit_rate: Interval | None
    iou: Interval | None
    box_area: Interval | None
    mean_zooms: Interval


class EvaluationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of an evaluation's `report.json`."""

    metrics: Measured
    num_problems: int
    num_failed: int


class TrainingOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm's training came to; written when it ends."""

    run: str
    steps: int
    seconds: float
    final_version: ChannelPointer
    steps_until_hit_rate_60: int | None
    """First step whose hit rate on training problems, mean of five steps, reached 60 %; None:
    never. Computed beside the training from the true lesions, which it never saw."""
    cursor: int
    """Groups the feeder handed out."""
    fates: dict[str, int]
    """Groups by fate; they add up to the cursor."""


class TrainingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's training, and how good it was on the in-domain test set afterwards."""

    outcome: TrainingOutcome
    final_hit_rate: float | None
    final_accuracy: float


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`."""

    arms: dict[str, dict[str, dict[str, Measured]]]
    """Arm → problem set → `before` or `after`."""
    training: dict[str, TrainingSummary]
    steps: int
    seconds: float
    """All stages together."""
    stage_seconds: dict[str, float]
    seeds: dict[str, int]
    num_problems: dict[str, int]
    revision: str
    medvr_version: str
    plan: DemoPlan


def read_evaluation(folder: Path) -> EvaluationSummary:
    """The summary of a finished evaluation. Raises `StackError`."""
    path = folder / "report.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationSummary)
    except (OSError, msgspec.MsgspecError) as error:
        raise StackError(f"{path} is not the report of an evaluation: {error}") from error


def revision() -> str:
    """The commit this code is from, `+changes` if it was changed since; `unknown` without git."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_report(
    plan: DemoPlan,
    evaluations: Mapping[tuple[Arm, str, str], EvaluationSummary],
    outcomes: Mapping[Arm, TrainingOutcome],
    *,
    stage_seconds: Mapping[str, float],
    set_seeds: Mapping[str, int],
) -> DemoReport:
    """The report; `evaluations` is keyed by (arm, problem set, moment)."""
    arms: dict[str, dict[str, dict[str, Measured]]] = {}
    for (arm, test_set, moment), summary in evaluations.items():
        arms.setdefault(arm.value, {}).setdefault(test_set, {})[moment] = summary.metrics
    return DemoReport(
        arms=arms,
        training={
            arm.value: _training_summary(outcome, arms[arm.value][plan.test_sets[0]][AFTER])
            for arm, outcome in outcomes.items()
        },
        steps=plan.trainer.max_steps,
        seconds=sum(stage_seconds.values()),
        stage_seconds=dict(stage_seconds),
        seeds={"training": plan.seed, "evaluation": plan.evaluation_seed, **set_seeds},
        num_problems=dict.fromkeys(plan.test_sets, plan.num_test_problems),
        revision=revision(),
        medvr_version=version("medvr"),
        plan=plan,
    )


def _training_summary(outcome: TrainingOutcome, after: Measured) -> TrainingSummary:
    return TrainingSummary(
        outcome=outcome,
        final_hit_rate=None if after.hit_rate is None else after.hit_rate[0],
        final_accuracy=after.accuracy[0],
    )


def _cell(interval: Interval | None, *, per_cent: bool, digits: int | None = None) -> str:
    """`85.0 % (80.0–90.0)`; a dash where nothing is known."""
    if interval is None:
        return "—"
    factor, unit, usual = (100, " %", 1) if per_cent else (1, "", 2)
    shown = usual if digits is None else digits
    mean, low, high = (f"{factor * v:.{shown}f}" for v in interval)
    return f"{mean}{unit} ({low}–{high})"


def _mean_cell(interval: Interval | None, *, per_cent: bool) -> str:
    return _cell(interval, per_cent=per_cent).partition(" (")[0]


def table_rows(report: DemoReport, *, brief: bool = False) -> list[tuple[str, ...]]:
    """The before/after table as cells; the first row is the heading.

    `brief` fits on a terminal: whole per cents, intervals of accuracy and hit rate alone.
    """
    main_digits, other_cell = (0, _mean_cell) if brief else (None, _cell)
    rows: list[tuple[str, ...]] = [
        ("arm", "set", "moment", "accuracy", "zoom hit rate", "IoU", "box area", "zooms"),
    ]
    for arm, sets in report.arms.items():
        for test_set, moments in sets.items():
            for moment, m in moments.items():
                rows.append(
                    (
                        *(arm, test_set, moment),
                        _cell(m.accuracy, per_cent=True, digits=main_digits),
                        _cell(m.hit_rate, per_cent=True, digits=main_digits),
                        other_cell(m.iou, per_cent=False),
                        other_cell(m.box_area, per_cent=True),
                        other_cell(m.mean_zooms, per_cent=False),
                    )
                )
    return rows


def comparison_rows(report: DemoReport) -> list[tuple[str, ...]]:
    """Three numbers for each arm; the first row is the heading."""
    rows: list[tuple[str, ...]] = [
        ("arm", "final hit rate", "final accuracy", "steps until hit rate 60 %")
    ]
    for arm, training in report.training.items():
        hits = training.final_hit_rate
        until = training.outcome.steps_until_hit_rate_60
        rows.append(
            (
                arm,
                "—" if hits is None else f"{100 * hits:.1f} %",
                f"{100 * training.final_accuracy:.1f} %",
                f"not within {training.outcome.steps}" if until is None else str(until),
            )
        )
    return rows


def markdown_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a Markdown table."""
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_report(folder: Path, report: DemoReport) -> None:
    """Write `report.json` and `table.md`."""
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    text = markdown_table(table_rows(report))
    if len(report.training) > 1:
        text += "\n" + markdown_table(comparison_rows(report))
    text += (
        f"\n{report.steps} steps, {report.seconds / 60:.1f} minutes in all. Intervals: 95 % "
        "bootstrap over problems. Brain is what it was trained on (other slices and lesions); "
        "retina and CT it never saw. Phantoms, not patients: research use only.\n"
    )
    (folder / "table.md").write_text(text, encoding="utf-8")
