"""The grey levels of an original, kept so that it can be shown in another window.

A file's stored values are kept as they are, losslessly, with what makes physical values of them:
slope and intercept of its rescaling, or neither where a modality LUT was applied already. The blob
is a header and zlib data, content-addressed like every blob; the original's PNG names it in a text
chunk, so the hash of an original stands for both. It is made, and read again, in the decoder child
alone, and shown by the very functions that ingest shows a file with.
"""

import hashlib
import math
import zlib
from typing import Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
from nibabel.volumeutils import apply_read_scaling
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from services.zoom.formats import CanonicalOriginal, KeptGreys, Rendering, Shown, unreadable
from services.zoom.greys import Levels, Samples, exact_levels
from services.zoom.rasters import canonical
from services.zoom.window import grey_levels

_COMPRESSION = 1
"""zlib's level: for speed."""
_DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")
_HEADER_SIZE_BYTES = 4
_MOST_WHOLE = 2**31
"""Whole floats under this are kept as integers."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the samples are."""

    source: Literal["dicom", "nifti"]
    dtype: str
    width_px: int
    height_px: int
    slope: float | None
    """None, as the intercept then: the samples are physical values."""
    intercept: float | None
    bits_stored: int = 0
    """DICOM: with `is_signed`, the range in which pydicom works a window out."""
    is_signed: bool = False
    function: str = "LINEAR"
    """DICOM: how the file's windows are to be read, and those asked for."""
    is_inverted: bool = False
    """DICOM: MONOCHROME1."""


def keep_dicom(dataset: Dataset, stored: Samples) -> KeptGreys | None:
    """The grey levels of a decoded grey frame, HW; None for samples of an odd type."""
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    bits_stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    is_signed = int(dataset.get("PixelRepresentation") or 0) == 1
    if dataset.get("ModalityLUTSequence"):
        lut = cast("list[Dataset]", dataset.ModalityLUTSequence)[0]
        stored, slope, intercept = apply_modality_lut(stored, dataset), None, None
        bits_stored, is_signed = int(cast("list[int]", lut.LUTDescriptor)[2]), False
    if slope is None or intercept is None:
        slope = intercept = None
    stored = _smallest(stored, is_rescaled=slope is not None)
    header = _Header(
        source="dicom",
        dtype=stored.dtype.newbyteorder("<").str,
        width_px=stored.shape[1],
        height_px=stored.shape[0],
        slope=None if slope is None else float(slope),
        intercept=None if intercept is None else float(intercept),
        bits_stored=bits_stored,
        is_signed=is_signed,
        function=str(dataset.get("VOILUTFunction") or "LINEAR"),
        is_inverted=str(dataset.PhotometricInterpretation) == "MONOCHROME1",
    )
    return _packed(header, stored)


def keep_nifti(stored: Samples, slope: float | None, intercept: float | None) -> KeptGreys | None:
    """The grey levels of an upright slice, HW, before rescaling; None as `keep_dicom`."""
    if (slope or 1.0, intercept or 0.0) == (1.0, 0.0):
        slope = intercept = None
    stored = _smallest(stored, is_rescaled=slope is not None)
    header = _Header(
        source="nifti",
        dtype=stored.dtype.newbyteorder("<").str,
        width_px=stored.shape[1],
        height_px=stored.shape[0],
        slope=slope,
        intercept=intercept,
    )
    return _packed(header, stored)


def _smallest(stored: Samples, *, is_rescaled: bool) -> Samples:
    """The same values in the first type of `_DTYPES` that holds them, so that they name one blob.

    Floats become integers only where they are the physical values and all whole.
    """
    if np.issubdtype(stored.dtype, np.floating):
        is_whole = np.isfinite(stored).all() and (stored == np.rint(stored)).all()
        if is_rescaled or not is_whole or np.abs(stored).max() >= _MOST_WHOLE:
            return stored
        stored = stored.astype(np.int64)
    low, high = int(stored.min()), int(stored.max())
    for name in _DTYPES[:6]:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return stored.astype(name)
    return stored


def _packed(header: _Header, stored: Samples) -> KeptGreys | None:
    if header.dtype not in _DTYPES or stored.ndim != 2:
        return None
    written = msgspec.json.encode(header)
    samples = np.ascontiguousarray(stored, dtype=header.dtype).tobytes()
    blob = len(written).to_bytes(_HEADER_SIZE_BYTES, "little") + written
    blob += zlib.compress(samples, _COMPRESSION)
    return KeptGreys(name=hashlib.sha256(blob).hexdigest(), blob=blob)


def show_kept(data: bytes, rendering: Rendering, max_pixels: int) -> CanonicalOriginal:
    """Kept grey levels in the window asked for. Raises `ApiProblem` if they are none of ours."""
    start = _HEADER_SIZE_BYTES + int.from_bytes(data[:_HEADER_SIZE_BYTES], "little")
    try:
        header = msgspec.json.decode(data[_HEADER_SIZE_BYTES:start], type=_Header)
    except msgspec.MsgspecError as error:
        raise unreadable("the blob holds no grey levels") from error
    shape = (header.height_px, header.width_px)
    if header.dtype not in _DTYPES or math.prod(shape) > max_pixels:
        raise unreadable("the blob holds no grey levels that this service kept")
    dtype = np.dtype(header.dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    samples = zlib.decompressobj().decompress(data[start:], num_bytes)
    if len(samples) != num_bytes:
        raise unreadable(f"the grey levels end after {len(samples)} of {num_bytes} bytes")
    stored = np.frombuffer(samples, dtype).reshape(shape)
    levels, shown = _levels(header, stored, rendering)
    return canonical(Image.fromarray(levels), header.source, shown)


def _levels(
    header: _Header, stored: npt.NDArray[np.generic], rendering: Rendering
) -> tuple[Levels, Shown]:
    samples = cast(Samples, stored)
    if header.source == "nifti":
        values = apply_read_scaling(samples, header.slope, header.intercept)
        levels = exact_levels(values, rendering.windows[0].center, rendering.windows[0].width)
        return levels, Shown(grey_mapping="requested_window", windows=rendering.windows)
    levels, mapping, windows = grey_levels(_dataset(header), samples, rendering.windows)
    levels = 255 - levels if header.is_inverted else levels
    return levels, Shown(grey_mapping=mapping, windows=windows)


def _dataset(header: _Header) -> Dataset:
    """What pydicom needs to apply a window; doubles, for a decimal string may be too short."""
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME1" if header.is_inverted else "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = header.bits_stored, int(header.is_signed)
    dataset.VOILUTFunction = header.function
    numbers = {"WindowCenter": 0.0, "WindowWidth": 1.0}
    if header.slope is not None and header.intercept is not None:
        numbers |= {"RescaleSlope": header.slope, "RescaleIntercept": header.intercept}
    for keyword, number in numbers.items():
        dataset.add(DataElement(keyword, "FD", number))
    return dataset
