"""The numbers of a finished evaluation, as JSON for programs and Markdown for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from services.evaluation.metrics import Interval, Metrics, summarise
from services.evaluation.records import EvaluationConfig, EvaluationRecord
from shared.geometry import Box


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`."""

    config: EvaluationConfig
    metrics: Metrics
    """Each `[mean, low, high]`: 95 % percentile bootstrap over problems, 2,000 resamples."""
    num_problems: int
    num_failed: int
    """Of them, problems no trajectory could be had for; they count as wrong and unanswered."""
    num_with_lesions: int
    """Of them, problems whose true lesion is known."""
    stop_reasons: dict[str, int]
    policy_versions: list[int]
    """Versions that sampled at least one token."""
    problem_seconds: float
    """Mean time from beginning a problem to its record, waiting included."""


_ROWS: tuple[tuple[str, str, bool], ...] = (
    ("accuracy", "Accuracy", True),
    ("hit_rate", "Zoom hit rate", True),
    ("iou", "IoU of zooms with the lesion", False),
    ("box_area", "Box area, share of the image", True),
    ("mean_zooms", "Zooms per problem", False),
    ("mean_turns", "Turns per problem", False),
    ("answered", "Answered", True),
    ("well_formed", "Well formed", True),
)
"""Field of `Metrics`, what people call it, whether it is shown in per cent."""


def make_report(
    config: EvaluationConfig,
    records: Sequence[EvaluationRecord],
    lesions: Mapping[str, list[Box]],
) -> EvaluationReport:
    """The report of all records; `lesions` holds the true boxes by problem id where known."""
    scores = [r.score(lesions.get(r.problem_id)) for r in records]
    trajectories = [r.trajectory for r in records if r.trajectory is not None]
    versions = {
        span.version for t in trajectories for turn in t.turns
        for span in turn.generation.version_spans
    }  # fmt: skip
    return EvaluationReport(
        config=config,
        metrics=summarise(scores, config.seed),
        num_problems=len(records),
        num_failed=len(records) - len(trajectories),
        num_with_lesions=sum(s.hit is not None for s in scores),
        stop_reasons=dict(sorted(Counter(t.stop_reason.value for t in trajectories).items())),
        policy_versions=sorted(versions),
        problem_seconds=sum(r.seconds for r in records) / len(records),
    )


def _cell(interval: Interval | None, *, per_cent: bool) -> str:
    """`72.5 % (64.0 to 80.5)`; a dash where nothing could be measured."""
    if interval is None:
        return "—"
    factor, unit, digits = (100, " %", 1) if per_cent else (1, "", 2)
    mean, low, high = (f"{factor * v:.{digits}f}" for v in interval)
    return f"{mean}{unit} ({low} to {high})"


def render_table(report: EvaluationReport) -> str:
    """`table.md`: one row per metric, and the protocol it was measured with."""
    config = report.config
    lines = [
        f"| {config.problem_set.name}, {config.label} | mean (95 % interval) |",
        "|---|---|",
    ]
    for field, title, per_cent in _ROWS:
        lines.append(f"| {title} | {_cell(getattr(report.metrics, field), per_cent=per_cent)} |")
    versions = ", ".join(str(v) for v in report.policy_versions) or "none"
    lines += [
        "",
        f"{report.num_problems} problems ({report.num_failed} failed, "
        f"{report.num_with_lesions} with a known lesion), one trajectory each at temperature "
        f"{config.temperature}, seed {config.seed}; policy {config.model}, run {config.run}, "
        f"version {versions}. A hit: the lesion's centre inside a box of at most a ninth of the "
        "image. Intervals: percentile bootstrap over problems, 2,000 resamples.",
        "",
    ]
    return "\n".join(lines)


def write_report(folder: Path, report: EvaluationReport) -> None:
    """Write `report.json` and `table.md`."""
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    (folder / "table.md").write_text(render_table(report), encoding="utf-8")
