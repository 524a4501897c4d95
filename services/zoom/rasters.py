"""PNG, JPEG, WebP and TIFF to the canonical original; runs in the decoder child.

What is done with what 8-bit RGB cannot say: greys deeper than 8 bits are stretched from their
least to their greatest value; transparent pixels are laid on black; embedded colour profiles are
ignored; a JPEG that carries further pictures (MPO, gain maps) is its first one.
"""

import io
from typing import cast

import numpy as np
from PIL import ExifTags, Image

from services.zoom.formats import (
    AS_STORED,
    GREY_CHUNK,
    CanonicalOriginal,
    KeptGreys,
    Rendering,
    Shown,
    check_single_frame,
    check_size,
    unreadable,
)
from services.zoom.greys import stretch_to_levels
from shared.api.headers import FileFacts
from shared.api.zoom import SourceFormat
from shared.render import encode_png

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked right after the header was read

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the operation that makes the image upright."""


def decode_raster(
    data: bytes, source_format: SourceFormat, rendering: Rendering, max_pixels: int
) -> CanonicalOriginal:
    """Decode with Pillow. Raises `ApiProblem` for limits, Pillow's own errors for broken files."""
    if rendering != AS_STORED:
        raise unreadable(
            "frame, axis, index and windows are accepted with DICOM and NIfTI files; "
            f"this is a {source_format.upper()} file"
        )
    with Image.open(io.BytesIO(data), formats=(source_format,)) as image:
        check_size(*image.size, max_pixels)
        if source_format != "jpeg":
            num_frames: int = getattr(image, "n_frames", 1)
            check_single_frame(num_frames, f"the {source_format.upper()} file")
        orientation = _orientation(image)
        image.load()
        is_deep = image.mode == "F" or image.mode.startswith("I")
        levels = to_levels(image)
    if orientation in _TRANSPOSED:
        levels = levels.transpose(_TRANSPOSED[orientation])
    shown = Shown(grey_mapping="value_range" if is_deep else "none")
    return canonical(levels, source_format, shown)


def canonical(
    levels: Image.Image,
    source_format: SourceFormat,
    shown: Shown,
    facts: FileFacts = FileFacts(),  # noqa: B008 - frozen
    greys: KeptGreys | None = None,
) -> CanonicalOriginal:
    """The PNG of an upright RGB or L image, and the grey levels it was made of."""
    levels.info = {}  # Pillow would write a colour profile found here
    return CanonicalOriginal(
        png=encode_png(levels, {} if greys is None else {GREY_CHUNK: greys.name}),
        width_px=levels.width,
        height_px=levels.height,
        source_format=source_format,
        shown=shown,
        facts_json=facts.model_dump_json().encode(),
        greys=greys,
    )


def to_levels(image: Image.Image) -> Image.Image:
    """A loaded image of any Pillow mode as RGB or L."""
    if image.mode == "F" or image.mode.startswith("I"):
        samples = np.asarray(image)
        return Image.fromarray(stretch_to_levels(samples))
    if image.has_transparency_data:
        is_grey = image.mode in ("1", "L", "LA", "La")
        opaque = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, opaque).convert("L" if is_grey else "RGB")
    if image.mode in ("L", "RGB"):
        return image.copy()
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "CMYK", "YCbCr", "HSV", "RGBX"):
        return image.convert("RGB")
    raise unreadable(f"colour mode {image.mode} is not supported")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none to be read; Pillow itself turns TIFFs on loading."""
    if image.format == "TIFF":
        return 1
    try:
        return cast(int, image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block must not cost the picture
        return 1
