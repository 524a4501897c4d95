"""Where phantoms take place: real anatomy that ships inside Python wheels, nothing downloaded.

Brain: the MNI152 T1 template (nilearn). Retina: a fundus photograph (scikit-image). CT: the small
test slice of pydicom, as a picture or in Hounsfield units. Each background is a float image
[336, 336, 3] with a mask of where a lesion may be.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from services.problems.lesions import FloatImage

ORIGINAL_PX = 336
"""Side of every phantom: shown at half size, 168 px, to the tiny policy."""

_MARGIN_PX = 20
_BRAIN_AXIAL_SLICES = (60, 125)


@dataclass(frozen=True)
class Background:
    """A picture without a lesion."""

    image_hw3: FloatImage
    mask_hw: NDArray[np.bool_]
    """Where the centre of a lesion may be."""


@cache
def _brain_volume() -> NDArray[np.uint8]:
    """The MNI152 template, [x, y, z], 1 mm."""
    import nibabel

    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    with resources.as_file(resources.files("nilearn.datasets") / "data" / name) as path:
        return np.asarray(nibabel.load(path).dataobj, dtype=np.uint8)  # pyright: ignore


@cache
def _retina_photograph() -> FloatImage:
    """The fundus photograph, reduced to 500 px, [y, x, 3], 0 to 1."""
    with resources.as_file(resources.files("skimage") / "data" / "retina.jpg") as path:
        photograph = Image.open(path).convert("RGB").resize((500, 500), Image.Resampling.BICUBIC)
    return np.asarray(photograph, dtype=np.float64) / 255


@cache
def _ct_slice() -> FloatImage:
    """pydicom's CT slice in a soft-tissue window, [y, x], 0 to 1."""
    return np.clip(_soft_tissue_units(_ct_hounsfield()), 0, 1)


def _soft_tissue_units(hounsfield: FloatImage) -> FloatImage:
    """0 at the lower end of the soft-tissue window, 1 at its upper end."""
    return (hounsfield + 160) / 400


@cache
def _ct_hounsfield() -> FloatImage:
    """pydicom's CT slice, [y, x], HU."""
    import pydicom
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm", download=False)
    dataset = pydicom.dcmread(path)  # pyright: ignore[reportArgumentType]
    levels = dataset.pixel_array.astype(np.float64)
    return levels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def _turned(
    image: FloatImage, rng: Generator, *, degrees: float, zoom: tuple[float, float]
) -> FloatImage:
    """The image [y, x, c] turned, scaled and mirrored at random into the original's square."""
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    height, width, channels = image.shape
    scale = max(height, width) / ORIGINAL_PX / rng.uniform(*zoom)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5:
        turn[:, 1] *= -1
    middle = np.array([height / 2, width / 2]) + rng.uniform(-0.03, 0.03, 2) * height
    offset = middle - turn @ np.full(2, ORIGINAL_PX / 2)
    planes = [
        ndimage.affine_transform(
            image[..., c], turn, offset, output_shape=(ORIGINAL_PX, ORIGINAL_PX), order=1
        )
        for c in range(channels)
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 1)


def _inside(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask away from its own rim and from the image's border."""
    filled = ndimage.binary_fill_holes(mask_hw)
    inner: NDArray[np.bool_] = np.array(ndimage.binary_erosion(filled, iterations=12), dtype=bool)
    inner[:_MARGIN_PX] = inner[-_MARGIN_PX:] = False
    inner[:, :_MARGIN_PX] = inner[:, -_MARGIN_PX:] = False
    return inner


def brain(rng: Generator) -> Background:
    """An axial slice of the T1 template, its grey values varied."""
    volume = _brain_volume()
    level = int(rng.integers(*_BRAIN_AXIAL_SLICES))
    plane = volume[:, :, level].T[::-1].astype(np.float64)[..., None] / 255
    turned = _turned(plane, rng, degrees=12, zoom=(1.2, 1.4))
    grey = 0.62 * turned ** rng.uniform(0.9, 1.3) * rng.uniform(0.85, 1.05)
    grey += rng.normal(0, 0.01, grey.shape)
    return Background(np.repeat(grey, 3, axis=-1), _inside(turned[..., 0] > 0.15))


def retina(rng: Generator) -> Background:
    """The fundus photograph, turned and dimmed."""
    turned = _turned(_retina_photograph(), rng, degrees=180, zoom=(0.95, 1.25))
    dimmed = turned * rng.uniform(0.7, 0.95)
    return Background(dimmed, _inside(turned.mean(axis=-1) > 0.12))


def ct(rng: Generator) -> Background:
    """The CT slice, enlarged and dimmed."""
    turned = _turned(_ct_slice()[..., None], rng, degrees=15, zoom=(0.95, 1.2))
    grey = 0.65 * turned * rng.uniform(0.85, 1.05) + rng.normal(0, 0.01, turned.shape)
    return Background(np.repeat(grey, 3, axis=-1), _inside(turned[..., 0] > 0.2))


_CT_RANGE_HU = (-1024.0, 1200.0)
"""Holds every value of the slice."""

_LESION_REACH_PX = 27
"""No air is nearer than this, along an axis, to the centre of a lesion in Hounsfield units."""


def ct_grey(rng: Generator) -> Background:
    """The CT slice with its air, in soft-tissue units (`hounsfield`); the mask leaves lungs out.

    Soft tissue and bone are dimmed as in `ct`, and bone reaches no further than the window does.
    """
    low, high = _CT_RANGE_HU
    stored = (_ct_hounsfield() - low) / (high - low)
    turned = _turned(stored[..., None], rng, degrees=15, zoom=(0.95, 1.2))
    grey = _soft_tissue_units(low + (high - low) * turned)
    body = 0.65 * np.clip(grey, 0, 1) * rng.uniform(0.85, 1.05) + rng.normal(0, 0.01, grey.shape)
    mask_hw = ndimage.minimum_filter(grey[..., 0], size=2 * _LESION_REACH_PX + 1) > 0
    mask_hw[:_MARGIN_PX] = mask_hw[-_MARGIN_PX:] = False
    mask_hw[:, :_MARGIN_PX] = mask_hw[:, -_MARGIN_PX:] = False
    return Background(np.repeat(np.where(grey > 0, body, grey), 3, axis=-1), mask_hw)


BACKGROUNDS: dict[str, Callable[[Generator], Background]] = {
    "brain": brain,
    "retina": retina,
    "ct": ct,
    "ct-window": ct_grey,
}
"""Background by modality."""
