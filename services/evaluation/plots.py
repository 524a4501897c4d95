"""Pictures of an evaluation: what the policy looked at, and how often that was right.

Colours: the true lesion is green, the boxes the policy zoomed on are orange, in the order of
their numbers. Everything is drawn on the original image, in its own pixels.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from services.evaluation.metrics import Interval
from services.evaluation.records import EvaluationRecord
from services.evaluation.report import EvaluationReport
from shared.geometry import Box

mpl.use("Agg")

_LESION_COLOUR = "#00c853"
_ZOOM_COLOUR = "#ff9100"
_COLUMNS = 4


def _draw_box(axes: Axes, box: Box, colour: str, text: str = "") -> None:
    # Pixel n spans [n - 0.5, n + 0.5) in imshow's coordinates.
    corner = (box.x1 - 0.5, box.y1 - 0.5)
    axes.add_patch(
        Rectangle(corner, box.width_px, box.height_px, fill=False, edgecolor=colour, linewidth=1.5)
    )
    if text:
        axes.text(box.x1 + 2, box.y1 + 2, text, color=colour, fontsize=7, va="top")


def _draw_example(axes: Axes, png: bytes, record: EvaluationRecord, lesions: Sequence[Box]) -> None:
    axes.imshow(Image.open(io.BytesIO(png)).convert("RGB"))
    axes.set_axis_off()
    for lesion in lesions:
        _draw_box(axes, lesion, _LESION_COLOUR)
    trajectory = record.trajectory
    for number, box in enumerate(trajectory.boxes if trajectory else [], start=1):
        _draw_box(axes, box, _ZOOM_COLOUR, str(number))
    answer = (trajectory.answer if trajectory else None) or "no answer"
    mark = "right" if record.accuracy > 0 else f"wrong, is {record.gold_answer[:12]}"
    axes.set_title(f"{answer[:12]}: {mark}", fontsize=8)


def draw_gallery(
    path: Path,
    examples: Sequence[tuple[EvaluationRecord, bytes]],
    lesions: Mapping[str, list[Box]],
    title: str,
) -> None:
    """Originals (PNG bytes) with the true lesion and the boxes, `_COLUMNS` a row."""
    num_rows = -(-len(examples) // _COLUMNS)
    figure = Figure(figsize=(2.6 * _COLUMNS, 2.8 * num_rows + 0.5), layout="constrained")
    figure.suptitle(f"{title}: lesion green, zooms orange", fontsize=10)
    grid = figure.subplots(num_rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (record, png) in zip(grid.flat, examples, strict=False):
        _draw_example(axes, png, record, lesions.get(record.problem_id, []))
    figure.savefig(path, dpi=110)


def draw_bars(path: Path, report: EvaluationReport) -> None:
    """Accuracy, hit rate and IoU with their intervals."""
    named: list[tuple[str, Interval | None]] = [
        ("accuracy", report.metrics.accuracy),
        ("zoom hit rate", report.metrics.hit_rate),
        ("IoU", report.metrics.iou),
        ("well formed", report.metrics.well_formed),
    ]
    known = [(name, interval) for name, interval in named if interval is not None]
    figure = Figure(figsize=(1.2 * len(known) + 1.5, 3.2), layout="constrained")
    axes = figure.subplots()
    means = [interval.mean for _, interval in known]
    below = [max(0.0, interval.mean - interval.low) for _, interval in known]
    above = [max(0.0, interval.high - interval.mean) for _, interval in known]
    axes.bar([name for name, _ in known], means, yerr=[below, above], capsize=4, color="#4c78a8")
    axes.set_ylim(0, 1)
    axes.set_title(f"{report.config.problem_set.name}, {report.config.label}", fontsize=10)
    axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)
