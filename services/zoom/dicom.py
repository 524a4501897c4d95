"""A frame of a DICOM file to the canonical original; runs in the decoder child.

Everything the header claims is checked against the limits before any pixel is decoded: pydicom
itself allocates whatever the header says. Of several frames only the one asked for is decoded.
The default window is the file's first VOI LUT, else its first window, else the range of its
values. Overlays, pixel aspect ratio and colour profiles are ignored.
"""

import io
import re
import zlib
from typing import cast

import msgspec
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble  # pyright: ignore[reportPrivateUsage]
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from services.zoom.formats import (
    MAX_SAMPLE_BYTES,
    CanonicalOriginal,
    Rendering,
    Shown,
    Window,
    check_size,
    choose_frame,
    too_large,
    unreadable,
    unsupported,
)
from services.zoom.greys import Samples, scale_to_levels
from services.zoom.kept import keep_dicom
from services.zoom.rasters import canonical
from services.zoom.terms import MODALITIES, PHOTOMETRIC
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
_UID = re.compile(r"[0-9.]{1,64}")
_OF_PIXEL_DATA = ("The number of bytes of pixel data", "Unable to decode as exceptions were raised")
"""How pydicom begins to say what its decoders say."""
_FRAME_MACROS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}
"""Where an enhanced image keeps what others have at the top: rescaling and window."""


def decode_dicom(
    data: bytes, rendering: Rendering, max_pixels: int, *, with_identity: bool = False
) -> CanonicalOriginal:
    """Decode a frame of a DICOM file. Raises `ApiProblem` naming what was wrong."""
    if rendering.axis is not None or rendering.index is not None:
        raise unreadable(
            "axis and index are accepted with NIfTI files; this is a DICOM file, "
            "of which a frame is accepted"
        )
    check_transfer_syntax(data, max_pixels)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        check_header(dataset, max_pixels)
        num_frames = _num_frames(dataset)
        frame = choose_frame(rendering.frame, num_frames, "the DICOM file")
        _lift_frame_macros(dataset, frame)
        _check_windows(dataset, rendering.windows)
    except (ApiProblem, MemoryError):
        raise
    except Exception as error:  # a header's message may quote the patient
        raise unreadable(f"the DICOM header cannot be read ({type(error).__name__})") from error
    try:
        stored = pixel_array(dataset, raw=False, index=None if num_frames == 1 else frame - 1)
        greys = keep_dicom(dataset, stored) if _is_grey(dataset) else None
        levels, shown = _shown(dataset, stored, rendering.windows)
    except (ApiProblem, MemoryError):
        raise
    except Exception as error:
        raise unreadable(f"the DICOM pixel data cannot be decoded ({_reason(error)})") from error
    shown = msgspec.structs.replace(shown, frame=frame, num_frames=num_frames)
    # The decoder host has loaded it before the first DICOM file; other files need it never.
    from services.zoom.deidentify import file_facts

    facts = file_facts(dataset, with_identity=with_identity)
    return canonical(levels, "dicom", shown, facts, greys)


def _reason(error: Exception) -> str:
    """What a decoder says of the pixel data; any other message may quote the header."""
    said, kind = " ".join(str(error).split()), type(error).__name__
    return f"{kind}: {said[:300]}" if said.startswith(_OF_PIXEL_DATA) else kind


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
        named = uid if _UID.fullmatch(uid) else "of this name"
        raise unsupported(f"transfer syntax {named} is not accepted; accepted: {accepted}")
    if uid == DEFLATED:
        most_bytes = max_pixels * MAX_SAMPLE_BYTES
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
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(columns, rows, max_pixels)
    num_samples, num_bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
    if num_samples not in (1, 3):
        raise unreadable(f"SamplesPerPixel is {num_samples}; 1 and 3 are accepted")
    if num_bits not in (1, 8, 16, 32, 64):
        raise unreadable(f"BitsAllocated is {num_bits}; 1, 8, 16, 32 and 64 are accepted")
    if num_samples * num_bits > 8 * MAX_SAMPLE_BYTES:
        raise unreadable(f"{num_samples} samples of {num_bits} bits a pixel are not accepted")
    kind = str(dataset.PhotometricInterpretation)
    if kind not in (*_GREY, *_COLOUR, _PALETTE):
        accepted = ", ".join((*_GREY, *_COLOUR, _PALETTE))
        named = f" {kind!r}" if kind in PHOTOMETRIC else ""
        raise unreadable(f"PhotometricInterpretation{named} is not one of {accepted}")
    if (kind in _COLOUR) != (num_samples == 3):
        raise unreadable(f"{kind} with {num_samples} samples a pixel contradicts itself")


