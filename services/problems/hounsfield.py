"""CT phantoms in Hounsfield units: a lesion that one window shows and another hides.

The file's own window is a narrow one for lungs: whatever is above -200 HU is white in it, so soft
tissue, and any lesion in it, is the same white whatever its values. In a soft-tissue window the
same values are the picture of `phantoms`. Pictures are drawn in *soft-tissue units*: 0 is the lower
end of that window, 1 its upper end, and air is far below 0.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.problems.lesions import FloatImage

SOFT_TISSUE = (40, 400)
"""(center, width) of the window in which the lesion shows, HU."""

FILE_WINDOW = (-700, 1000)
"""(center, width) that the file asks for, HU: for lungs, and for nothing else."""

WHITE_HU = -200
"""From here on the file's window is white."""

_LEAST_HU, _MOST_HU = -1024, 3071


def to_hounsfield(image_hw: FloatImage) -> NDArray[np.int16]:
    """Soft-tissue units to whole Hounsfield units, as a scanner stores them."""
    center, width = SOFT_TISSUE
    hounsfield = np.rint(center - width / 2 + width * image_hw)
    return np.clip(hounsfield, _LEAST_HU, _MOST_HU).astype(np.int16)


def in_window(hounsfield_hw: NDArray[np.int16], window: tuple[float, float]) -> Image.Image:
    """As zoom shows it (DICOM PS3.3 C.11.2.1.2.1, LINEAR); the tests hold the two equal."""
    center, width = window
    share = (hounsfield_hw.astype(np.float64) - (center - 0.5)) / (width - 1) + 0.5
    return Image.fromarray(np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8))
