"""Phantoms: problems whose true lesion is known, rendered from a seed.

The n-th phantom of a set depends only on (modality, seed, n): sets can grow without changing.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from services.problems.backgrounds import BACKGROUNDS, Background
from services.problems.lesions import KINDS, Lesion, draw_lesion, to_image
from shared.geometry import Box

QUESTION = "Which pattern fills the lesion?"
OPTIONS = KINDS
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
    lesion: Lesion
    modality: str

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
    image = to_image(draw_lesion(background.image_hw3, lesion))
    return Phantom(f"{modality}-{seed}-{index:05d}", image, lesion, modality)


def render_phantoms(modality: str, seed: int, num_phantoms: int) -> Iterator[Phantom]:
    """The phantoms of a set in order, rendered one at a time."""
    for index in range(num_phantoms):
        yield render_phantom(modality, seed, index)
