"""Files that mean harm, and the builders of DICOM files."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

RAMP = np.arange(0, 100, dtype=np.uint16).reshape(10, 10)


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Length, name, content, checksum."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_claiming(width: int, height: int, bits: int = 8, body: bytes = bytes(1000)) -> bytes:
    """A small PNG whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(body, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def dataset_of(stored: np.ndarray, photometric: str = "MONOCHROME2", **elements: Any) -> Dataset:
    """A minimal image dataset holding these stored values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.PatientName = "Doe^Jane"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW" if stored.dtype.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def file_of(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def rle_bomb() -> bytes:
    """A few hundred bytes that ask for gigabytes."""
    packed = dataset_of(RAMP)
    packed.compress(RLELossless)
    packed.Rows = packed.Columns = 46340
    return file_of(packed)


def deflate_bomb() -> bytes:
    """A file under a megabyte that inflates to 64."""
    dataset = dataset_of(RAMP)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = file_of(dataset)
    (group_length,) = struct.unpack_from("<I", data, 140)  # preamble, DICM, then its element
    body_at = 144 + group_length
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return data[:body_at] + squeezer.compress(bytes(2**26)) + squeezer.flush()


def off_the_list() -> bytes:
    """A transfer syntax that nobody registered."""
    plain = file_of(dataset_of(RAMP))
    return plain.replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.9\x00")
