"""What leaves zoom of a header: facts that name nobody, a warning, and identity where asked for."""

import json
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from services.zoom.deidentify import PROFILE, deidentified, file_facts, header_of
from services.zoom.formats import Rendering, Window
from services.zoom.sandbox import Sandbox
from shared.api.headers import FileFacts, ImageHeader
from shared.api.zoom import RenderingRequest
from shared.clients.zoom import ZoomClient
from shared.errors import ApiProblem
from tests.zoom.files import RAMP, canary_dataset, dataset_of, file_of, nifti_of, patched

CANARY = "ZQXCANARY7"

PATIENT = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19540312",
    "AccessionNumber": "ACC900",
    "StudyInstanceUID": "1.2.3.4",
    "StudyDate": "20200301",
    "ReferringPhysicianName": "House^Gregory^^Dr",
}
CHEST = {
    "SOPClassUID": CTImageStorage,
    "Modality": "CT",
    "BodyPartExamined": "CHEST",
    "PixelSpacing": [0.7, 0.8],
    "SliceThickness": "5",
    "StudyDescription": "Jane's chest",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "Manufacturer": "ACME",
}


async def test_facts_are_terms_and_numbers_and_name_nobody(zoom: ZoomClient) -> None:
    answer = await zoom.ingest(file_of(dataset_of(RAMP, **PATIENT, **CHEST)))
    assert answer.header == ImageHeader(
        modality="CT",
        sop_class="CT Image Storage",
        body_part="CHEST",
        photometric_interpretation="MONOCHROME2",
        bits_stored=16,
        pixel_spacing_mm=[0.7, 0.8],
        slice_thickness_mm=5.0,
    )
    assert answer.identity is None
    assert (answer.deidentification.profile, answer.deidentification.edition) == (PROFILE, "2026c")
    assert answer.deidentification.library == "dicom-anonymizer 2.1.0"
    told = answer.model_dump_json()
    for word in ("Doe", "Jane", "4711", "1954", "ACC900", "1.2.3.4", "2020", "House"):
        assert word not in told


async def test_identity_is_told_only_where_it_is_asked_for(zoom: ZoomClient) -> None:
    other = Dataset()
    other.PatientID, other.OtherPatientNames = "OLD-99", "Roe^Jane"
    data = file_of(dataset_of(RAMP, **PATIENT, OtherPatientIDsSequence=Sequence([other])))
    asked = await zoom.ingest(data, identity=True)
    plain = await zoom.ingest(data)
    assert plain == asked.model_copy(update={"identity": None})
    identity = asked.identity
    assert identity is not None
    assert (identity.patient_name, identity.patient_id) == ("Doe^Jane", "MRN-4711")
    assert (identity.birth_date, identity.study_uid) == ("19540312", "1.2.3.4")
    assert set(identity.names) == {"Doe^Jane", "House^Gregory^^Dr", "Roe^Jane"}
    assert {"MRN-4711", "OLD-99", "ACC900", "1.2.3.4"} <= set(identity.identifiers)
    assert set(identity.dates) == {"19540312", "20200301"}


async def test_other_formats_have_neither_header_nor_identity(
    zoom: ZoomClient, encoded: Any
) -> None:
    named = nifti_of(np.zeros((2, 2, 2), np.int16), descrip=CANARY, aux_file=CANARY)
    slice_of = RenderingRequest(axis="axial", index=0)
    for answer in (
        await zoom.ingest(encoded(RAMP.astype(np.uint8), "PNG"), identity=True),
        await zoom.ingest(named, rendering=slice_of, identity=True),
    ):
        facts = (answer.header, answer.identity, answer.deidentification.profile)
        assert facts == (None, None, None)
        assert answer.deidentification.burned_in_text == "not_stated"
        assert CANARY not in answer.model_dump_json()
        assert CANARY.encode() not in await zoom.image_bytes(answer.image)


async def test_a_word_in_every_text_element_is_in_nothing_that_leaves(zoom: ZoomClient) -> None:
    answer = await zoom.ingest(file_of(canary_dataset(CANARY)))
    assert CANARY not in answer.model_dump_json()
    assert CANARY.encode() not in await zoom.image_bytes(answer.image)
    asked = await zoom.ingest(file_of(canary_dataset(CANARY)), identity=True)
    assert asked.identity is not None
    assert asked.identity.patient_name == CANARY


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("RescaleSlope", "1.2500000"),
        ("PhotometricInterpretation", "MONOCHROME9"),
        ("Modality", "RTIMAGE"),
        ("NumberOfFrames", "4711"),
    ],
)
async def test_a_refusal_quotes_no_word_of_the_header(
    sandbox: Sandbox, keyword: str, value: str
) -> None:
    """The word is where a number or a term is read, so that reading it fails."""
    usual = {"Modality": "CT", "RescaleIntercept": 0, "RescaleSlope": 1}
    data = file_of(dataset_of(RAMP, **(usual | {keyword: value})))
    data = patched(data, value, CANARY)
    asked = Rendering(windows=(Window(40, 80, preset="brain"),))
    with pytest.raises(ApiProblem) as refused:
        sandbox.decode(data, "dicom", asked)
    assert refused.value.status == 422
    assert CANARY[:4] not in refused.value.detail


def test_the_profile_is_applied_to_what_facts_are_read_from() -> None:
    dataset = dataset_of(RAMP, **PATIENT, **CHEST)
    dataset.add_new(0x00080080, "AT", 0x00100010)  # InstitutionName of a VR it cannot have
    dataset.add_new(0x00091001, "LO", "private")
    flat = deidentified(dataset)
    assert header_of(flat).modality == "CT"
    assert str(flat.get("PatientName", "")) in ("", "ANONYMIZED")
    assert "StudyDescription" not in flat
    assert (0x00080080 in flat, 0x00091001 in flat, "PixelData" in flat) == (False,) * 3
    text = str(flat)
    assert all(word not in text for word in ("Doe", "Jane", "4711", "1954", "House", "1.2.3.4"))


def test_a_header_that_cannot_be_read_costs_no_picture(sandbox: Sandbox) -> None:
    broken = patched(file_of(dataset_of(RAMP, PixelSpacing=["0.125", "0.125"])), "0.125", "x.y z")
    facts = FileFacts.model_validate_json(sandbox.decode(broken, "dicom").facts_json)
    assert facts.header is not None
    assert (facts.header.pixel_spacing_mm, facts.header.bits_stored) == (None, 16)


@pytest.mark.parametrize(
    ("elements", "said", "because"),
    [
        (CHEST, "not_stated", None),
        (CHEST | {"BurnedInAnnotation": "NO"}, "declared_absent", "BurnedInAnnotation is NO"),
        (CHEST | {"BurnedInAnnotation": "YES"}, "declared", "BurnedInAnnotation is YES"),
        (CHEST | {"ImageType": ["DERIVED", "SECONDARY"]}, "suspected", "DERIVED|SECONDARY"),
        ({}, "suspected", "ImageType missing"),
        (CHEST | {"SOPClassUID": SecondaryCaptureImageStorage}, "suspected", "secondary capture"),
    ],
)
def test_text_in_the_pixels_is_told_of_by_the_header(
    elements: dict[str, Any], said: str, because: str | None
) -> None:
    facts = file_facts(dataset_of(RAMP, **elements), with_identity=False).deidentification
    assert facts.burned_in_text == said
    reasons = "; ".join(facts.burned_in_reasons)
    assert because in reasons if because else reasons == ""
    assert "Jane" not in json.dumps(facts.burned_in_reasons)
