"""The grey levels of an original, kept so that it can be shown in another window.

A file's stored values are kept as they are, losslessly, with what makes physical values of them:
slope and intercept of its rescaling, or neither where a modality LUT was applied already. The blob
is a header and zlib data, content-addressed like every blob; the original's PNG names it in a text
chunk, so the hash of an original stands for both. It is made and shown in the decoder child alone,
and shown by the very functions that ingest shows a file with; blanking a region reads it too.
"""

from typing import cast

from nibabel.volumeutils import apply_read_scaling
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from services.zoom.formats import CanonicalOriginal, KeptGreys, Rendering, Shown
from services.zoom.greys import Levels, Samples, exact_levels
from services.zoom.greys_blob import GreyHeader, packed, smallest, unpacked
from services.zoom.rasters import canonical
from services.zoom.window import grey_levels


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
    stored = smallest(stored, is_rescaled=slope is not None)
    header = GreyHeader(
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
    return packed(header, stored)


def keep_nifti(stored: Samples, slope: float | None, intercept: float | None) -> KeptGreys | None:
    """The grey levels of an upright slice, HW, before rescaling; None as `keep_dicom`."""
    if (slope or 1.0, intercept or 0.0) == (1.0, 0.0):
        slope = intercept = None
    stored = smallest(stored, is_rescaled=slope is not None)
    header = GreyHeader(
        source="nifti",
        dtype=stored.dtype.newbyteorder("<").str,
        width_px=stored.shape[1],
        height_px=stored.shape[0],
        slope=slope,
        intercept=intercept,
    )
    return packed(header, stored)


def show_kept(data: bytes, rendering: Rendering, max_pixels: int) -> CanonicalOriginal:
    """Kept grey levels in the window asked for. Raises `ApiProblem` if they are none of ours."""
    header, stored = unpacked(data, max_pixels)
    levels, shown = _levels(header, stored, rendering)
    return canonical(Image.fromarray(levels), header.source, shown)


def _levels(header: GreyHeader, samples: Samples, rendering: Rendering) -> tuple[Levels, Shown]:
    if header.source == "nifti":
        values = apply_read_scaling(samples, header.slope, header.intercept)
        levels = exact_levels(values, rendering.windows[0].center, rendering.windows[0].width)
        return levels, Shown(grey_mapping="requested_window", windows=rendering.windows)
    levels, mapping, windows = grey_levels(_dataset(header), samples, rendering.windows)
    levels = 255 - levels if header.is_inverted else levels
    return levels, Shown(grey_mapping=mapping, windows=windows)


def _dataset(header: GreyHeader) -> Dataset:
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
