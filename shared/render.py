"""How a region of an image is shown to the model: the one resampling in the system.

Zoom renders with it for the policy and the trainer alike; the scenes that pre-train the tiny
policy are rendered with it too, so that nothing ever sees another resampling. Same input, same
bytes: conversion, resampling kernel and PNG parameters are fixed here.
"""

import io
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shared.geometry import Box, ImageSize, PixelLimits, smart_resize


def show_region(original: Image.Image, box: Box, limits: PixelLimits) -> Image.Image:
    """The box of the original as the model is shown it: RGB, sides multiples of 28.

    Bicubic, widened when shrinking (Pillow's antialiasing). Raises `BadBox` if the region is too
    elongated to be shown.
    """
    shown = smart_resize(ImageSize(box.width_px, box.height_px), limits)
    region = original.crop(box.as_tuple()).convert("RGB")
    return region.resize((shown.width_px, shown.height_px), Image.Resampling.BICUBIC)


def encode_png(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """PNG bytes, deterministic for a given Pillow build; level 1 for speed.

    There is no metadata in it but `texts`, text chunks by keyword.
    """
    chunks = PngInfo()
    for keyword, text in (texts or {}).items():
        chunks.add_text(keyword, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1, pnginfo=chunks)
    return buffer.getvalue()
