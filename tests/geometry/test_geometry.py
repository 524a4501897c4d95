"""Boxes and view sizes: METHOD.md's rules, and Qwen's own arithmetic as the oracle."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.trainer.torchvision_ops import declare_missing_operators
from shared.geometry import (
    BadBox,
    BadBoxReason,
    Box,
    ImageSize,
    PixelLimits,
    original_to_view,
    place_box,
    smart_resize,
    view_to_original,
)

declare_missing_operators()

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (  # noqa: E402 - after them
    smart_resize as qwen_smart_resize,
)

ORIGINAL = ImageSize(336, 224)

sizes = st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000))
corners = st.floats(-500, 6000, allow_nan=False)


@given(sizes, st.integers(784, 300_000), st.integers(1, 60))
def test_smart_resize_is_qwens(size: ImageSize, min_pixels: int, ratio: int) -> None:
    assume(max(size.width_px, size.height_px) <= 200 * min(size.width_px, size.height_px))
    limits = PixelLimits(min_pixels, min_pixels * ratio)
    height, width = qwen_smart_resize(
        size.height_px,
        size.width_px,
        factor=28,
        min_pixels=limits.min_pixels,
        max_pixels=limits.max_pixels,
    )
    assert smart_resize(size, limits) == ImageSize(width, height)


def test_smart_resize_refuses_what_qwen_refuses() -> None:
    limits = PixelLimits(784, 10**6)
    assert smart_resize(ImageSize(200, 1), limits).height_px == 28
    with pytest.raises(ValueError, match="aspect ratio"):
        qwen_smart_resize(1, 201, factor=28, min_pixels=784, max_pixels=10**6)
    with pytest.raises(BadBox, match="201x1 px is too elongated") as caught:
        smart_resize(ImageSize(201, 1), limits)
    assert caught.value.reason is BadBoxReason.ASPECT_RATIO


def test_the_tiny_policys_view_and_its_tokens() -> None:
    view = smart_resize(ImageSize(336, 336), PixelLimits(168 * 168, 168 * 168))
    assert view == ImageSize(168, 168)
    assert view.num_image_tokens == 36


def test_a_box_inside_is_rounded_outwards() -> None:
    assert place_box((10.2, 20.9, 60.1, 70.0), ORIGINAL) == Box(10, 20, 61, 70)


def test_a_box_is_clamped_to_the_image() -> None:
    assert place_box((-50, -1, 100, 900), ORIGINAL) == Box(0, 0, 100, 224)


def test_a_small_box_grows_around_its_centre_and_is_shifted_into_the_frame() -> None:
    assert place_box((100, 100, 104, 110), ORIGINAL) == Box(88, 91, 116, 119)
    assert place_box((0, 0, 4, 4), ORIGINAL) == Box(0, 0, 28, 28)
    assert place_box((330, 220, 336, 224), ORIGINAL) == Box(308, 196, 336, 224)


def test_a_box_cannot_outgrow_a_small_image() -> None:
    assert place_box((3, 3, 5, 5), ImageSize(20, 50)) == Box(0, 0, 20, 28)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((math.nan, 0, 10, 10), BadBoxReason.NOT_FINITE),
        ((0, 0, math.inf, 10), BadBoxReason.NOT_FINITE),
        ((10, 0, 10, 10), BadBoxReason.EMPTY),
        ((10, 20, 30, 5), BadBoxReason.EMPTY),
        ((336, 0, 400, 50), BadBoxReason.OUTSIDE),
        ((0, -80, 50, 0), BadBoxReason.OUTSIDE),
        ((0, 0, 300, 2.9), BadBoxReason.ASPECT_RATIO),
    ],
)
def test_a_box_that_cannot_be_cropped_says_why(
    box: tuple[float, float, float, float], reason: BadBoxReason
) -> None:
    with pytest.raises(BadBox) as caught:
        place_box(box, ORIGINAL)
    assert caught.value.reason is reason


def test_the_aspect_ratio_is_judged_after_clamping_and_before_growing() -> None:
    assert place_box((0, 0, 10_000, 50), ORIGINAL) == Box(0, 0, 336, 50)
    assert place_box((0, 0, 300, 3), ORIGINAL) == Box(0, 0, 300, 28)


@given(sizes, st.tuples(corners, corners, corners, corners), st.integers(1, 64))
def test_a_placed_box_lies_in_the_image_covers_what_was_asked_and_is_large_enough(
    size: ImageSize, box: tuple[float, float, float, float], least: int
) -> None:
    try:
        placed = place_box(box, size, least)
    except BadBox:
        return
    assert 0 <= placed.x1 < placed.x2 <= size.width_px
    assert 0 <= placed.y1 < placed.y2 <= size.height_px
    assert placed.x1 <= max(0, box[0])
    assert placed.x2 >= min(size.width_px, box[2])
    assert placed.y1 <= max(0, box[1])
    assert placed.y2 >= min(size.height_px, box[3])
    assert placed.width_px >= min(least, size.width_px)
    assert placed.height_px >= min(least, size.height_px)


@given(sizes, sizes, st.data())
def test_a_box_goes_to_the_view_and_back(
    original: ImageSize, view: ImageSize, data: st.DataObject
) -> None:
    x1 = data.draw(st.integers(0, original.width_px - 1))
    y1 = data.draw(st.integers(0, original.height_px - 1))
    x2 = data.draw(st.integers(x1 + 1, original.width_px))
    y2 = data.draw(st.integers(y1 + 1, original.height_px))
    box = Box(x1, y1, x2, y2)
    back = view_to_original(original_to_view(box, view, original), view, original)
    assert back == pytest.approx(box.as_tuple(), abs=1e-6)


def test_the_views_corners_are_the_originals() -> None:
    view = ImageSize(168, 112)
    assert view_to_original((0, 0, 168, 112), view, ORIGINAL) == (0, 0, 336, 224)
    assert view_to_original((10, 10, 52, 38), view, ORIGINAL) == (20, 20, 104, 76)
