"""Abstention: an answer that is too unsure is kept, and shown only to who asks for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.clinic.confidence import CalibrationError
from services.clinic.showing import hides_words
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import IN_VIEW, ask
from tests.clinic.test_confidence import a_calibration, written
from tests.clinic.test_events import followed, told
from tests.clinic.test_store import a_case

StartClinic = Callable[..., httpx.Client]
SECRET = "zebrafinch"


@pytest.fixture
def unsure(start_clinic: StartClinic, tmp_path: Path) -> httpx.Client:
    """A clinic that is never surer than 0.2."""
    flat = a_calibration(probabilities=[0.2, 0.2, 0.2])
    return start_clinic(calibration=written(tmp_path, flat))


def ask_for_the_secret(clinic: httpx.Client, policy: ScriptedPolicy, **sent: Any) -> httpx.Response:
    """Two of three trajectories answer B; every word of theirs holds the secret."""
    agreeing = [look(IN_VIEW, f"a {SECRET}?"), answer("B", f"it is the {SECRET}")]
    policy.rehearse(agreeing, agreeing, [answer("C")])
    return ask(clinic, choices=["owl", SECRET, "crow"], **sent)


def without_question(case: dict[str, Any]) -> str:
    """All of a case but what the asker wrote, as text."""
    return json.dumps({k: v for k, v in case.items() if k not in ("question", "choices")})


def test_an_answer_below_the_threshold_is_left_out_with_all_that_gives_it_away(
    unsure: httpx.Client, policy: ScriptedPolicy
):
    case = ask_for_the_secret(unsure, policy).json()

    assert (case["status"], case["abstention"]) == ("abstained", "low_confidence")
    assert (case["is_withheld"], case["confidence"]) == (True, 0.2)
    assert (case["answer"], case["option_text"], case["option_probability"]) == (None, None, None)
    assert (case["votes"], case["option_probabilities"]) == ({}, {})
    assert [attempt["answer"] for attempt in case["attempts"]] == [None, None, None]
    assert SECRET not in without_question(case)
    assert len(case["turns"]) == 2
    assert clinic_crop_is_still_served(unsure, case)


def clinic_crop_is_still_served(clinic: httpx.Client, case: dict[str, Any]) -> bool:
    [zoom] = case["evidence"]
    return clinic.get(zoom["crop_url"]).status_code == 200


def test_it_is_shown_whole_on_request_and_that_is_counted(
    unsure: httpx.Client, policy: ScriptedPolicy
):
    case = ask_for_the_secret(unsure, policy).json()

    whole = unsure.get(case["links"]["withheld"]).json()

    assert case["links"]["withheld"] == f"/v1/cases/{case['case_id']}?show=withheld"
    assert (whole["status"], whole["answer"], whole["option_text"]) == ("abstained", "B", SECRET)
    assert whole["votes"] == {"B": 2, "C": 1}
    assert whole["turns"][1]["thought"] == f"it is the {SECRET}"
    assert not whole["is_withheld"]
    metrics = unsure.get("/metrics").text
    assert 'medvr_clinic_withheld_shown_total{where="case"} 1.0' in metrics
    assert 'medvr_clinic_abstentions_total{reason="low_confidence"} 1.0' in metrics
    assert unsure.get(f"/v1/cases/{case['case_id']}?show=all").status_code == 422


def test_neither_the_case_nor_the_list_tells_it(unsure: httpx.Client, policy: ScriptedPolicy):
    case = ask_for_the_secret(unsure, policy).json()

    again = unsure.get(f"/v1/cases/{case['case_id']}").json()
    [line] = unsure.get("/v1/cases").json()["cases"]

    assert again == case
    assert (line["answer"], line["option_text"]) == (None, None)
    assert (line["abstention"], line["confidence"]) == ("low_confidence", 0.2)


def test_a_repeated_request_is_sent_the_same_without_it(
    unsure: httpx.Client, policy: ScriptedPolicy
):
    headers = {"idempotency-key": '"once"'}
    first = ask_for_the_secret(unsure, policy, headers=headers)
    second = ask_for_the_secret(unsure, policy, headers=headers)

    assert second.json() == first.json()
    assert SECRET not in without_question(second.json())


def test_events_hold_back_words_until_it_is_clear_that_nothing_is_withheld(
    unsure: httpx.Client, policy: ScriptedPolicy
):
    case = ask_for_the_secret(unsure, policy).json()
    url = f"/v1/cases/{case['case_id']}/events"

    events = followed(unsure, case["case_id"])
    with unsure.stream("GET", url, params={"show": "withheld"}) as response:
        whole = list(told(response.iter_lines()))

    assert [e.number for e in events] == [e.number for e in whole]
    assert SECRET not in json.dumps([e.body for e in events])
    assert all(not e.body.get("answer") for e in events)
    assert events[-2].body["abstention"] == "low_confidence"
    assert (whole[-2].body["answer"], whole[-2].body["option_text"]) == ("B", SECRET)
    assert any(e.body.get("thought") == f"a {SECRET}?" for e in whole)
    assert 'withheld_shown_total{where="events"} 1.0' in unsure.get("/metrics").text


def test_who_follows_a_running_case_is_told_its_words_only_where_none_can_be_withheld(
    start_clinic: StartClinic, policy: ScriptedPolicy, tmp_path: Path
):
    for changes, thoughts in (
        ({"calibration": written(tmp_path, a_calibration())}, ["", ""]),
        ({"calibration": written(tmp_path, a_calibration()), "abstain_below": 0}, ["hm", "so"]),
        ({}, ["hm", "so"]),
    ):
        clinic = start_clinic(**changes)
        policy.rehearse([look(IN_VIEW, "hm"), answer("B", "so")])
        policy.release.clear()
        running = ask(clinic, headers={"prefer": "wait=0"}, k="1").json()
        with clinic.stream("GET", running["links"]["events"]) as response:
            policy.release.set()
            events = list(told(response.iter_lines()))
        assert [e.body["thought"] for e in events if e.name == "turn"] == thoughts
        assert (events[-2].name, events[-2].body["answer"]) == ("answer", "B")
        finished = followed(clinic, running["case_id"])
        assert [e.body["thought"] for e in finished if e.name == "turn"] == ["hm", "so"]


def test_an_answer_at_the_threshold_is_given(
    start_clinic: StartClinic, policy: ScriptedPolicy, tmp_path: Path
):
    path = written(tmp_path, a_calibration(probabilities=[0.2, 0.2, 0.2]))
    case = ask_for_the_secret(start_clinic(calibration=path, abstain_below=0.2), policy).json()
    assert (case["status"], case["answer"], case["links"]["withheld"]) == ("answered", "B", None)


def test_a_clinic_with_a_calibration_it_cannot_use_does_not_start(
    start_clinic: StartClinic, tmp_path: Path
):
    falling = a_calibration().model_dump_json().replace("[0.2,0.2,0.9]", "[0.9,0.2,0.9]")
    with pytest.raises(CalibrationError, match="must not fall"):
        start_clinic(calibration=written(tmp_path, falling))


def test_a_follow_up_that_runs_hides_no_words_for_it_cannot_come_to_withhold_them():
    first = a_case("first")
    unsure = first.settings.model_copy(update={"abstain_below": 0.5})
    running = first.model_copy(update={"settings": unsure})
    assert hides_words(running)
    assert not hides_words(running.model_copy(update={"follows": "first"}))
