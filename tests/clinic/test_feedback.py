"""Feedback on a case: checked against it, versioned, and never passed over in silence."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask
from tests.clinic.test_confidence import a_calibration, written
from tests.clinic.test_problems import problem_of

BOX = {"x1": 160, "y1": 80, "x2": 224, "y2": 144}
CORRECTION = {"verdict": "corrected", "corrected_answer": "ring", "corrected_box": BOX}


def say(clinic: httpx.Client, case_id: str, headers: Any = None, **said: Any) -> httpx.Response:
    body = {"verdict": "agree", "role": "radiologist"} | said
    return clinic.post(f"/v1/cases/{case_id}/feedback", json=body, headers=headers)


def versions(clinic: httpx.Client, case_id: str) -> list[dict[str, Any]]:
    return clinic.get(f"/v1/cases/{case_id}/feedback").json()["versions"]


@pytest.fixture
def answered(clinic: httpx.Client, policy: ScriptedPolicy) -> str:
    """A case with the choices ring, cross and dot, answered B."""
    policy.rehearse([answer("B")])
    return ask(clinic, k="1").json()["case_id"]


def test_feedback_is_a_version_of_its_own(clinic: httpx.Client, answered: str):
    first = say(clinic, answered, note=" clear \n")
    second = say(clinic, answered, role="student", replaces=1, **CORRECTION)

    assert (first.status_code, second.status_code) == (201, 201)
    assert versions(clinic, answered) == [first.json(), second.json()]
    assert (first.json()["version"], first.json()["note"]) == (1, "clear")
    assert second.json() | {"given_at": None} == {
        "case_id": answered,
        "version": 2,
        "given_at": None,
        "verdict": "corrected",
        "role": "student",
        "corrected_answer": "A",
        "corrected_box": BOX,
        "note": None,
    }


def test_whoever_did_not_see_the_newest_version_is_told(clinic: httpx.Client, answered: str):
    say(clinic, answered)

    unaware = say(clinic, answered, verdict="disagree", role="student")
    ahead = say(clinic, answered, verdict="disagree", replaces=2)

    assert problem_of(unaware) == (
        409,
        "The feedback has changed",
        "replaces is 0, but the newest feedback is version 1; read it and say whether yours still "
        "stands",
    )
    assert problem_of(ahead)[:2] == (409, "The feedback has changed")
    assert len(versions(clinic, answered)) == 1


def test_of_many_at_once_one_is_kept(clinic: httpx.Client, answered: str):
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: say(clinic, answered).status_code, range(16)))

    assert sorted(statuses) == [201] + [409] * 15
    assert [version["version"] for version in versions(clinic, answered)] == [1]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (CORRECTION | {"corrected_answer": "square"}, "The corrected answer is no choice"),
    (CORRECTION | {"corrected_answer": "D"}, "The corrected answer is no choice"),
    (CORRECTION | {"corrected_answer": " "}, "The corrected answer is empty"),
    (CORRECTION | {"corrected_box": BOX | {"x2": 337}}, "The corrected box is not in the image"),
    (CORRECTION | {"corrected_box": BOX | {"y2": 80}}, "The corrected box is not in the image"),
    (CORRECTION | {"corrected_box": BOX | {"x1": -1}}, "The corrected box is not in the image"),
    (CORRECTION | {"verdict": "agree"}, "A correction needs its verdict"),
    ({"verdict": "disagree", "corrected_box": BOX}, "A correction needs its verdict"),
    ({"verdict": "corrected"}, "The correction is missing"),
    ({"role": "surgeon"}, "Request does not validate"),
    ({"note": "x" * 2001}, "Request does not validate"),
    ({"corrected_bax": BOX}, "Request does not validate"),
]


def test_what_does_not_fit_the_case_is_refused(clinic: httpx.Client, answered: str):
    for said, title in REFUSED:
        status, said_title, detail = problem_of(say(clinic, answered, **said))
        assert (status, said_title) == (422, title), said
        assert "square" not in detail
    assert versions(clinic, answered) == []


def test_an_answer_that_could_mean_two_choices_is_refused(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    case_id = ask(clinic, k="1", choices=["b", "c"]).json()["case_id"]

    unclear = say(clinic, case_id, verdict="corrected", corrected_answer="B")
    clear = say(clinic, case_id, verdict="corrected", corrected_answer="c")

    assert problem_of(unclear)[:2] == (422, "The corrected answer is ambiguous")
    assert clear.json()["corrected_answer"] == "B"


def test_a_case_without_an_answer_has_nothing_to_agree_with(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")], [answer("B")])
    case = ask(clinic, k="2").json()
    assert case["status"] == "abstained"

    agreed = say(clinic, case["case_id"])
    only_place = say(clinic, case["case_id"], verdict="corrected", corrected_box=BOX)
    corrected = say(clinic, case["case_id"], **CORRECTION)

    assert problem_of(agreed)[:2] == (422, "The case gives no answer")
    assert problem_of(only_place)[:2] == (422, "The case gives no answer")
    assert corrected.status_code == 201


def test_a_withheld_answer_is_confirmed_by_giving_it(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy, tmp_path: Path
):
    unsure = a_calibration(probabilities=[0.2, 0.2, 0.2])
    clinic = start_clinic(calibration=written(tmp_path, unsure))
    policy.rehearse([answer("B")])
    case = ask(clinic, k="3").json()
    assert case["is_withheld"]

    agreed = say(clinic, case["case_id"])
    given = say(clinic, case["case_id"], verdict="corrected", corrected_answer="cross")

    assert problem_of(agreed)[:2] == (422, "The case gives no answer")
    assert given.json()["corrected_answer"] == "B"


def test_a_running_case_takes_no_feedback(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.release.clear()
    case_id = ask(clinic, headers={"prefer": "wait=0"}, k="1").json()["case_id"]

    refused = problem_of(say(clinic, case_id))
    policy.release.set()

    assert refused[:2] == (409, "The case has not ended")
    assert problem_of(say(clinic, "nobody"))[:2] == (404, "No such case")
    assert clinic.get("/v1/cases/nobody/feedback").status_code == 404


def test_a_repetition_is_no_second_word_also_for_the_next_process(
    start_clinic: Callable[..., httpx.Client],
    policy: ScriptedPolicy,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("DEBUG")
    policy.rehearse([answer("B")])
    clinic = start_clinic()
    case_id = ask(clinic, k="1").json()["case_id"]
    key = {"idempotency-key": '"review-1"'}
    first = say(clinic, case_id, key, note="a zebrafinch")
    again = start_clinic()

    second = say(again, case_id, key, note="a zebrafinch")
    other = say(again, case_id, key, note="another zebrafinch")
    counted = say(again, case_id, verdict="disagree", replaces=1)
    metrics = again.get("/metrics").text

    assert (first.status_code, second.content) == (201, first.content)
    assert problem_of(other)[:2] == (422, "Idempotency-Key is already used")
    assert counted.json()["version"] == 2
    assert 'medvr_clinic_feedback_total{role="radiologist",verdict="disagree"} 1.0' in metrics
    assert "case ended" in caplog.text
    assert "zebrafinch" not in metrics + caplog.text
