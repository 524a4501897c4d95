"""The blob of kept grey levels (`kept`): a header and zlib data. Only numpy is needed for it."""

import hashlib
import math
import zlib
from typing import Literal, cast

import msgspec
import numpy as np

from services.zoom.formats import KeptGreys, unreadable
from services.zoom.greys import Samples

_COMPRESSION = 1
"""zlib's level: for speed."""
_DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")
_HEADER_SIZE_BYTES = 4
_MOST_WHOLE = 2**31
"""Whole floats under this are kept as integers."""


class GreyHeader(msgspec.Struct, frozen=True, kw_only=True):
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


def smallest(stored: Samples, *, is_rescaled: bool) -> Samples:
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


def packed(header: GreyHeader, stored: Samples) -> KeptGreys | None:
    """The blob of stored values; None for values of an odd type or that are no plain image."""
    if header.dtype not in _DTYPES or stored.ndim != 2:
        return None
    written = msgspec.json.encode(header)
    samples = np.ascontiguousarray(stored, dtype=header.dtype).tobytes()
    blob = len(written).to_bytes(_HEADER_SIZE_BYTES, "little") + written
    blob += zlib.compress(samples, _COMPRESSION)
    return KeptGreys(name=hashlib.sha256(blob).hexdigest(), blob=blob)


def unpacked(blob: bytes, max_pixels: int) -> tuple[GreyHeader, Samples]:
    """Header and stored values, HW. Raises `ApiProblem` if the blob is none of ours."""
    start = _HEADER_SIZE_BYTES + int.from_bytes(blob[:_HEADER_SIZE_BYTES], "little")
    try:
        header = msgspec.json.decode(blob[_HEADER_SIZE_BYTES:start], type=GreyHeader)
    except msgspec.MsgspecError as error:
        raise unreadable("the blob holds no grey levels") from error
    shape = (header.height_px, header.width_px)
    if header.dtype not in _DTYPES or math.prod(shape) > max_pixels:
        raise unreadable("the blob holds no grey levels that this service kept")
    dtype = np.dtype(header.dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    samples = zlib.decompressobj().decompress(blob[start:], num_bytes)
    if len(samples) != num_bytes:
        raise unreadable(f"the grey levels end after {len(samples)} of {num_bytes} bytes")
    return header, cast(Samples, np.frombuffer(samples, dtype).reshape(shape))
