"""Single-frame DICOM to the canonical original; runs in the decoder child.

Everything the header claims is checked against the limits before any pixel is decoded: pydicom
itself allocates whatever the header says. The default window is the file's first VOI LUT, else
its first window, else the range of its values. Overlays, pixel aspect ratio and colour profiles
are ignored.
"""

import io
import zlib
from typing import cast

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble  # pyright: ignore[reportPrivateUsage]
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from services.zoom.formats import (
    CanonicalOriginal,
    check_single_frame,
    check_size,
    too_large,
    unreadable,
    unsupported,
)
from services.zoom.greys import Samples, scale_to_levels
from services.zoom.rasters import canonical
from services.zoom.window import grey_levels
from shared.errors import ApiProblem

DEFLATED = "1.2.840.10008.1.2.1.99"

ACCEPTED_TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    DEFLATED: "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless, first-order prediction",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K Lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K Lossless RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MAX_SAMPLE_BYTES = 12
"""Most bytes of a pixel: three samples of 32 bits."""


def decode_dicom(data: bytes, max_pixels: int) -> CanonicalOriginal:
    """Decode a DICOM file. Raises `ApiProblem` naming what was wrong."""
    check_transfer_syntax(data, max_pixels)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        check_header(dataset, max_pixels)
    except (ApiProblem, MemoryError):
        raise
    except Exception as error:  # a header's message may quote the patient
        raise unreadable(f"the DICOM header cannot be read ({type(error).__name__})") from error
    try:
        stored = pixel_array(dataset, raw=False)
        levels, window = _shown(dataset, stored)
    except (ApiProblem, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise unreadable(
            f"the DICOM pixel data cannot be decoded ({type(error).__name__}: {reason})"
        ) from error
    return canonical(levels, "dicom", window)


def check_transfer_syntax(data: bytes, max_pixels: int) -> None:
    """Allow-list from the file meta; a deflated file must not inflate beyond any real one."""
    stream = io.BytesIO(data)
    try:
        read_preamble(stream, False)
        uid = str(_read_file_meta_info(stream).get("TransferSyntaxUID", ""))
    except Exception as error:
        raise unreadable(
            f"the DICOM file meta information cannot be read ({type(error).__name__})"
        ) from error
    if not uid:
        raise unreadable("the DICOM file meta information names no transfer syntax")
    if uid not in ACCEPTED_TRANSFER_SYNTAXES:
        accepted = ", ".join(ACCEPTED_TRANSFER_SYNTAXES.values())
        raise unsupported(f"transfer syntax {uid[:64]} is not accepted; accepted: {accepted}")
    if uid == DEFLATED:
        most_bytes = max_pixels * _MAX_SAMPLE_BYTES
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            num_bytes = len(inflater.decompress(stream.read(), most_bytes + 1))
        except zlib.error as error:
            raise unreadable("the deflated DICOM data cannot be inflated") from error
        if num_bytes > most_bytes:
            raise too_large(f"the deflated DICOM data inflates to over {most_bytes} bytes")


def check_header(dataset: Dataset, max_pixels: int) -> None:
    """Everything that decides what decoding will cost. Raises `ApiProblem`."""
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise unreadable("the DICOM file holds no image (no pixel data)")
    missing = [
        keyword
        for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
        if dataset.get(keyword) is None
    ]
    if missing:
        raise unreadable(f"the DICOM header lacks {', '.join(missing)}")
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_single_frame(num_frames, "the DICOM file")
    check_size(columns, rows, max_pixels)
    num_samples, num_bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
    if num_samples not in (1, 3):
        raise unreadable(f"SamplesPerPixel is {num_samples}; 1 and 3 are accepted")
    if num_bits not in (1, 8, 16, 32, 64):
        raise unreadable(f"BitsAllocated is {num_bits}; 1, 8, 16, 32 and 64 are accepted")
    if num_samples * num_bits > 8 * _MAX_SAMPLE_BYTES:
        raise unreadable(f"{num_samples} samples of {num_bits} bits a pixel are not accepted")
    kind = str(dataset.PhotometricInterpretation)
    if kind not in (*_GREY, *_COLOUR, _PALETTE):
        accepted = ", ".join((*_GREY, *_COLOUR, _PALETTE))
        raise unreadable(f"PhotometricInterpretation {kind[:16]!r} is not one of {accepted}")
    if (kind in _COLOUR) != (num_samples == 3):
        raise unreadable(f"{kind} with {num_samples} samples a pixel contradicts itself")


def _shown(dataset: Dataset, stored: Samples) -> tuple[Image.Image, tuple[float, float] | None]:
    """The image as a viewer would first show it, and the (center, width) that was applied."""
    kind = str(dataset.PhotometricInterpretation)
    if kind in _GREY:
        levels, window = grey_levels(dataset, stored)
        return Image.fromarray(255 - levels if kind == "MONOCHROME1" else levels), window
    if kind == _PALETTE:
        num_bits = _check_palette(dataset)
        colours = apply_color_lut(stored, dataset)[..., :3]
    else:
        num_bits, colours = int(dataset.get("BitsStored") or dataset.BitsAllocated), stored
    if colours.dtype != np.uint8 or num_bits != 8:
        colours = scale_to_levels(colours, 0.0, float(2**num_bits - 1))
    return Image.fromarray(np.ascontiguousarray(colours)), None


def _check_palette(dataset: Dataset) -> int:
    """Bits of a palette entry; refuses a palette that pydicom would index with too few bits."""
    descriptor = cast(list[int], dataset.RedPaletteColorLookupTableDescriptor)
    num_entries, num_bits = int(descriptor[0]) or 2**16, int(descriptor[2])
    entries = dataset.get("RedPaletteColorLookupTableData")
    if num_entries > 256 and (num_bits == 8 if entries is None else len(entries) == num_entries):
        raise unreadable(f"a palette of {num_entries} entries of 8 bits is not supported")
    return num_bits