def _is_grey(dataset: Dataset) -> bool:
    return str(dataset.PhotometricInterpretation) in _GREY


def _num_frames(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _lift_frame_macros(dataset: Dataset, frame: int) -> None:
    """To the top of the dataset, where pydicom looks: the frame's own, else what all share."""
    shared, per_frame = (
        cast("list[Dataset]", dataset.get(keyword) or [])
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    )
    for group in [*shared[:1], *per_frame[frame - 1 : frame]]:
        for keyword, elements in _FRAME_MACROS.items():
            for macro in cast("list[Dataset]", group.get(keyword) or [])[:1]:
                for element in elements:
                    if element in macro:
                        dataset.add(macro[element])


def _check_windows(dataset: Dataset, asked: tuple[Window, ...]) -> None:
    """Windows are for greys, and those with a name for Hounsfield units. Raises `ApiProblem`."""
    kind = str(dataset.PhotometricInterpretation)
    if asked and kind not in _GREY:
        raise unreadable(f"windows are accepted with grey images; this one is {kind}")
    is_named = any(window.preset is not None for window in asked)
    modality = str(dataset.get("Modality") or "not given")
    modality = modality if modality in (*MODALITIES, "not given") else "none of the defined terms"
    if is_named and modality != "CT":
        raise unreadable(
            "named windows are in Hounsfield units and accepted with CT; the Modality is "
            f"{modality}: window_center and window_width are accepted"
        )
    if is_named and not ("RescaleIntercept" in dataset or "ModalityLUTSequence" in dataset):
        raise unreadable(
            "named windows are in Hounsfield units, and the DICOM header has no rescale to them; "
            "window_center and window_width are accepted"
        )


def _shown(
    dataset: Dataset, stored: Samples, asked: tuple[Window, ...]
) -> tuple[Image.Image, Shown]:
    """The image as asked for, or as a viewer would first show it; and what was applied."""
    kind = str(dataset.PhotometricInterpretation)
    if _is_grey(dataset):
        levels, mapping, windows = grey_levels(dataset, stored, asked)
        levels = 255 - levels if kind == "MONOCHROME1" else levels
        return Image.fromarray(levels), Shown(grey_mapping=mapping, windows=windows)
    if kind == _PALETTE:
        num_bits = _check_palette(dataset)
        colours = apply_color_lut(stored, dataset)[..., :3]
    else:
        num_bits, colours = int(dataset.get("BitsStored") or dataset.BitsAllocated), stored
    if colours.dtype != np.uint8 or num_bits != 8:
        colours = scale_to_levels(colours, 0.0, float(2**num_bits - 1))
    return Image.fromarray(np.ascontiguousarray(colours)), Shown()


def _check_palette(dataset: Dataset) -> int:
    """Bits of a palette entry; refuses a palette that pydicom would index with too few bits."""
    descriptor = cast(list[int], dataset.RedPaletteColorLookupTableDescriptor)
    num_entries, num_bits = int(descriptor[0]) or 2**16, int(descriptor[2])
    entries = dataset.get("RedPaletteColorLookupTableData")
    if num_entries > 256 and (num_bits == 8 if entries is None else len(entries) == num_entries):
        raise unreadable(f"a palette of {num_entries} entries of 8 bits is not supported")
    return num_bits
