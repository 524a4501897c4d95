"""Which file formats are taken, told by content; and the refusals that decoding may end in."""

from http import HTTPStatus
from typing import Literal

import msgspec

from shared.errors import ApiProblem

SourceFormat = Literal["png", "jpeg", "webp", "tiff", "dicom"]

ACCEPTED = "PNG, JPEG, WebP, TIFF and single-frame DICOM files are accepted"

_TIFF_MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_DICOM_MAGIC_AT = 128


class DecodeLimits(msgspec.Struct, frozen=True):
    """What one decoding may cost."""

    max_pixels: int
    memory_bytes: int
    timeout_s: float


class CanonicalOriginal(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded original in the one form it is kept in."""

    png: bytes
    """8-bit RGB or L, upright, without metadata."""
    width_px: int
    height_px: int
    source_format: SourceFormat
    window_center: float | None = None
    """DICOM: the window that was applied, as stored in the file."""
    window_width: float | None = None


def detect_format(data: bytes) -> SourceFormat:
    """The format by magic numbers; names and headers are never trusted.

    A file that is DICOM and TIFF at once (the standard allows it) is read as DICOM.
    Raises `ApiProblem` 415.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[_DICOM_MAGIC_AT : _DICOM_MAGIC_AT + 4] == b"DICM":
        return "dicom"
    if data.startswith(_TIFF_MAGICS):
        return "tiff"
    raise unsupported(f"the content is no known image; {ACCEPTED}")


def unsupported(detail: str) -> ApiProblem:
    """415: a format, or a variant of one, that is not taken."""
    return ApiProblem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Unsupported image format", detail)


def too_large(detail: str) -> ApiProblem:
    """413: over a limit."""
    return ApiProblem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Image too large", detail)


def unreadable(detail: str) -> ApiProblem:
    """422: the format is right, the content is not."""
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, "Image cannot be used", detail)


def check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    """Raises `ApiProblem` 422 for an empty image, 413 for one over the limit."""
    if width_px < 1 or height_px < 1:
        raise unreadable(f"the header says {width_px}x{height_px} px")
    if width_px * height_px > max_pixels:
        raise too_large(
            f"the header says {width_px}x{height_px} px, at most {max_pixels} pixels are accepted"
        )


def check_single_frame(num_frames: int, what: str) -> None:
    """Raises `ApiProblem` 422 that says the count."""
    if num_frames != 1:
        raise unreadable(f"{what} has {num_frames} frames; only single-frame images are accepted")
