"""Whom a DICOM header names; runs in the decoder child, and only where the caller asks for it.

Names, identifiers and dates are those of the attributes that the profile's table takes out, at
any depth. The caller needs them to find the same words in a question.
"""

from collections.abc import Collection, Iterator

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from shared.api.headers import PatientIdentity

_MAX_DEPTH = 8
_MAX_ELEMENTS = 20_000
_MAX_VALUES = 128
_MAX_CHARS = 256
_PER_FRAME = "PerFrameFunctionalGroupsSequence"
"""Thousands of items, of which none names a person."""
_IDENTIFIER_VRS = ("LO", "SH", "ST", "LT", "UC", "UT")
_IDENTIFIER_ENDS = ("ID", "IDs", "Number", "Numbers", "Address", "InstitutionName")


def identity_of(dataset: Dataset, profile: Collection[tuple[int, int]]) -> PatientIdentity:
    """The identity in a header as it came; what cannot be read is left out."""
    names: dict[str, None] = {}
    identifiers: dict[str, None] = {}
    dates: dict[str, None] = {}
    for number, element in enumerate(_elements(dataset, 0)):
        if number >= _MAX_ELEMENTS:
            break
        if element.VR == "PN":
            names.update(dict.fromkeys(_values(element)))
        elif (element.tag.group, element.tag.element) not in profile:
            continue
        elif element.VR == "UI" or _is_identifier(element):
            identifiers.update(dict.fromkeys(_values(element)))
        elif element.VR in ("DA", "DT"):
            dates.update(dict.fromkeys(value[:8] for value in _values(element)))
    return PatientIdentity(
        patient_id=_first(dataset, "PatientID"),
        issuer_of_patient_id=_first(dataset, "IssuerOfPatientID"),
        patient_name=_first(dataset, "PatientName"),
        birth_date=_first(dataset, "PatientBirthDate"),
        accession_number=_first(dataset, "AccessionNumber"),
        study_uid=_first(dataset, "StudyInstanceUID"),
        series_uid=_first(dataset, "SeriesInstanceUID"),
        instance_uid=_first(dataset, "SOPInstanceUID"),
        names=list(names)[:_MAX_VALUES],
        identifiers=list(identifiers)[:_MAX_VALUES],
        dates=[d for d in dates if len(d) == 8 and d.isdecimal()][:_MAX_VALUES],
    )


def _is_identifier(element: DataElement) -> bool:
    return element.VR in _IDENTIFIER_VRS and element.keyword.endswith(_IDENTIFIER_ENDS)


def _elements(dataset: Dataset, depth: int) -> Iterator[DataElement]:
    """Every element that can be read, the nested ones after their sequence."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # noqa: BLE001 - a damaged element names nobody
            continue
        yield element
        if element.VR == "SQ" and element.keyword != _PER_FRAME and depth < _MAX_DEPTH:
            for item in element.value or []:
                yield from _elements(item, depth + 1)


def _values(element: DataElement) -> list[str]:
    values = element.value if element.VM > 1 else [element.value]
    texts = [_clean(str(value)) for value in values if value is not None]
    return [text for text in texts if text]


def _clean(text: str) -> str:
    """Fit for JSON and for a look: what is no character is dropped."""
    return text.encode("utf-8", "ignore").decode().strip("\0 \t\r\n")[:_MAX_CHARS]


def _first(dataset: Dataset, keyword: str) -> str | None:
    try:
        values = _values(dataset[keyword])
    except Exception:  # noqa: BLE001 - absent, or not to be read
        return None
    return values[0] if values else None
