"""From 8-bit pictures to what Qwen2.5-VL's vision tower takes: the image processor, batched.

The arithmetic is the processor's (tested against it), done at once for many pictures of one size.
Shapes: N pictures, P = (H/14)·(W/14) patches each, D = 3·2·14·14 numbers per patch.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from services.trainer.tiny.architecture import PATCH_PX

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_MERGE = 2
_FRAMES = 2


def decode(png: bytes) -> NDArray[np.uint8]:
    """A PNG as [y, x, 3]."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def to_patches(pictures_NHW3: NDArray[np.uint8]) -> torch.Tensor:
    """Normalised patches in the order the vision tower expects (2x2 merge blocks together)."""
    num, height, width, _ = pictures_NHW3.shape
    levels = torch.from_numpy(pictures_NHW3).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    rows, columns = height // PATCH_PX, width // PATCH_PX
    blocks = ((levels - mean) / std).view(
        num, 3, rows // _MERGE, _MERGE, PATCH_PX, columns // _MERGE, _MERGE, PATCH_PX
    )
    ordered = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    doubled = ordered.expand(*ordered.shape[:6], _FRAMES, PATCH_PX, PATCH_PX)
    return doubled.reshape(num, rows * columns, -1)


def image_grids(num: int, height_px: int, width_px: int) -> torch.Tensor:
    """`image_grid_thw` of `num` pictures of one size."""
    return torch.tensor([[1, height_px // PATCH_PX, width_px // PATCH_PX]]).expand(num, 3)


def decode_all(pngs: Sequence[bytes]) -> NDArray[np.uint8]:
    """PNGs of one size as [n, y, x, 3]."""
    return np.stack([decode(png) for png in pngs])
