"""What of a file's header leaves zoom: facts that name nobody, and on request the identity.

A fact is a number, or a term that the DICOM standard defines: free text is never one, because
anything may stand in it.
"""

from typing import Literal

from pydantic import Field

from shared.api.base import WireModel

BurnedInText = Literal["not_stated", "declared_absent", "suspected", "declared"]
"""Text in the pixels, by the header alone, for no pixel is read for text: it says nothing of it;
it says that there is none; it is of a kind that often has some; it says that there is."""


class ImageHeader(WireModel):
    """Facts of a DICOM header after de-identification; null where the header gives none."""

    modality: str | None = None
    """A defined term of PS3.3 C.7.3.1.1.1, as `CT`."""
    sop_class: str | None = None
    """Registered name of the SOP class, as `CT Image Storage`."""
    body_part: str | None = None
    """A defined term of PS3.16 annex L, as `CHEST`."""
    laterality: Literal["R", "L", "U", "B"] | None = None
    """Right, left, unpaired, both."""
    view_position: str | None = None
    """Of a projection, as `PA` or `MLO`."""
    photometric_interpretation: str | None = None
    bits_stored: int | None = None
    """Of a sample."""
    pixel_spacing_mm: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """Between rows, between columns, in the patient."""
    imager_pixel_spacing_mm: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """The same at the detector: not corrected for magnification."""
    slice_thickness_mm: float | None = None


class Deidentification(WireModel):
    """How a picture was parted from whom it shows."""

    profile: str | None = None
    """Applied to a DICOM header before facts were read; null for the other formats, of which
    nothing but pixels is kept."""
    edition: str | None = None
    """Of the standard whose table of attributes was applied."""
    library: str | None = None
    burned_in_text: BurnedInText = "not_stated"
    burned_in_reasons: list[str] = []
    """Why it is suspected or declared: the rules that hold, in words of their own."""


class PatientIdentity(WireModel):
    """Whom a DICOM file shows, from its header as it came; zoom neither keeps nor logs it."""

    patient_id: str | None = None
    issuer_of_patient_id: str | None = None
    patient_name: str | None = None
    """As DICOM writes it: `family^given^middle^prefix^suffix`."""
    birth_date: str | None = None
    """YYYYMMDD."""
    accession_number: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    instance_uid: str | None = None
    names: list[str] = []
    """Every person's name in the header, the patient's too."""
    identifiers: list[str] = []
    """Every number, address or UID that the profile would take out."""
    dates: list[str] = []
    """YYYYMMDD: of birth, study, series, acquisition and the like."""


class FileFacts(WireModel):
    """What is known of a file beside its picture."""

    header: ImageHeader | None = None
    """Of a DICOM file."""
    deidentification: Deidentification = Deidentification()
    identity: PatientIdentity | None = None
    """Of a DICOM file, where the query asks for it."""
