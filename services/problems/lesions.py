"""Lesions whose place shows in the downsized view and whose kind shows only when enlarged.

A lesion is a soft disc brighter than its surroundings (the place) filled with a fine pattern (the
kind). The pattern has a period of about three pixels and lies in the null space of the view's
resampling: what `show_region` would keep of it at half size is subtracted before it is added, so
the view of a lesion is the same whatever its kind, up to the rounding of pixels.

Arrays are [y, x], floats with 1.0 = white.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.geometry import Box

FloatImage = NDArray[np.float64]

KINDS = ("plain", "rows", "columns", "rising lines", "falling lines", "checks")
"""Names of the patterns, in the order of the options A, B, …"""

PERIOD_PX = 3.0
"""Of the pattern along an axis: too fine for the view, readable in a crop enlarged twofold."""

_PROJECTION_ROUNDS = 12


@dataclass(frozen=True)
class Lesion:
    """One lesion, in original pixels."""

    x: int
    """Centre."""
    y: int
    """Centre."""
    radius_px: int
    level: float
    """Brightness of the disc before the pattern, 0 to 1."""
    amplitude: float
    """Of the pattern, in the same unit."""
    kind: int
    """Index into `KINDS`."""
    phase: tuple[float, float]
    """Of the pattern, in radians."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Red, green, blue factors of the level."""

    @property
    def box(self) -> Box:
        """Smallest box around the disc."""
        reach = self.radius_px
        return Box(self.x - reach, self.y - reach, self.x + reach, self.y + reach)


def pattern(kind: int, size_px: int, phase: tuple[float, float]) -> FloatImage:
    """The pattern of a kind on a square of `size_px`, between -1 and 1."""
    omega = 2 * np.pi / PERIOD_PX
    y, x = np.mgrid[0:size_px, 0:size_px].astype(np.float64)
    across, down = phase
    match KINDS[kind]:
        case "rows":
            return np.sin(omega * y + down)
        case "columns":
            return np.sin(omega * x + across)
        case "rising lines":
            return np.sin(omega * (x + y) + across)
        case "falling lines":
            return np.sin(omega * (x - y) + across)
        case "checks":
            return np.sign(np.sin(omega * x + across)) * np.sin(omega * y + down)
        case _:
            return np.zeros((size_px, size_px))


def invisible_at_half_size(layer: FloatImage) -> FloatImage:
    """The layer less what halving its size with Pillow's bicubic filter would keep of it."""
    height, width = layer.shape
    kept = Image.Resampling.BICUBIC
    remaining = layer.astype(np.float32)
    for _ in range(_PROJECTION_ROUNDS):
        small = Image.fromarray(remaining).resize((width // 2, height // 2), kept)
        remaining = remaining - np.asarray(small.resize((width, height), kept))
    return remaining.astype(np.float64)


def soft_disc(size_px: int, radius_px: float, edge_px: float = 2.0) -> FloatImage:
    """1 inside a centred disc, 0 outside, with a linear edge."""
    y, x = np.mgrid[0:size_px, 0:size_px] - size_px // 2
    return np.clip((radius_px - np.hypot(x, y)) / edge_px + 0.5, 0.0, 1.0)


def draw_lesion(background_hw3: FloatImage, lesion: Lesion) -> FloatImage:
    """The background with the lesion blended in; the input is left as it is."""
    reach = lesion.radius_px + 12
    top, left = (lesion.y - reach) // 2 * 2, (lesion.x - reach) // 2 * 2
    size = 2 * reach + 2
    disc = np.roll(
        soft_disc(size, lesion.radius_px),
        (lesion.y - top - size // 2, lesion.x - left - size // 2),
        axis=(0, 1),
    )
    layer = invisible_at_half_size(disc * pattern(lesion.kind, size, lesion.phase))
    return _blended(background_hw3, (top, left), disc, layer, lesion)


def _blended(
    background_hw3: FloatImage,
    corner: tuple[int, int],
    disc: FloatImage,
    layer: FloatImage,
    lesion: Lesion,
) -> FloatImage:
    """Disc and pattern added at `corner` (top, left), cut at the image's edges."""
    height, width, _ = background_hw3.shape
    top, left = corner
    size = disc.shape[0]
    rows = slice(max(0, top), min(height, top + size))
    columns = slice(max(0, left), min(width, left + size))
    inner = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    weight = disc[inner][..., None]
    colour = np.asarray(lesion.tint) * lesion.level
    drawn = background_hw3.copy()
    drawn[rows, columns] = drawn[rows, columns] * (1 - weight) + colour * weight
    drawn[rows, columns] += lesion.amplitude * layer[inner][..., None]
    return drawn


def to_image(image_hw3: FloatImage) -> Image.Image:
    """The float image as 8-bit RGB."""
    levels = np.clip(np.rint(image_hw3 * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(levels)
