"""Generic scenes: what the tiny base policy is pre-trained on before it ever sees a phantom.

A scene is a picture with one patterned target. Pictures are noise, gradients, clutter, everyday
photographs and brain slices; targets are squares, diamonds, rings and, anywhere but on brain
slices, discs: a brain with a bright disc, the phantom, is never among them. Scenes teach the
format, the reading of crops and a weak sense of place: of the looks that are imitated only a part
goes to the target, the others go about the middle. One more look, at the target, is there to be
read and not imitated: how well a crop is read is then no matter of how often it is found.

For a policy that also has `set_window`, a scene may be hidden: it is then in Hounsfield units,
first shown in a window in which everything but air is white, and looked into after a window was
set. A good part of these are CT slices, and discs are among their targets.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np
from numpy.random import Generator
from PIL import Image

from services.problems.backgrounds import ORIGINAL_PX, brain, ct_grey
from services.problems.hounsfield import FILE_WINDOW, in_window, to_hounsfield
from services.problems.lesions import (
    KINDS,
    FloatImage,
    invisible_at_half_size,
    pattern,
    soft_disc,
    to_image,
)
from shared.geometry import Box, ImageSize, PixelLimits, place_box, view_to_original
from shared.render import show_region

VIEW_PX = 168
"""Side of the view of a scene; half the original."""

BOX_PX = 42
"""Side of every box that scenes teach, in view pixels."""

GRID_PX = 7
"""Box corners are multiples of this, in view pixels."""

_READ_OFFSET_PX = 16.0
"""The centre of the look to be read is up to this far from the target's along each axis, in view
pixels: the target may be anywhere in its crop, and has to be read there."""

_FOUND_OFFSET_PX = 10.0
"""The same of looks that are imitated and find the target."""

_ASTRAY_PX = 20.0
"""Standard deviation of the other looks' centres around the middle of the view, in view pixels.
Whoever knows nothing looks at the middle; so the base's likeliest box is there, not at the target,
and its greedy answers are no better than its samples."""

_NUM_SHAPES = 4
"""Squares, diamonds, rings, and discs (the last not on brain slices)."""

_TINTED_SHARE = 0.3
"""Targets with a colour of their own; the others are grey, so that colour gives nothing away."""

_LIMITS = PixelLimits(min_pixels=VIEW_PX**2, max_pixels=VIEW_PX**2)
_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "rocket.jpg",
)


@dataclass(frozen=True)
class Look:
    """One zoom into a scene."""

    bbox_2d: tuple[int, int, int, int]
    """Where, in view pixels."""
    crop: Image.Image
    """What is shown of it."""
    is_imitated: bool
    """Whether the policy learns to look there; if not, only to read what the look shows."""


@dataclass(frozen=True)
class Hidden:
    """How a scene is first shown, when its target does not show."""

    view: Image.Image
    window: tuple[int, int]
    """(center, width) in HU in which it shows, and in which the rest of the scene is shown."""


@dataclass(frozen=True)
class Scene:
    """A picture with a target, and looks into it."""

    view: Image.Image
    """In which the target shows."""
    looks: tuple[Look, ...]
    kind: int
    """Index into `KINDS`."""
    target: tuple[float, float]
    """Centre of the target, in view pixels."""
    hidden: Hidden | None = None
    """What is shown before a window is set; None: the view at once."""


@cache
def _photograph(name: str) -> FloatImage:
    with resources.as_file(resources.files("skimage") / "data" / name) as path:
        picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    picture = picture.crop((0, 0, side, side)).resize((420, 420), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float64) / 255


def _noise(rng: Generator) -> FloatImage:
    """Noise of several scales."""
    total = np.zeros((ORIGINAL_PX, ORIGINAL_PX))
    for cells in (4, 10, 28):
        coarse = rng.normal(size=(cells, cells)).astype(np.float32)
        wide = Image.fromarray(coarse).resize((ORIGINAL_PX, ORIGINAL_PX), Image.Resampling.BICUBIC)
        total += rng.uniform(0, 0.1) * np.asarray(wide)
    total += rng.uniform(0, 0.03) * rng.normal(size=total.shape)
    return np.repeat((total + rng.uniform(0.1, 0.5))[..., None], 3, axis=-1)


def _gradient(rng: Generator) -> FloatImage:
    """A slope of brightness in a random direction and tint."""
    y, x = np.mgrid[0:ORIGINAL_PX, 0:ORIGINAL_PX] / ORIGINAL_PX
    angle = rng.uniform(0, 2 * np.pi)
    slope = 0.3 + 0.2 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    return slope[..., None] * rng.uniform(0.6, 1.0, 3)


def _clutter(rng: Generator) -> FloatImage:
    """Rectangles and ellipses of many greys."""
    picture = np.full((ORIGINAL_PX, ORIGINAL_PX, 3), rng.uniform(0.05, 0.4))
    y, x = np.mgrid[0:ORIGINAL_PX, 0:ORIGINAL_PX]
    for _ in range(int(rng.integers(3, 9))):
        cy, cx = rng.uniform(0, ORIGINAL_PX, 2)
        ry, rx = rng.uniform(15, 110, 2)
        dy, dx = np.abs(y - cy) / ry, np.abs(x - cx) / rx
        inside = np.maximum(dy, dx) < 1 if rng.random() < 0.5 else dy**2 + dx**2 < 1
        picture[inside] = rng.uniform(0.05, 0.55) * rng.uniform(0.7, 1.0, 3)
    return picture + rng.normal(0, 0.01, picture.shape)


def _everyday(rng: Generator) -> FloatImage:
    """A part of an everyday photograph, dimmed."""
    picture = _photograph(_PHOTOGRAPHS[int(rng.integers(len(_PHOTOGRAPHS)))])
    top, left = rng.integers(0, 420 - ORIGINAL_PX, 2)
    part = picture[top : top + ORIGINAL_PX, left : left + ORIGINAL_PX]
    return rng.uniform(0.4, 0.7) * (part[:, ::-1] if rng.random() < 0.5 else part)


def _brain_slice(rng: Generator) -> FloatImage:
    return brain(rng).image_hw3


def _ct_slice(rng: Generator) -> FloatImage:
    return ct_grey(rng).image_hw3


_PICTURES: tuple[tuple[float, Callable[[Generator], FloatImage]], ...] = (
    (0.2, _noise),
    (0.1, _gradient),
    (0.2, _clutter),
    (0.2, _everyday),
    (0.3, _brain_slice),
)
"""Share and maker of each sort of picture."""

_HIDDEN_PICTURES: tuple[tuple[float, Callable[[Generator], FloatImage]], ...] = (
    (0.12, _noise),
    (0.12, _clutter),
    (0.14, _everyday),
    (0.12, _brain_slice),
    (0.5, _ct_slice),
)
"""The same of scenes that are hidden; their colours become greys."""

_CENTERS_HU = (30, 40, 50)
_WIDTHS_HU = (350, 400, 450)
"""Of the windows that are set; any of them shows the target."""


def _target_shape(rng: Generator, size_px: int, num_shapes: int) -> FloatImage:
    """Weight of a square, diamond, ring or soft disc on a square of `size_px`, 0 to 1."""
    y, x = np.abs(np.mgrid[0:size_px, 0:size_px] - size_px // 2)
    radius = float(rng.integers(11, 18))
    match int(rng.integers(num_shapes)):
        case 0:
            return (np.maximum(x, y) < 0.9 * radius).astype(np.float64)
        case 1:
            return (x + y < 1.25 * radius).astype(np.float64)
        case 2:
            distance = np.hypot(x, y)
            return ((distance < 1.1 * radius) & (distance > 0.35 * radius)).astype(np.float64)
        case _:
            return soft_disc(size_px, radius)


def _with_target(
    picture: FloatImage, rng: Generator, kind: int, num_shapes: int
) -> tuple[FloatImage, int, int]:
    """The picture with a patterned target, and the target's centre (x, y)."""
    size = 64
    top, left = (int(v) // 2 * 2 for v in rng.integers(0, ORIGINAL_PX - size, 2))
    weight = _target_shape(rng, size, num_shapes)
    phase = (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi)))
    layer = invisible_at_half_size(weight * pattern(kind, size, phase))
    drawn = picture.copy()
    region = drawn[top : top + size, left : left + size]
    tint = rng.uniform(0.8, 1.0, 3) if rng.random() < _TINTED_SHARE else np.ones(3)
    colour = rng.uniform(0.62, 0.74) * tint
    region *= 1 - weight[..., None]
    region += weight[..., None] * colour + rng.uniform(0.17, 0.25) * layer[..., None]
    return drawn, left + size // 2, top + size // 2


