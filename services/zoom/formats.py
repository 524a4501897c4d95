"""Which files are taken, told by content; what may be asked of them; how decoding may end."""

from http import HTTPStatus
from typing import Literal

import msgspec

from shared.api.zoom import Axis, GreyMapping, SourceFormat, WindowFunction
from shared.errors import ApiProblem

PREPROCESSING_VERSION = "1"
"""Raise it with every change after which a file and a query may give other pixels."""

ACCEPTED = "PNG, JPEG, WebP, TIFF, DICOM and NIfTI files are accepted"

_TIFF_MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_DICOM_MAGIC_AT = 128
GZIP_MAGIC = b"\x1f\x8b"
_NIFTI1_MAGICS = (b"n+1\x00", b"ni1\x00")
_NIFTI2_MAGICS = (b"n+2\x00", b"ni2\x00")

MAX_SAMPLE_BYTES = 12
"""Most bytes of a pixel: three samples of 32 bits. What is inflated must fit in `max_pixels`."""


class DecodeLimits(msgspec.Struct, frozen=True):
    """What one decoding may cost."""

    max_pixels: int
    memory_bytes: int
    timeout_s: float


class Window(msgspec.Struct, frozen=True):
    """Grey values to levels, in units after the modality LUT."""

    center: float
    width: float
    function: WindowFunction = "LINEAR"
    preset: str | None = None
    """Set where it was asked for by a name: it is in Hounsfield units then."""


class Rendering(msgspec.Struct, frozen=True, kw_only=True):
    """Which picture of a file is asked for, and how it is to be shown."""

    frame: int | None = None
    """From 1."""
    axis: Axis | None = None
    index: int | None = None
    """From 0."""
    windows: tuple[Window, ...] = ()
    """None (the file's own), one, or three: those of red, green and blue."""


AS_STORED = Rendering()


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to make the picture, whether it was asked for or not."""

    frame: int = 1
    num_frames: int = 1
    axis: Axis | None = None
    index: int | None = None
    num_slices: int | None = None
    grey_mapping: GreyMapping = "none"
    windows: tuple[Window, ...] = ()


class KeptGreys(msgspec.Struct, frozen=True):
    """The grey levels that an original was made of, as the blob they are kept in."""

    name: str
    """sha256 of the blob."""
    blob: bytes


KEPT: Literal["kept"] = "kept"
"""The format of a blob of kept grey levels, which no upload is taken for."""
DecodedFormat = SourceFormat | Literal["kept"]

GREY_CHUNK = "grey-levels"
"""Keyword of the text chunk by which the PNG of an original names its grey levels."""


class CanonicalOriginal(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded original in the one form it is kept in."""

    png: bytes
    """8-bit RGB or L, upright, without metadata but for the name of its grey levels."""
    width_px: int
    height_px: int
    source_format: SourceFormat
    shown: Shown
    facts_json: bytes
    """`FileFacts`, as JSON."""
    greys: KeptGreys | None = None
    """What another window would show; None where there is no more than the PNG has."""

    @property
    def window_center(self) -> float | None:
        """Of the window that was applied, where it was one."""
        return self.shown.windows[0].center if len(self.shown.windows) == 1 else None

    @property
    def window_width(self) -> float | None:
        """As `window_center`."""
        return self.shown.windows[0].width if len(self.shown.windows) == 1 else None


def detect_format(data: bytes) -> SourceFormat:
    """The format by magic numbers; names and headers are never trusted.

    A file that is DICOM and TIFF at once (the standard allows it) is read as DICOM; gzip data is
    taken for NIfTI until the decoder looks into it.
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
    if data.startswith(GZIP_MAGIC) or is_nifti(data):
        return "nifti"
    raise unsupported(f"the content is no known image; {ACCEPTED}")


def is_nifti(data: bytes) -> bool:
    """Whether a NIfTI header begins here, version 1 or 2; gzip data is the decoder's to open."""
    return data[344:348] in _NIFTI1_MAGICS or data[4:8] in _NIFTI2_MAGICS


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


def choose_frame(asked: int | None, num_frames: int, what: str) -> int:
    """The frame to show, from 1. Raises `ApiProblem` 422 that says the count."""
    if num_frames < 1:
        raise unreadable(f"{what} says that it has {num_frames} frames")
    accepted = "frame=1" if num_frames == 1 else f"frame=1 to frame={num_frames}"
    count = f"{num_frames} frame{'s' * (num_frames != 1)}"
    if asked is None and num_frames > 1:
        raise unreadable(f"{what} has {count} and frame is missing; {accepted} is accepted")
    frame = asked or 1
    if frame > num_frames:
        raise unreadable(f"{what} has {count}, not frame {frame}; {accepted} is accepted")
    return frame
