"""Files that mean harm, and the builders of DICOM and NIfTI files."""

import gzip
import io
import struct
import zlib
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
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


def codestream_bomb(kind: str) -> bytes:
    """A modest header over a codestream that asks for gigabytes."""
    picture = np.tile(RAMP.astype(np.uint8), (8, 8))
    packed = dataset_of(picture)
    if kind == "JPEG 2000":
        packed.compress(JPEG2000Lossless)
        marker, sizes = b"\xff\x51", struct.pack(">8I", 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0)
        sizes_at = 6
    elif kind == "JPEG-LS":
        packed.compress(JPEGLSLossless)
        marker, sizes, sizes_at = b"\xff\xf7", struct.pack(">2H", 65_000, 65_000), 5
    else:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG")
        packed.PixelData = encapsulate([file.getvalue()])
        packed["PixelData"].is_undefined_length = True
        packed.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        marker, sizes, sizes_at = b"\xff\xc0", struct.pack(">2H", 65_000, 65_000), 5
    codestream = bytearray(packed.PixelData)
    at = codestream.index(marker) + sizes_at
    codestream[at : at + len(sizes)] = sizes
    packed.PixelData = bytes(codestream)
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


RAS = np.diag([2.0, 2.0, 2.0, 1.0])
"""Voxel axes that run to the patient's right, front and head."""


def nifti_of(voxels: np.ndarray, affine: np.ndarray = RAS, **fields: Any) -> bytes:
    """A NIfTI-1 file of voxels [x, y, z] or [x, y, z, frame], with these header fields."""
    volume = Nifti1Image(voxels, affine)
    for name, value in fields.items():
        volume.header[name] = value
    return volume.to_bytes()


def gzip_bomb() -> bytes:
    """A small volume, and a gigabyte of nothing behind it."""
    volume = nifti_of(np.zeros((4, 4, 4), np.int16))
    return gzip.compress(volume, mtime=0) + 64 * gzip.compress(bytes(2**24), mtime=0)


def nifti_claiming(*sizes: int) -> bytes:
    """Gzip data of a header alone that claims any shape."""
    header = bytearray(nifti_of(np.zeros((1, 1, 1), np.int16)))
    struct.pack_into("<8h", header, 40, len(sizes), *sizes, *[1] * (7 - len(sizes)))
    return gzip.compress(bytes(header), mtime=0)


def patched(data: bytes, text: str, word: str) -> bytes:
    """A file in which a value is another text of the same length, whatever its VR."""
    old = text.encode()
    assert old in data
    return data.replace(old, word.encode()[: len(old)].ljust(len(old)))


def canary_dataset(word: str, stored: np.ndarray = RAMP) -> Dataset:
    """A word in an element of every text VR, in nested, private and unknown ones and the meta.

    The word is of 16 capitals and digits at most, so that every VR may hold it.
    """
    dataset = dataset_of(stored)
    for holder in (nested := Dataset(), deeper := Dataset(), dataset):
        for keyword in _TEXT_KEYWORDS:
            setattr(holder, keyword, word)
        block = holder.private_block(0x0009, word, create=True)
        for offset, vr in enumerate(("LO", "PN", "SH", "ST", "LT", "UT", "UC"), start=1):
            block.add_new(offset, vr, word)
        block.add_new(0x20, "UN", word.encode())
        block.add_new(0x21, "OB", word.encode())
    nested.RequestAttributesSequence = Sequence([deeper])
    dataset.ReferencedPatientSequence = Sequence([nested])
    dataset.OtherPatientIDsSequence = Sequence([deeper])
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.99.1"
    dataset.preamble = word.encode().ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = word
    dataset.file_meta.ImplementationVersionName = word
    return dataset


_TEXT_KEYWORDS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientAddress", "PatientComments"),
    *("AccessionNumber", "InstitutionName", "StationName", "StudyDescription", "ProtocolName"),
    *("SeriesDescription", "ReferringPhysicianName", "OperatorsName", "ImageComments", "StudyID"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
    *("Modality", "BodyPartExamined", "ViewPosition", "Laterality", "PatientSex", "ImageType"),
    *("RetrieveAETitle", "RetrieveURL", "LongCodeValue", "TextValue", "URNCodeValue"),
)
"""Of AE, CS, LO, LT, PN, SH, ST, UC, UR and UT."""
