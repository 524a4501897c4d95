"""De-identification of a DICOM header (PS3.15 annex E); runs in the decoder child.

Invariant: a dataset never leaves the child. What leaves are facts that are on the list below, that
the Basic Application Level Confidentiality Profile left as they were, and that are numbers or
terms of the standard; and, on request, the identity. The picture is made of pixels alone.

The profile's table and actions are dicom-anonymizer's. Sequences, bulk data and elements that
cannot be read are dropped before it is applied, which is stricter, and an element whose action
fails is deleted: no header costs a file its picture.
"""

import math
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from typing import Any, cast

from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, CTImageStorage

from services.zoom.burned_in import burned_in_text
from services.zoom.identity import identity_of
from services.zoom.terms import BODY_PARTS, LATERALITIES, MODALITIES, PHOTOMETRIC, VIEW_POSITIONS
from shared.api.headers import Deidentification, FileFacts, ImageHeader

EDITION = "2026c"
PROFILE = "DICOM PS3.15 Basic Application Level Confidentiality Profile"

Action = Callable[[Dataset, tuple[int, int]], None]
Actions = dict[tuple[int, int], Action]

_MAX_ELEMENTS = 20_000
_RULED = (
    *("ImageType", "Manufacturer", "ManufacturerModelName", "SeriesDescription", "StationName"),
    *("StudyDescription", "PatientName", "BodyPartExamined", "CodeMeaning", "SoftwareVersions"),
    *("CommentsOnRadiationDose", "ConversionType", "BurnedInAnnotation", "PatientID"),
    *("SecondaryCaptureDeviceManufacturer", "SecondaryCaptureDeviceManufacturerModelName"),
)
"""Elements that the rules about text in the pixels look at."""
_DROPPED_VRS = ("SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN")


def _or_deleted(action: Action) -> Action:
    """The library does not know every VR with every action; no value survives that."""

    def act(dataset: Dataset, tag: tuple[int, int]) -> None:
        try:
            action(dataset, tag)
        except Exception:  # noqa: BLE001 - deleting is the strictest action
            del dataset[tag]

    return act


PROFILE_ACTIONS = cast(Actions, initialize_actions(f"dicomfields_{EDITION}"))
"""What the profile does to which attribute: (group, element), of ranges with masks."""

_GUARDED_ACTIONS = {tag: _or_deleted(action) for tag, action in PROFILE_ACTIONS.items()}
_LIBRARY = f"dicom-anonymizer {version('dicom-anonymizer')}"


def warm_up() -> None:
    """Let the libraries compile and remember what they need for any header."""
    made_up = FileDataset("", {})
    made_up.SOPClassUID, made_up.Modality = CTImageStorage, "CT"
    made_up.StudyDate, made_up.StudyTime = "20000101", "120000"
    for keyword in _RULED:
        setattr(made_up, keyword, "A")
    file_facts(made_up, with_identity=True)


def file_facts(dataset: Dataset, *, with_identity: bool) -> FileFacts:
    """What may be known of a file; uses the dataset up."""
    declared, reasons = burned_in_text(dataset)
    identity = identity_of(dataset, PROFILE_ACTIONS) if with_identity else None
    try:
        header = header_of(deidentified(dataset))
    except Exception:  # noqa: BLE001 - facts are worth less than the picture
        header = ImageHeader()
    return FileFacts(
        header=header,
        deidentification=Deidentification(
            profile=PROFILE,
            edition=EDITION,
            library=_LIBRARY,
            burned_in_text=declared,
            burned_in_reasons=reasons,
        ),
        identity=identity,
    )


def deidentified(dataset: Dataset) -> Dataset:
    """The top level of a dataset after the profile."""
    flat = Dataset()
    for tag in islice(dataset.keys(), _MAX_ELEMENTS):
        try:
            element = dataset[tag]
            if element.VR not in _DROPPED_VRS:
                flat.add(element)
        except Exception:  # noqa: BLE001 - what cannot be read is not passed on
            continue
    anonymize_dataset(flat, base_rules_gen=lambda: _GUARDED_ACTIONS)
    return flat


def header_of(dataset: Dataset) -> ImageHeader:
    """The facts of a de-identified dataset."""
    uid = UID(_text(dataset, "SOPClassUID") or "")
    return ImageHeader.model_validate(
        {
            "modality": _term(dataset, MODALITIES, "Modality"),
            "sop_class": uid.name if uid.type == "SOP Class" else None,
            "body_part": _term(dataset, BODY_PARTS, "BodyPartExamined"),
            "laterality": _term(dataset, LATERALITIES, "ImageLaterality", "Laterality"),
            "view_position": _term(dataset, VIEW_POSITIONS, "ViewPosition"),
            "photometric_interpretation": _term(dataset, PHOTOMETRIC, "PhotometricInterpretation"),
            "bits_stored": (_numbers(dataset, "BitsStored", 1) or [None])[0],
            "pixel_spacing_mm": _numbers(dataset, "PixelSpacing", 2),
            "imager_pixel_spacing_mm": _numbers(dataset, "ImagerPixelSpacing", 2),
            "slice_thickness_mm": (_numbers(dataset, "SliceThickness", 1) or [None])[0],
        }
    )


def _text(dataset: Dataset, keyword: str) -> str | None:
    value = dataset.get(keyword)
    return value.strip() if isinstance(value, str) else None


def _term(dataset: Dataset, terms: frozenset[str], *keywords: str) -> str | None:
    """The first of these elements that has one of the defined terms."""
    for keyword in keywords:
        if _text(dataset, keyword) in terms:
            return _text(dataset, keyword)
    return None


def _numbers(dataset: Dataset, keyword: str, count: int) -> list[float] | None:
    """So many numbers, finite and over zero."""
    value: Any = dataset.get(keyword)
    values = [value] if isinstance(value, (int, float)) else list(value or [])
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        return None
    is_sound = len(numbers) == count and all(math.isfinite(n) and n > 0 for n in numbers)
    return numbers if is_sound else None
