"""Phantoms: problems whose true lesion is known, rendered from a seed.

The n-th phantom of a set depends only on (modality, seed, n): sets can grow without changing. A
phantom of `ct-window` is a CT image in Hounsfield units whose own window hides the lesion.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from services.problems.backgrounds import BACKGROUNDS, Background
from services.problems.hounsfield import SOFT_TISSUE, in_window, to_hounsfield
from services.problems.lesions import KINDS, Lesion, draw_lesion, to_image
from shared.geometry import Box

QUESTION = "Which pattern fills the lesion?"
OPTIONS = KINDS
WINDOWED = "ct-window"
"""The modality whose phantoms are in Hounsfield units."""
_LETTERS = "ABCDEFGHIJ"

_RADIUS_PX = (12, 16)
_LEVEL = (0.68, 0.74)
_AMPLITUDE = 0.2
_TINTS = {"retina": (1.0, 0.95, 0.75)}


@dataclass(frozen=True)
class Phantom:
    """An image with one lesion, and what is asked about it."""

    problem_id: str
    image: Image.Image
    """With the lesion to be seen."""
    lesion: Lesion
    modality: str
    hounsfield_hw: NDArray[np.int16] | None = None
    """The grey levels, where the image is but one window of them."""

    @property
    def gold_answer(self) -> str:
        """The letter of the lesion's kind."""
        return _LETTERS[self.lesion.kind]

    @property
    def box(self) -> Box:
        """The true box, in original pixels."""
        return self.lesion.box


def place_lesion(background: Background, rng: Generator, modality: str, kind: int) -> Lesion:
    """A lesion of the given kind somewhere inside the background's mask."""
    ys, xs = np.nonzero(background.mask_hw)
    chosen = int(rng.integers(len(ys)))
    return Lesion(
        x=int(xs[chosen]),
        y=int(ys[chosen]),
        radius_px=int(rng.integers(*_RADIUS_PX)),
        level=float(rng.uniform(*_LEVEL)),
        amplitude=_AMPLITUDE,
        kind=kind,
        phase=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi))),
        tint=_TINTS.get(modality, (1.0, 1.0, 1.0)),
    )


def render_phantom(modality: str, seed: int, index: int) -> Phantom:
    """The phantom number `index` of a set."""
    rng = np.random.default_rng([zlib.crc32(modality.encode()), seed, index])
    background = BACKGROUNDS[modality](rng)
    lesion = place_lesion(background, rng, modality, kind=int(rng.integers(len(KINDS))))
    drawn = draw_lesion(background.image_hw3, lesion)
    problem_id = f"{modality}-{seed}-{index:05d}"
    if modality == WINDOWED:
        hounsfield = to_hounsfield(drawn[..., 0])
        image = in_window(hounsfield, SOFT_TISSUE).convert("RGB")
        return Phantom(problem_id, image, lesion, modality, hounsfield)
    return Phantom(problem_id, to_image(drawn), lesion, modality)


def render_phantoms(modality: str, seed: int, num_phantoms: int) -> Iterator[Phantom]:
    """The phantoms of a set in order, rendered one at a time."""
    for index in range(num_phantoms):
        yield render_phantom(modality, seed, index)
