"""A region of an original blanked: filled from its border, so that nothing of it is left.

The fill is the harmonic one: inside the region every pixel is the mean of its four neighbours,
and on its border the picture is as it was (a membrane stretched over the hole; at the edge of the
image its slope is zero). Kept grey levels are filled like the picture made of them, so the region
is blank in every window. It is worked out from coarse to fine: each scale starts from the coarser
one and is relaxed by a fixed number of sweeps, so that the time goes with the area and the same
request always gives the same bytes. Pixels outside the region are never changed.

Legend: h rows, w columns, c colours.
"""

from collections.abc import Sequence
from http import HTTPStatus

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.zoom.formats import GREY_CHUNK
from services.zoom.greys_blob import packed, unpacked
from shared.api.zoom import BlankRequest, BlankResponse, WireBox
from shared.blobs import BlobStore
from shared.errors import ApiProblem
from shared.geometry import Box
from shared.render import encode_png

_SWEEPS = 24
"""Per scale: what is left of a fault of a few pixels after them is below one grey level."""

Greys = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def blank(
    request: BlankRequest, original: Image.Image, blobs: BlobStore, max_blank_pixels: int
) -> BlankResponse:
    """Store the original without the region as a new one. Raises `ApiProblem` 422."""
    boxes = [_checked(rectangle, original) for rectangle in request.rectangles]
    window = _window(boxes, original)
    if window.area_px > max_blank_pixels:
        raise _invalid(
            f"rectangles: they span {window.width_px}x{window.height_px} px; regions that span "
            f"at most {max_blank_pixels} pixels are blanked"
        )
    is_blank_hw = np.zeros((window.height_px, window.width_px), dtype=np.bool_)
    for box in boxes:
        rows = slice(box.y1 - window.y1, box.y2 - window.y1)
        is_blank_hw[rows, box.x1 - window.x1 : box.x2 - window.x1] = True
    if is_blank_hw.all():
        raise _invalid("rectangles: they cover the whole image, so there is no border to fill from")
    filled = original.copy()
    levels = np.asarray(original.crop(window.as_tuple()))
    filled.paste(Image.fromarray(fill_levels(levels, is_blank_hw)), (window.x1, window.y1))
    texts: dict[str, str] = {}
    if isinstance(name := original.info.get(GREY_CHUNK), str):
        texts[GREY_CHUNK] = _blank_greys(name, original.size, window, is_blank_hw, blobs)
    return BlankResponse(
        image=blobs.put(encode_png(filled, texts)),
        width_px=original.width,
        height_px=original.height,
        blanked_px=int(is_blank_hw.sum()),
    )


def _blank_greys(
    name: str, size: tuple[int, int], window: Box, is_blank_hw: Mask, blobs: BlobStore
) -> str:
    """Store kept grey levels with the region filled, as the same type; the name of their blob."""
    header, stored_hw = unpacked(blobs.get(name), size[0] * size[1])
    filled_hw = stored_hw.copy()
    part = filled_hw[window.y1 : window.y2, window.x1 : window.x2]
    greys = harmonic_fill(part.astype(np.float32), ~is_blank_hw)[is_blank_hw]
    is_whole = np.issubdtype(part.dtype, np.integer)
    part[is_blank_hw] = np.rint(greys) if is_whole else greys
    kept = packed(header, filled_hw)
    assert kept is not None, "it was packed before"
    return blobs.put(kept.blob)


def _checked(rectangle: WireBox, original: Image.Image) -> Box:
    box = Box(rectangle.x1, rectangle.y1, rectangle.x2, rectangle.y2)
    if not (0 <= box.x1 < box.x2 <= original.width and 0 <= box.y1 < box.y2 <= original.height):
        raise _invalid(
            f"rectangles: every one must lie inside the image ({original.width}x{original.height} "
            "px), with x1 < x2 and y1 < y2"
        )
    return box


def _invalid(detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, "Request does not validate", detail)


def _window(boxes: Sequence[Box], original: Image.Image) -> Box:
    """The least box around all, and their border."""
    return Box(
        max(0, min(box.x1 for box in boxes) - 1),
        max(0, min(box.y1 for box in boxes) - 1),
        min(original.width, max(box.x2 for box in boxes) + 1),
        min(original.height, max(box.y2 for box in boxes) + 1),
    )


def fill_levels(levels: npt.NDArray[np.uint8], is_blank_hw: Mask) -> npt.NDArray[np.uint8]:
    """8-bit levels, hw or hwc, with the blank ones filled; at least one must not be blank."""
    filled = levels.copy()
    for channel in np.moveaxis(filled[..., None] if filled.ndim == 2 else filled, -1, 0):
        greys = harmonic_fill(channel.astype(np.float32), ~is_blank_hw)
        channel[is_blank_hw] = np.rint(greys[is_blank_hw])
    return filled


def harmonic_fill(greys_hw: Greys, is_known_hw: Mask) -> Greys:
    """The greys, the unknown ones filled in; at least one must be known."""
    if is_known_hw.all():
        return greys_hw
    coarse_hw, is_coarse_known_hw = _halved(greys_hw, is_known_hw)
    coarse_hw = harmonic_fill(coarse_hw, is_coarse_known_hw)
    height, width = greys_hw.shape
    finer = Image.fromarray(coarse_hw).resize(
        (2 * coarse_hw.shape[1], 2 * coarse_hw.shape[0]), Image.Resampling.BILINEAR
    )
    filled_hw = np.where(is_known_hw, greys_hw, np.asarray(finer)[:height, :width])
    for _ in range(_SWEEPS):
        around = np.pad(filled_hw, 1, mode="edge")
        means = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
        np.multiply(means, 0.25, out=filled_hw, where=~is_known_hw)
    return filled_hw


def _halved(greys_hw: Greys, is_known_hw: Mask) -> tuple[Greys, Mask]:
    """Means of the known greys of each 2 × 2; known where at least one was."""
    height, width = greys_hw.shape
    padding = ((0, height % 2), (0, width % 2))
    weights = np.pad(is_known_hw.astype(np.float32), padding)
    sums = _sums_of_four(np.pad(greys_hw, padding) * weights)
    counts = _sums_of_four(weights)
    means_hw = np.divide(sums, np.maximum(counts, 1.0), dtype=np.float32)
    return means_hw, counts > 0


def _sums_of_four(cells_hw: Greys) -> Greys:
    rows = np.add(cells_hw[0::2], cells_hw[1::2], dtype=np.float32)
    return np.add(rows[:, 0::2], rows[:, 1::2], dtype=np.float32)