def _box_around(x: float, y: float) -> tuple[int, int, int, int]:
    """The box of the taught size nearest to a centre in view pixels, on the grid."""
    last = VIEW_PX - BOX_PX
    left, top = (int(np.clip(round((c - BOX_PX / 2) / GRID_PX) * GRID_PX, 0, last)) for c in (x, y))
    return (left, top, left + BOX_PX, top + BOX_PX)


def _look(picture: Image.Image, centre: tuple[float, float], *, is_imitated: bool) -> Look:
    bbox_2d = _box_around(*centre)
    original, view = ImageSize(*picture.size), ImageSize(VIEW_PX, VIEW_PX)
    box = place_box(view_to_original(bbox_2d, view, original), original)
    return Look(bbox_2d, show_region(picture, box, _LIMITS), is_imitated)


def _near(target: tuple[float, float], rng: Generator, *, offset_px: float) -> tuple[float, float]:
    x, y = rng.uniform(-offset_px, offset_px, 2)
    return (target[0] + float(x), target[1] + float(y))


def _astray(rng: Generator) -> tuple[float, float]:
    x, y = rng.normal(VIEW_PX / 2, _ASTRAY_PX, 2)
    return (float(x), float(y))


def render_scene(seed: int, index: int, found_share: float, num_imitated: int = 2) -> Scene:
    """Scene number `index`: a look to be read, and some to be imitated.

    Of the latter about `found_share` go near the target.
    """
    rng = np.random.default_rng([zlib.crc32(b"scene"), seed, index])
    make = _chosen(_PICTURES, rng)
    kind = int(rng.integers(len(KINDS)))
    num_shapes = _NUM_SHAPES - 1 if make is _brain_slice else _NUM_SHAPES
    drawn, x, y = _with_target(make(rng), rng, kind, num_shapes)
    return _scene(to_image(drawn), (x, y), kind, rng, found_share, num_imitated)


