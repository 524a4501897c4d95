"""Identity stays out of the case: pseudonyms in its place, and its words out of the question."""

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.clinic.__main__ import main
from services.clinic.address import DatabaseAddress
from services.clinic.migrating import UnusableDatabase
from services.clinic.pseudonyms import Pseudonyms, UnknownPseudonym
from services.clinic.scrubbing import without_identity
from services.clinic.store import CaseStore
from shared.api.headers import PatientIdentity
from tests.clinic.postgres import Postgres
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask
from tests.clinic.test_problems import no_case_was_made, problem_of
from tests.zoom.files import RAMP, dataset_of, file_of

LARGE = np.kron(RAMP, np.ones((4, 4), np.uint16))


def scan(name: str = "Mueller^Jane", number: str = "MRN-123456", study: str = "1.2.3.1") -> bytes:
    elements = {"PatientID": number, "StudyInstanceUID": study, "PatientBirthDate": "19540312"}
    return file_of(dataset_of(LARGE, PatientName=name, **elements))


WHO = PatientIdentity(
    names=["Mueller^Jane Ann^^Dr", "Li^Wu", "山田^太郎"],
    identifiers=["MRN-123456", "99000", "1", "1.2.840.99.7"],
    dates=["19540312"],
)


def test_a_follow_up_is_rid_of_what_its_own_files_header_says(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    """The patient's pseudonym was first given for another spelling; one file has a name alone."""
    for later in (scan("Miller^Jane"), file_of(dataset_of(LARGE, PatientName="Miller^Jane"))):
        policy.rehearse([answer("A")], [answer("A")], [answer("A")])
        ask(clinic, image=scan(), k="1")
        first = ask(clinic, image=later, k="1").json()

        body = {"question": "Has Jane Miller another?", "choices": ["yes", "no"], "k": 1}
        second = clinic.post(f"/v1/cases/{first['case_id']}/follow-ups", json=body).json()

        assert second["question"] == "Has [removed] another?"
        assert "Miller" not in clinic.get(f"/v1/cases/{second['case_id']}").text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Does Jane Müller have a nodule?", "Does [removed] have a nodule?"),
        ("MUELLER's scan", "[removed]'s scan"),
        ("Mueller, Jane Ann: nodule?", "[removed]: nodule?"),
        ("mrn 123 456 and 123456", "[removed] and [removed]"),
        ("99000 but not 199000", "[removed] but not 199000"),
        ("what Li has is lithium, li", "what [removed] has is lithium, li"),
        ("born 12.03.1954 here", "born [removed] here"),
        ("born 3/12/54 here", "born [removed] here"),
        ("born on March 12th, 1954.", "born on [removed]."),
        ("born 12 Mar 1954", "born [removed]"),
        ("born 1954-03-12", "born [removed]"),
        ("study 1.2.840.99.7", "study [removed]"),
        ("山田さんの胸", "[removed]さんの胸"),
        ("Dr House saw 1 lesion of 12 mm in 1954", "Dr House saw 1 lesion of 12 mm in 1954"),
    ],
)
def test_words_of_the_identity_are_removed_in_their_usual_spellings(text: str, left: str):
    assert without_identity(text, WHO) == (left, left.count("[removed]"))


def test_the_question_is_asked_and_kept_without_the_patients_name(
    clinic: httpx.Client, policy: ScriptedPolicy, tmp_path: Path
):
    policy.rehearse([answer("A")])

    case = ask(
        clinic,
        image=scan(),
        k="1",
        question="Has Jane Müller (born 12.3.1954) a nodule?",
        choices=["yes, Mrs Mueller has", "no"],
    ).json()

    assert case["question"] == "Has [removed] (born [removed]) a nodule?"
    assert case["choices"] == ["yes, Mrs [removed] has", "no"]
    assert case["subject"]["num_removed"] == 3
    sent = " ".join(request.model_dump_json() for request in policy.requests)
    assert "[removed]" in sent
    for word in ("Jane", "eller", "12.3.1954", "19540312", "MRN"):
        assert word not in sent
        assert word not in json.dumps(case)
        assert word.encode() not in (tmp_path / "clinic.sqlite").read_bytes()


def test_what_a_reader_says_of_a_case_is_kept_without_the_name(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("a nodule")])
    case = ask(clinic, image=scan(), k="1", choices=None).json()

    feedback = clinic.post(
        f"/v1/cases/{case['case_id']}/feedback",
        json={
            "verdict": "corrected",
            "role": "radiologist",
            "corrected_answer": "Jane is well",
            "note": "Mrs Müller was seen before.",
        },
    ).json()

    assert (feedback["corrected_answer"], feedback["note"]) == (
        "[removed] is well",
        "Mrs [removed] was seen before.",
    )


def test_where_the_pseudonyms_are_unknown_no_text_is_taken(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy, tmp_path: Path
):
    policy.rehearse([answer("A")])
    case = ask(start_clinic(), image=scan(), k="1").json()
    other = start_clinic(pseudonym_database=DatabaseAddress(str(tmp_path / "other.sqlite")))
    feedback = f"/v1/cases/{case['case_id']}/feedback"
    said = {"verdict": "disagree", "role": "student"}

    refused = [
        other.post(feedback, json={**said, "note": "Mrs Müller was seen before."}),
        other.post(f"/v1/cases/{case['case_id']}/follow-ups", json={"question": "And below?"}),
    ]

    for response in refused:
        assert problem_of(response)[:2] == (409, "Nobody knows whom the case is about")
    corrected = {"verdict": "corrected", "corrected_answer": "B"}
    assert other.post(feedback, json=said | corrected).status_code == 201


