"""What an evaluation measures, as pure functions of boxes, lesions and answers.

All boxes are `Box`es in original pixels, half-open. Areas are exact: a union of rectangles is
measured on the compressed grid of its own coordinates, never on pixels. A figure that needs the
true lesion is None where the lesion is unknown; a mean skips those problems.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.geometry import Box, ImageSize

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean with its bootstrap interval; written as `[mean, low, high]`."""

    mean: float
    low: float
    high: float


class ProblemScore(msgspec.Struct, frozen=True, kw_only=True):
    """What one trajectory did on one problem."""

    accuracy: float
    """R_acc as the cca service gave it: 0 or 1."""
    hit: float | None
    """1 if a lesion's centre lies in a small enough box, else 0; None: lesion unknown."""
    iou: float | None
    """Of the union of the boxes with the union of the lesions; None: lesion unknown."""
    box_area: float | None
    """Mean area of its boxes as a share of the image; None: it never zoomed."""
    num_zooms: int
    """Crops it was shown."""
    num_turns: int
    answered: float
    """1 if it gave an answer, else 0."""
    well_formed: float
    """1 if every turn was well formed and every call parsed, else 0."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Means over a problem set, each with its interval; None where nothing could be measured."""

    accuracy: Interval
    hit_rate: Interval | None
    iou: Interval | None
    box_area: Interval | None
    mean_zooms: Interval
    mean_turns: Interval
    answered: Interval
    well_formed: Interval


def _covered_cells(boxes: Sequence[Box], xs: Sequence[int], ys: Sequence[int]) -> NDArray[np.bool_]:
    """Which cells of the grid with edges `xs`, `ys` the union of the boxes covers, [y, x]."""
    covered = np.zeros((len(ys) - 1, len(xs) - 1), dtype=np.bool_)
    for box in boxes:
        rows = slice(ys.index(box.y1), ys.index(box.y2))
        covered[rows, xs.index(box.x1) : xs.index(box.x2)] = True
    return covered


def union_iou(first: Sequence[Box], second: Sequence[Box]) -> float:
    """IoU of two unions of boxes, exact; 0 when either is empty."""
    first = [b for b in first if b.area_px > 0]
    second = [b for b in second if b.area_px > 0]
    if not first or not second:
        return 0.0
    xs = sorted({x for b in (*first, *second) for x in (b.x1, b.x2)})
    ys = sorted({y for b in (*first, *second) for y in (b.y1, b.y2)})
    cells = np.outer(np.diff(ys), np.diff(xs))
    in_first, in_second = _covered_cells(first, xs, ys), _covered_cells(second, xs, ys)
    intersection = int(cells[in_first & in_second].sum())
    return intersection / int(cells[in_first | in_second].sum())


def mean_box_area(boxes: Sequence[Box], image: ImageSize) -> float | None:
    """Mean area of the boxes as a share of the image; None without a box."""
    if not boxes:
        return None
    return sum(b.area_px for b in boxes) / len(boxes) / image.num_pixels


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval | None:
    """Mean of the values with its percentile bootstrap interval; None without a value.

    `NUM_RESAMPLES` resamples with replacement; the same values and seed give the same interval.
    """
    if not values:
        return None
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [rng.choice(sample, sample.size).mean() for _ in range(NUM_RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def summarise(scores: Sequence[ProblemScore], seed: int) -> Metrics:
    """All metrics of a problem set. Raises `ValueError` if there is no score."""
    if not scores:
        raise ValueError("no problem was scored, so there is nothing to summarise")

    def always(values: list[float]) -> Interval:
        interval = bootstrap_mean(values, seed)
        assert interval is not None
        return interval

    def known(values: list[float | None]) -> Interval | None:
        return bootstrap_mean([v for v in values if v is not None], seed)

    return Metrics(
        accuracy=always([s.accuracy for s in scores]),
        hit_rate=known([s.hit for s in scores]),
        iou=known([s.iou for s in scores]),
        box_area=known([s.box_area for s in scores]),
        mean_zooms=always([float(s.num_zooms) for s in scores]),
        mean_turns=always([float(s.num_turns) for s in scores]),
        answered=always([s.answered for s in scores]),
        well_formed=always([s.well_formed for s in scores]),
    )
