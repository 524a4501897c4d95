"""Regions on the compressed grid against masks of pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cca.consensus import TooManyCells, find_consensus
from services.cca.regions import area_px, run_lengths
from shared.geometry import Box, ImageSize

IMAGE = ImageSize(23, 17)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x1 = draw(st.integers(0, IMAGE.width_px - 1))
    y1 = draw(st.integers(0, IMAGE.height_px - 1))
    x2 = draw(st.integers(x1 + 1, IMAGE.width_px))
    y2 = draw(st.integers(y1 + 1, IMAGE.height_px))
    return Box(x1, y1, x2, y2)


box_lists = st.lists(boxes(), max_size=5)


def union(boxes: list[Box]) -> list[Box]:
    """M_i as disjoint rectangles: the consensus of one."""
    return find_consensus([boxes], [0], max_grid_cells=10_000).region


def painted(region: list[Box]) -> np.ndarray:
    """The oracle: a mask of pixels."""
    mask = np.zeros((IMAGE.height_px, IMAGE.width_px), dtype=bool)
    for box in region:
        mask[box.y1 : box.y2, box.x1 : box.x2] = True
    return mask


def unrolled(lengths: list[int]) -> np.ndarray:
    """Run lengths to pixels: zeros first."""
    values = np.arange(len(lengths)) % 2
    return np.repeat(values, lengths).astype(bool).reshape(IMAGE.height_px, IMAGE.width_px)


def num_covering(region: list[Box]) -> np.ndarray:
    counts = np.zeros((IMAGE.height_px, IMAGE.width_px), dtype=int)
    for box in region:
        counts[box.y1 : box.y2, box.x1 : box.x2] += 1
    return counts


@settings(deadline=None)
@given(box_lists)
def test_a_union_covers_the_same_pixels_once_each(given_boxes: list[Box]) -> None:
    region = union(given_boxes)
    assert np.array_equal(num_covering(region), painted(given_boxes).astype(int))
    assert area_px(region) == int(painted(given_boxes).sum())
    assert region == sorted(region, key=lambda box: (box.y1, box.x1))


@settings(deadline=None)
@given(box_lists)
def test_run_lengths_unroll_to_the_mask_with_no_empty_run_but_the_first(
    given_boxes: list[Box],
) -> None:
    lengths = run_lengths(union(given_boxes), IMAGE)
    assert np.array_equal(unrolled(lengths), painted(given_boxes))
    assert sum(lengths) == IMAGE.num_pixels
    assert all(length > 0 for length in lengths[1:])


@settings(deadline=None)
@given(box_lists)
def test_rectangles_are_maximal(given_boxes: list[Box]) -> None:
    """No rectangle could be widened by a pixel, and none stacks on one of the same width."""
    region = union(given_boxes)
    mask = np.pad(painted(given_boxes), 1)
    for box in region:
        left = mask[box.y1 + 1 : box.y2 + 1, box.x1]
        right = mask[box.y1 + 1 : box.y2 + 1, box.x2 + 1]
        assert not left.any()
        assert not right.any()
    tops = {(box.x1, box.x2, box.y1) for box in region}
    assert not any((box.x1, box.x2, box.y2) in tops for box in region)


@settings(deadline=None)
@given(st.lists(box_lists, min_size=1, max_size=6), st.data())
def test_consensus_and_iou_are_those_of_the_pixels(
    trajectories: list[list[Box]], data: st.DataObject
) -> None:
    indices = range(len(trajectories))
    agreeing = sorted(data.draw(st.sets(st.sampled_from(indices))))
    masks = np.stack([painted(own) for own in trajectories])
    majority = 2 * masks[agreeing].sum(axis=0) > len(agreeing)

    consensus = find_consensus(trajectories, agreeing, max_grid_cells=10_000)

    assert np.array_equal(painted(consensus.region), majority)
    assert np.array_equal(num_covering(consensus.region), majority.astype(int))
    for mask, iou in zip(masks, consensus.ious, strict=True):
        shared, joined = int((mask & majority).sum()), int((mask | majority).sum())
        expected = shared / joined if mask.any() and majority.any() else 0.0
        assert iou == expected


def test_two_overlapping_squares_become_three_rectangles() -> None:
    region = union([Box(0, 0, 4, 4), Box(2, 2, 6, 6)])
    assert region == [Box(0, 0, 4, 2), Box(0, 2, 6, 4), Box(2, 4, 6, 6)]
    assert area_px(region) == 28


def test_rectangles_of_one_width_are_merged_downwards() -> None:
    assert union([Box(1, 1, 5, 3), Box(1, 3, 5, 9), Box(2, 2, 4, 6)]) == [Box(1, 1, 5, 9)]


def test_nothing_is_nowhere() -> None:
    nothing = find_consensus([[], []], [0, 1], max_grid_cells=0)
    assert nothing.grid.num_cells == 0
    assert nothing.counts.shape == (0, 0)
    assert nothing.ious == [0.0, 0.0]
    assert union([]) == []
    assert run_lengths([], ImageSize(4, 3)) == [12]


def test_a_mask_that_begins_at_the_first_pixel_has_an_empty_first_run() -> None:
    assert run_lengths([Box(0, 0, 4, 2)], ImageSize(4, 3)) == [0, 8, 4]
    assert run_lengths([Box(0, 0, 4, 3)], ImageSize(4, 3)) == [0, 12]
    assert run_lengths([Box(1, 0, 4, 1), Box(0, 1, 2, 2)], ImageSize(4, 3)) == [1, 5, 6]


def test_areas_are_exact_beyond_32_bits() -> None:
    side = 10**6
    region = union([Box(0, 0, side, side), Box(side - 1, side - 1, side, side)])
    assert area_px(region) == 10**12


def test_boxes_of_one_trajectory_are_counted_before_their_union_is_made() -> None:
    """Their own grid alone would take terabytes."""
    steps = [Box(i, i, i + 1, i + 1) for i in range(400_000)]
    with pytest.raises(TooManyCells, match="at most 16000000 are scored"):
        find_consensus([steps], [0], max_grid_cells=16_000_000)