def render_hidden_scene(seed: int, index: int, found_share: float, num_imitated: int = 2) -> Scene:
    """As `render_scene`, of a scene that shows its target only once a window is set."""
    rng = np.random.default_rng([zlib.crc32(b"hidden scene"), seed, index])
    grey = _chosen(_HIDDEN_PICTURES, rng)(rng).mean(axis=-1, keepdims=True)
    kind = int(rng.integers(len(KINDS)))
    drawn, x, y = _with_target(np.repeat(grey, 3, axis=-1), rng, kind, _NUM_SHAPES)
    hounsfield = to_hounsfield(drawn.mean(axis=-1))
    window = (int(rng.choice(_CENTERS_HU)), int(rng.choice(_WIDTHS_HU)))
    first = _whole(in_window(hounsfield, FILE_WINDOW))
    shown = in_window(hounsfield, window)
    scene = _scene(shown, (x, y), kind, rng, found_share, num_imitated)
    return replace(scene, hidden=Hidden(first, window))


def _chosen(
    pictures: tuple[tuple[float, Callable[[Generator], FloatImage]], ...], rng: Generator
) -> Callable[[Generator], FloatImage]:
    _, make = pictures[int(rng.choice(len(pictures), p=[share for share, _ in pictures]))]
    return make


def _whole(picture: Image.Image) -> Image.Image:
    return show_region(picture, Box.whole(ImageSize(*picture.size)), _LIMITS)


def _scene(
    picture: Image.Image,
    centre: tuple[int, int],
    kind: int,
    rng: Generator,
    found_share: float,
    num_imitated: int,
) -> Scene:
    """A scene of a picture whose target is centred at `centre`, in its own pixels."""
    x, y = centre
    target = (x * VIEW_PX / ORIGINAL_PX, y * VIEW_PX / ORIGINAL_PX)
    to_read = _near(target, rng, offset_px=_READ_OFFSET_PX)
    looks = [_look(picture, to_read, is_imitated=False)]
    for _ in range(num_imitated):
        is_found = rng.random() < found_share
        found = _near(target, rng, offset_px=_FOUND_OFFSET_PX)
        looks.append(_look(picture, found if is_found else _astray(rng), is_imitated=True))
    return Scene(_whole(picture), tuple(looks), kind, target)
