"""A phantom in Hounsfield units as the file a scanner would send: DICOM Part 10, by pydicom."""

import io

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

_INTERCEPT_HU = -1024
_BITS_STORED = 12


def dicom_bytes(hounsfield_hw: NDArray[np.int16], window: tuple[int, int], name: str) -> bytes:
    """A CT image that asks to be shown in `window` (center, width); the same name, the same file.

    Values from -1024 to 3071 HU are stored in 12 bits, without a sign.
    """
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=[name, "instance"])
    image.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    image.PatientName, image.PatientID, image.Modality = "Phantom", name, "CT"
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    image.Rows, image.Columns = hounsfield_hw.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, _BITS_STORED, _BITS_STORED - 1
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, _INTERCEPT_HU, "HU"
    image.WindowCenter, image.WindowWidth = window
    image.PixelData = (hounsfield_hw - _INTERCEPT_HU).astype("<u2").tobytes()
    written = io.BytesIO()
    image.save_as(written, enforce_file_format=True)
    return written.getvalue()
