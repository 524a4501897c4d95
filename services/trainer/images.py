# pyright: basic
"""Shown images by hash, as the pixels the vision encoder takes.

Zoom rendered every image at its final size, so nothing is resized here: `do_resize` is off, and an
image that is not of the size its span records is a `BlobError`. Images are kept as 8-bit pixels
while their group waits for its step (a group's crops are looked up once, at admission) and become
patches only in the bundle that needs them.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from services.trainer.torchvision_ops import declare_missing_operators
from shared.blobs import BlobStore
from shared.errors import BlobError
from shared.trajectory import ImageSpan

declare_missing_operators()

from transformers import AutoImageProcessor  # noqa: E402 - the operators must be declared first

_UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError)


class ImageSource:
    """Blobs in, patches out; holds the images of the groups that wait for their step."""

    def __init__(self, blobs: BlobStore, checkpoint: Path) -> None:
        self._blobs = blobs
        self._processor = AutoImageProcessor.from_pretrained(checkpoint)
        self._pixels_by_name: dict[str, npt.NDArray[np.uint8]] = {}

    def hold(self, spans: Iterable[ImageSpan]) -> None:
        """Fetch and keep these images. Raises `BlobError` naming the first that is unusable.

        A store that is away raises its `OSError`: that is no fault of the group's.
        """
        for span in spans:
            if span.image not in self._pixels_by_name:
                self._pixels_by_name[span.image] = self._load(span)

    def keep(self, pixels_by_name: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """Hold images that another process has fetched."""
        self._pixels_by_name.update(pixels_by_name)

    def pixels(self, names: Iterable[str]) -> dict[str, npt.NDArray[np.uint8]]:
        """Held images as uint8 (3, height, width), for another process."""
        return {name: self._pixels_by_name[name] for name in names}

    def forget(self) -> None:
        """Drop all held images: their step was taken."""
        self._pixels_by_name.clear()

    def patches(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Held images as `pixel_values` (patches, channels · 2 · 14 · 14) and `grid_thw` (K, 3)."""
        images = [torch.from_numpy(self._pixels_by_name[name]) for name in names]
        inputs = self._processor(
            images=images, do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        return inputs["pixel_values"], inputs["image_grid_thw"]

    def _load(self, span: ImageSpan) -> npt.NDArray[np.uint8]:
        """Pixels as uint8 (3, height, width)."""
        content = self._blobs.get(span.image)
        try:
            with Image.open(io.BytesIO(content)) as image:
                size = (span.size.width_px, span.size.height_px)
                if image.size != size:
                    raise BlobError(
                        f"image {span.image} is {image.width}x{image.height} px, "
                        f"its span says {size[0]}x{size[1]}"
                    )
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()
        except (*_UNREADABLE, OSError, SyntaxError) as error:
            raise BlobError(f"image {span.image} cannot be decoded: {error}") from error
