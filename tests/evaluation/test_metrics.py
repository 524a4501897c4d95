"""What an evaluation measures, checked with figures that can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.evaluation.metrics import (
    Interval,
    ProblemScore,
    bootstrap_mean,
    mean_box_area,
    summarise,
    union_iou,
)
from shared.geometry import Box, ImageSize
from shared.hits import is_hit

IMAGE = ImageSize(90, 90)
LESION = Box(40, 40, 50, 50)


def test_a_box_over_the_lesions_centre_is_a_hit() -> None:
    assert is_hit([Box(0, 0, 9, 9), Box(30, 30, 60, 60)], [LESION], IMAGE)


def test_a_box_larger_than_a_ninth_of_the_image_hits_nothing() -> None:
    assert not is_hit([Box(30, 30, 61, 60)], [LESION], IMAGE)
    assert not is_hit([Box.whole(IMAGE)], [LESION], IMAGE)


def test_a_box_that_touches_the_lesion_but_not_its_centre_misses() -> None:
    assert not is_hit([Box(30, 30, 45, 45)], [LESION], IMAGE)  # half-open: 45 is outside
    assert is_hit([Box(30, 30, 46, 46)], [LESION], IMAGE)


def test_one_of_several_lesions_is_enough() -> None:
    assert is_hit([Box(0, 0, 10, 10)], [LESION, Box(2, 2, 6, 6)], IMAGE)
    assert not is_hit([], [LESION], IMAGE)


def test_overlapping_boxes_are_counted_once() -> None:
    # Union 15 x 10 = 150, lesion inside it 10 x 10.
    assert union_iou([Box(0, 0, 10, 10), Box(5, 0, 15, 10)], [Box(0, 0, 10, 10)]) == 100 / 150


def test_disjoint_and_empty_unions_have_no_overlap() -> None:
    assert union_iou([Box(0, 0, 10, 10)], [Box(10, 0, 20, 10)]) == 0.0
    assert union_iou([], [LESION]) == 0.0
    assert union_iou([Box(3, 3, 3, 9)], [LESION]) == 0.0


def _boxes(side: int) -> st.SearchStrategy[list[Box]]:
    pair = st.tuples(st.integers(0, side - 1), st.integers(1, side)).filter(lambda p: p[0] < p[1])
    box = st.tuples(pair, pair).map(lambda p: Box(p[0][0], p[1][0], p[0][1], p[1][1]))
    return st.lists(box, min_size=1, max_size=5)


@given(_boxes(24), _boxes(24))
def test_the_exact_iou_is_that_of_the_pixels(first: list[Box], second: list[Box]) -> None:
    masks = np.zeros((2, 24, 24), dtype=bool)
    for mask, boxes in zip(masks, (first, second), strict=True):
        for box in boxes:
            mask[box.y1 : box.y2, box.x1 : box.x2] = True
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert union_iou(first, second) == pytest.approx(expected, abs=1e-12)


def test_box_area_is_a_share_of_the_image() -> None:
    assert mean_box_area([Box(0, 0, 9, 9), Box(0, 0, 27, 9)], IMAGE) == (81 + 243) / 2 / 8100
    assert mean_box_area([], IMAGE) is None


def test_a_bootstrap_interval_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 60 + [0.0] * 40
    interval = bootstrap_mean(values, seed=1)
    assert interval is not None
    half_width = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert interval.mean == 0.6
    assert interval.low == pytest.approx(0.6 - half_width, abs=0.02)
    assert interval.high == pytest.approx(0.6 + half_width, abs=0.02)


def test_a_bootstrap_interval_depends_on_values_and_seed_alone() -> None:
    values = [0.1, 0.7, 0.4, 0.9, 0.2]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean([1.0, 1.0], seed=0) == Interval(1.0, 1.0, 1.0)
    assert bootstrap_mean([], seed=0) is None


def _score(**changed: float | None) -> ProblemScore:
    score = {
        "accuracy": 1.0,
        "hit": 1.0,
        "iou": 0.5,
        "box_area": 0.1,
        "num_zooms": 1,
        "num_turns": 2,
        "answered": 1.0,
        "well_formed": 1.0,
    }
    return ProblemScore(**{**score, **changed})  # pyright: ignore[reportArgumentType]


def test_a_summary_is_of_the_problems_where_a_figure_is_known() -> None:
    never_zoomed = _score(hit=0.0, iou=0.0, box_area=None, num_zooms=0, num_turns=1)
    metrics = summarise([_score(), never_zoomed, _score(accuracy=0.0, hit=None, iou=None)], seed=0)
    assert metrics.accuracy.mean == pytest.approx(2 / 3)
    assert metrics.hit_rate is not None
    assert metrics.hit_rate.mean == 0.5
    assert metrics.iou is not None
    assert metrics.iou.mean == 0.25
    assert metrics.box_area == Interval(0.1, 0.1, 0.1)
    assert metrics.mean_zooms.mean == pytest.approx(2 / 3)
    assert metrics.mean_turns.mean == pytest.approx(5 / 3)


def test_without_lesions_hits_and_overlap_are_unknown_not_zero() -> None:
    metrics = summarise([_score(hit=None, iou=None)], seed=0)
    assert metrics.hit_rate is None
    assert metrics.iou is None


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="no problem was scored"):
        summarise([], seed=0)