def test_choices_that_differ_in_nothing_but_identity_are_refused(clinic: httpx.Client):
    response = ask(clinic, image=scan(), choices=["Mueller", "Jane"])
    assert problem_of(response)[:2] == (422, "Choices repeat")
    assert no_case_was_made(clinic)


def test_a_patient_keeps_a_pseudonym_and_so_does_a_study(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    def subject(**of: str) -> tuple[str, str]:
        policy.rehearse([answer("A")])
        found = ask(clinic, image=scan(**of), k="1").json()["subject"]
        return found["patient"], found["study"]

    patient, study = subject()
    assert subject(name="Mueller^J") == (patient, study)
    again, next_study = subject(study="1.2.3.2")
    assert (again == patient, next_study == study) == (True, False)
    assert subject(number="MRN-7", study="1.2.3.3")[0] != patient
    assert (patient.split("-")[0], study.split("-")[0]) == ("patient", "study")


def test_a_picture_without_a_header_has_no_pseudonym(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    assert ask(clinic, k="1").json()["subject"] == {
        "patient": None,
        "study": None,
        "header": None,
        "num_removed": 0,
    }


def test_a_pseudonym_is_looked_up_by_who_may_read_its_database(
    start_clinic: Callable[..., httpx.Client],
    policy: ScriptedPolicy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    vault = tmp_path / "vault" / "who.sqlite"
    clinic = start_clinic(pseudonym_database=DatabaseAddress(str(vault)))
    policy.rehearse([answer("A")])
    subject = ask(clinic, image=scan(), k="1").json()["subject"]

    main(["reidentify", subject["study"], "--pseudonym-database", str(vault)])
    by_flag = capsys.readouterr()
    monkeypatch.setenv("MEDVR_CLINIC_PSEUDONYM_DATABASE", str(vault))
    main(["reidentify", subject["patient"]])
    by_variable = capsys.readouterr()
    with pytest.raises(SystemExit) as unknown:
        main(["reidentify", "patient-0"])
    refused = capsys.readouterr()
    with pytest.raises(SystemExit) as nothing:
        main(["reidentify"])

    assert json.loads(by_variable.out)["patient_name"] == "Mueller^Jane"
    assert json.loads(by_flag.out)["study_uid"] == "1.2.3.1"
    assert "Mueller" not in by_variable.err
    assert (unknown.value.code, refused.out) == (1, "")
    assert refused.err == "error: no such pseudonym was given by this clinic\n"
    assert nothing.value.code == 2
    assert "usage: medvr clinic reidentify" in capsys.readouterr().err
    assert stat.S_IMODE(vault.stat().st_mode) == 0o600


def test_pseudonyms_outlive_the_process_and_are_the_same_to_all(tmp_path: Path):
    address = DatabaseAddress(str(tmp_path / "p.sqlite"))
    identity = PatientIdentity(patient_id="7", patient_name="Doe^Jane", study_uid="1.2")
    first, second = Pseudonyms(address), Pseudonyms(address)
    given = first.of(identity)
    assert second.of(identity) == given
    first.close()
    second.close()
    reopened = Pseudonyms(address)
    assert reopened.of(identity) == given
    assert reopened.identity(given.patient or "") == identity
    with pytest.raises(UnknownPseudonym):
        reopened.identity("patient-1")
    reopened.close()


def test_numbers_of_two_issuers_are_two_patients(tmp_path: Path):
    pseudonyms = Pseudonyms(DatabaseAddress(str(tmp_path / "p.sqlite")))

    def patient(**of: Any) -> str | None:
        return pseudonyms.of(PatientIdentity(**of)).patient

    here, there = patient(patient_id="7", issuer_of_patient_id="A"), patient(patient_id="7")
    assert here != there
    by_name = {"patient_name": "Doe^Jane", "birth_date": "19540312"}
    assert patient(**by_name) == patient(**by_name)
    assert patient(patient_name="Doe^Jane") is None
    pseudonyms.close()


def test_pseudonyms_and_cases_are_never_in_one_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, url = str(tmp_path / "clinic.sqlite"), "postgresql://clinic@127.0.0.1:1/cases"
    with pytest.raises(SystemExit) as same:
        main(["--database", path, "--pseudonym-database", path])
    assert same.value.code == 2
    assert "must not be the database of the cases" in capsys.readouterr().err
    with pytest.raises(SystemExit) as unnamed:
        main(["--database", url])
    assert unnamed.value.code == 1
    assert "pseudonym_database must be given" in capsys.readouterr().err
    CaseStore(DatabaseAddress(path)).close()
    with pytest.raises(UnusableDatabase, match="this program reads up to pseudonyms_0001"):
        Pseudonyms(DatabaseAddress(path))


def test_postgresql_keeps_pseudonyms_too(postgres: Postgres):
    address = DatabaseAddress(postgres.new_database())
    pseudonyms = Pseudonyms(address)
    identity = PatientIdentity(patient_id="7\0", patient_name="Döe^Jane", study_uid="1.2")
    with ThreadPoolExecutor(8) as threads:
        given = set(threads.map(lambda _: str(pseudonyms.of(identity)), range(16)))
    assert len(given) == 1
    assert pseudonyms.identity(pseudonyms.of(identity).patient or "") == identity
    pseudonyms.close()
