"""Boxes, view sizes and the way between them: the only place where pixels change coordinates.

Three frames exist. *Original*: the ingested image, `Box` is always here (integers, half-open).
*View*: the whole image as the model was shown it, after Qwen's smart-resize; the model's
`bbox_2d` is here. *Crop*: a box of the original, resized for showing; nothing is ever expressed
in its coordinates.
"""

import math
from enum import StrEnum
from typing import Self

import msgspec

PATCH_FACTOR_PX = 28
"""Qwen2.5-VL: 14-px patches merged two by two, so every shown side is a multiple of 28."""

MAX_ASPECT_RATIO = 100.0
"""METHOD.md, The agent: a box more elongated than this is answered by an error."""


class ImageSize(msgspec.Struct, frozen=True):
    """Width and height in pixels."""

    width_px: int
    height_px: int

    @property
    def num_pixels(self) -> int:
        """Area in pixels."""
        return self.width_px * self.height_px

    @property
    def num_image_tokens(self) -> int:
        """Tokens that a shown image of this size occupies (sides are multiples of 28)."""
        return (self.width_px // PATCH_FACTOR_PX) * (self.height_px // PATCH_FACTOR_PX)


class Box(msgspec.Struct, frozen=True, order=True):
    """Half-open rectangle [x1, x2) × [y1, y2) in original-image pixels."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width_px(self) -> int:
        """Width in pixels."""
        return self.x2 - self.x1

    @property
    def height_px(self) -> int:
        """Height in pixels."""
        return self.y2 - self.y1

    @property
    def area_px(self) -> int:
        """Area in pixels; 0 for an empty box."""
        return max(0, self.width_px) * max(0, self.height_px)

    def contains(self, x: float, y: float) -> bool:
        """Whether the point lies inside (half-open)."""
        return self.x1 <= x < self.x2 and self.y1 <= y < self.y2

    def as_tuple(self) -> tuple[int, int, int, int]:
        """(x1, y1, x2, y2)."""
        return (self.x1, self.y1, self.x2, self.y2)

    @classmethod
    def whole(cls, size: ImageSize) -> Self:
        """The box of a whole image."""
        return cls(0, 0, size.width_px, size.height_px)


class BadBoxReason(StrEnum):
    """Why a box the model asked for cannot be cropped."""

    NOT_FINITE = "not_finite"
    EMPTY = "empty"
    OUTSIDE = "outside"
    ASPECT_RATIO = "aspect_ratio"


class BadBox(ValueError):
    """A box that cannot be cropped; the message is fit to be shown to the model."""

    def __init__(self, reason: BadBoxReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PixelLimits(msgspec.Struct, frozen=True):
    """Least and most pixels of an image as shown to the model (Qwen's min_pixels, max_pixels)."""

    min_pixels: int
    max_pixels: int


def smart_resize(size: ImageSize, limits: PixelLimits) -> ImageSize:
    """Size at which Qwen2-VL shows an image: sides multiples of 28, area within the limits.

    Same arithmetic as transformers' `smart_resize` (Python's round-half-even included), checked
    against it in the tests. Raises `BadBox` when the aspect ratio is over 200, as Qwen does.
    """
    height, width, factor = size.height_px, size.width_px, PATCH_FACTOR_PX
    if max(height, width) > 200 * min(height, width):
        raise BadBox(
            BadBoxReason.ASPECT_RATIO,
            f"an image of {width}x{height} px is too elongated to show (ratio over 200)",
        )
    shown_h, shown_w = round(height / factor) * factor, round(width / factor) * factor
    if shown_h * shown_w > limits.max_pixels:
        beta = math.sqrt(height * width / limits.max_pixels)
        shown_h = max(factor, math.floor(height / beta / factor) * factor)
        shown_w = max(factor, math.floor(width / beta / factor) * factor)
    elif shown_h * shown_w < limits.min_pixels:
        beta = math.sqrt(limits.min_pixels / (height * width))
        shown_h = math.ceil(height * beta / factor) * factor
        shown_w = math.ceil(width * beta / factor) * factor
    return ImageSize(shown_w, shown_h)


def view_to_original(
    bbox_2d: tuple[float, float, float, float], view: ImageSize, original: ImageSize
) -> tuple[float, float, float, float]:
    """The model's box, from view pixels to original pixels; not yet clamped or rounded."""
    scale_x = original.width_px / view.width_px
    scale_y = original.height_px / view.height_px
    x1, y1, x2, y2 = bbox_2d
    return (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)


def original_to_view(
    box: Box, view: ImageSize, original: ImageSize
) -> tuple[float, float, float, float]:
    """A box of the original in view pixels: the inverse of `view_to_original`."""
    scale_x = view.width_px / original.width_px
    scale_y = view.height_px / original.height_px
    return (box.x1 * scale_x, box.y1 * scale_y, box.x2 * scale_x, box.y2 * scale_y)


def _grown(low: int, high: int, least: int, limit: int) -> tuple[int, int]:
    """Interval of at least `least` around the same centre, shifted into [0, limit)."""
    side = high - low
    if side >= least:
        return low, high
    side = min(least, limit)
    start = math.floor((low + high - side) / 2)
    start = min(max(0, start), limit - side)
    return start, start + side


def place_box(
    corners: tuple[float, float, float, float], original: ImageSize, min_side_px: int = 28
) -> Box:
    """The box as it will be cropped: clamped to the image, rounded outwards, grown if small.

    METHOD.md, The agent. `corners` are (x1, y1, x2, y2) in original pixels. The aspect ratio is
    judged after clamping and before growing. Raises `BadBox` for a box that is not finite, empty
    or reversed, wholly outside the image, or of an aspect ratio over 100.
    """
    if not all(math.isfinite(c) for c in corners):
        raise BadBox(BadBoxReason.NOT_FINITE, "box coordinates must be finite numbers")
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        raise BadBox(BadBoxReason.EMPTY, "box must have x1 < x2 and y1 < y2")
    left, top = max(0.0, x1), max(0.0, y1)
    right, bottom = min(float(original.width_px), x2), min(float(original.height_px), y2)
    if right <= left or bottom <= top:
        raise BadBox(BadBoxReason.OUTSIDE, "box lies outside the image")
    long_side, short_side = max(right - left, bottom - top), min(right - left, bottom - top)
    if long_side > MAX_ASPECT_RATIO * short_side:
        raise BadBox(BadBoxReason.ASPECT_RATIO, "box is too elongated (ratio over 100)")
    px1, px2 = _grown(math.floor(left), math.ceil(right), min_side_px, original.width_px)
    py1, py2 = _grown(math.floor(top), math.ceil(bottom), min_side_px, original.height_px)
    return Box(px1, py1, px2, py2)
