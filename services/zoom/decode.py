"""Any accepted file to the canonical original. Only the decoder child calls this."""

from services.zoom.dicom import decode_dicom
from services.zoom.formats import (
    KEPT,
    CanonicalOriginal,
    DecodedFormat,
    Rendering,
    too_large,
    unreadable,
)
from services.zoom.kept import show_kept
from services.zoom.nifti import decode_nifti
from services.zoom.rasters import decode_raster
from shared.errors import ApiProblem

_NAMING_PATIENTS = ("dicom", "nifti")
"""Formats whose headers a message of a library may quote."""


def decode_original(
    data: bytes,
    source_format: DecodedFormat,
    rendering: Rendering,
    max_pixels: int,
    *,
    with_identity: bool = False,
) -> CanonicalOriginal:
    """The canonical original. Raises nothing but `ApiProblem`, whatever the bytes are."""
    try:
        if source_format == "dicom":
            return decode_dicom(data, rendering, max_pixels, with_identity=with_identity)
        if source_format == KEPT:
            return show_kept(data, rendering, max_pixels)
        if source_format == "nifti":
            return decode_nifti(data, rendering, max_pixels)
        return decode_raster(data, source_format, rendering, max_pixels)
    except ApiProblem:
        raise
    except MemoryError as error:
        raise too_large("decoding needs more memory than one image may use") from error
    except Exception as error:
        reason = type(error).__name__
        if source_format not in _NAMING_PATIENTS:
            reason += f": {' '.join(str(error).split())[:300]}"
        raise unreadable(
            f"the {source_format.upper()} file cannot be decoded ({reason})"
        ) from error
