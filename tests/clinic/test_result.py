"""What a case says beside its answer: shares, sureness, provenance, links."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from services.clinic.address import DatabaseAddress
from services.clinic.provenance import code_version, prompt_sha256, tool_sha256
from services.clinic.reasoning import answer_tokens, text_before_call
from services.clinic.showing import shown
from services.clinic.store import CaseStore
from shared.agent.tools import SET_WINDOW, TOOLS
from shared.api.clinic import Case, CaseStatus
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import ELSEWHERE, IN_VIEW, ask, two_against_one
from tests.clinic.test_confidence import a_calibration, written

FORMER_CASES = Path(__file__).parent / "former_cases.json"
"""An answered and a running case as the clinic wrote them before confidence and verification."""


def test_an_option_has_the_share_of_the_trajectories_that_picked_it(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse(
        [look(IN_VIEW), answer("B")],
        [look(IN_VIEW), answer("(b) cross")],
        [answer("I cannot tell")],
        [answer("C")],
    )

    case = ask(clinic, k="4").json()

    assert case["option_probability"] == 0.5
    assert case["option_probabilities"] == {"A": 0.0, "B": 0.5, "C": 0.25}


def test_sureness_and_agreement_of_place_are_those_of_the_agreeing(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse(
        [look(IN_VIEW), answer("B", logprob=-0.1)],
        [look(IN_VIEW), answer("cross", logprob=-0.3)],
        [look(ELSEWHERE), answer("C", logprob=-2.0)],
    )

    case = ask(clinic).json()
    by_answer = {attempt["answer"]: attempt for attempt in case["attempts"]}

    mean = (math.exp(-0.1) + math.exp(-0.3)) / 2
    assert case["mean_answer_token_probability"] == pytest.approx(mean)
    assert case["consensus_iou"] == 1.0
    assert by_answer["cross"]["answer_token_probability"] == pytest.approx(math.exp(-0.3))
    assert [by_answer[a]["agrees"] for a in ("B", "cross", "C")] == [True, True, False]
    assert [by_answer[a]["consensus_iou"] for a in ("B", "cross", "C")] == [1.0, 1.0, 0.0]


def test_evidence_says_what_was_written_before_it_and_how_the_picture_was_made(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)

    case = ask(clinic).json()
    [zoom] = case["evidence"]

    assert zoom["text_before"] == "<think>bright on the right</think>"
    assert (zoom["frame"], zoom["windows"]) == (1, [])
    assert case["image"]["rendering"]["grey_mapping"] == "none"


def test_provenance_names_everything_that_took_part(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)

    case = ask(clinic, seed="9").json()
    made_by = case["provenance"]

    assert (made_by["model"], made_by["run"], made_by["versions"]) == ("scripted", "rehearsal", [7])
    assert made_by["weights_sha256"] == "a" * 64
    assert made_by["prompt_sha256"] == prompt_sha256()
    assert list(made_by["tools"]) == ["zoom_in"]
    assert made_by["preprocessing_version"] == case["image"]["preprocessing_version"]
    assert made_by["code_version"] == code_version("")
    sampling = ("temperature", "top_p", "num_trajectories", "seed", "max_turns", "max_turn_tokens")
    assert [made_by[name] for name in sampling] == [1.0, 1.0, 3, 9, 5, 512]
    assert made_by["calibration_id"] is None


def test_the_revision_of_a_build_is_part_of_the_code_version(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])

    case = ask(start_clinic(revision="0123abc"), k="1").json()

    assert case["provenance"]["code_version"].endswith("+0123abc")


def test_links_lead_to_everything_there_is(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)

    links = ask(clinic).json()["links"]

    assert (links["cancel"], links["withheld"], links["evidence_blanked"]) == (None, None, None)
    for name in ("self", "page", "events", "image", "heatmap", "feedback"):
        assert clinic.get(links[name]).status_code == 200, name
    assert [clinic.get(crop).status_code for crop in links["crops"]] == [200]


def test_a_calibrated_clinic_says_how_probably_the_answer_is_right_and_from_what(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy, tmp_path: Path
):
    path = written(tmp_path, a_calibration())
    clinic = start_clinic(calibration=path)
    policy.rehearse([look(IN_VIEW), answer("B", logprob=math.log(0.75))])

    case = ask(clinic).json()

    # s = 2·1 + 0.75 − 1 = 1.75: beyond the last knot.
    assert (case["confidence"], case["confidence_unknown"]) == (0.9, None)
    assert case["calibration"]["problem_set"] == "a set"
    assert case["calibration"]["calibration_id"] == case["provenance"]["calibration_id"]
    line = clinic.get("/v1/cases").json()["cases"][0]
    assert (line["answer"], line["confidence"]) == ("B", 0.9)
    further = {"question": "And now?", "choices": ["ring", "dot"], "k": "3"}
    follow_up = clinic.post(case["links"]["follow_ups"], data=further).json()
    assert (follow_up["confidence"], follow_up["confidence_unknown"]) == (None, "other_prompt")


@pytest.mark.parametrize(
    ("form", "plans", "weights_sha256", "reason"),
    [
        ({"k": "2"}, [[answer("A")]], "a" * 64, "other_num_trajectories"),
        ({}, [[answer("A")]], "b" * 64, "other_weights"),
        ({}, [[answer("A")]], None, "other_weights"),
        ({}, [[answer("A")], [answer("B")], [answer("")]], "a" * 64, "not_answered"),
    ],
)
def test_where_the_calibration_does_not_hold_there_is_no_confidence_and_a_reason(
    start_clinic: Callable[..., httpx.Client],
    policy: ScriptedPolicy,
    tmp_path: Path,
    form: dict[str, str],
    plans: list[list[object]],
    weights_sha256: str | None,
    reason: str,
):
    clinic = start_clinic(calibration=written(tmp_path, a_calibration()), abstain_below=1.0)
    policy.rehearse(*plans)
    policy.weights_sha256 = weights_sha256

    case = ask(clinic, **form).json()

    assert (case["confidence"], case["confidence_unknown"]) == (None, reason)
    assert not case["is_withheld"]
    assert case["calibration"]["problem_set"] == "a set"


def test_a_clinic_without_a_calibration_says_so(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])

    case = ask(clinic, k="1").json()

    assert (case["confidence"], case["calibration"]) == (None, None)
    assert case["confidence_unknown"] == "not_calibrated"


def test_cases_of_a_former_version_are_still_read(tmp_path: Path):
    """As they were stored: without any of the fields that this version adds."""
    store = CaseStore(DatabaseAddress.of(tmp_path / "clinic.sqlite"))
    answered, running = json.loads(FORMER_CASES.read_text())
    former = [Case.model_validate(answered | {"case_id": "old"}), Case.model_validate(running)]
    for case in former:
        store.create(case)

    case = shown(store.get("old"))

    assert (case.status, case.answer, case.is_withheld) == (CaseStatus.ANSWERED, "B", False)
    assert (case.confidence, case.verification, case.provenance) == (None, None, None)
    assert case.evidence[0].crop == answered["evidence"][0]["crop"]
    assert [u.case.settings.verify for u in store.unfinished() if u.case.case_id != "old"] == [
        False
    ]
    store.close()


@pytest.mark.parametrize(
    ("tokens", "inside"),
    [
        (["<answer>", "B", "</answer>"], [1]),
        (["<think>x</think>", "<answer>", " ring", " shaped", " ", "</answer>"], [2, 3]),
        (["<ans", "wer>B", "</answer>"], [1]),
        (["", "<answer>", "B", "", "C", "</", "answer>"], [2, 3, 4]),
        (["<answer>", "a<answer>", "b", "</answer>", "<answer>c</answer>"], [2]),
        (["<answer>", " ", "</answer>"], []),
        (["<tool_call>", "{}", "</tool_call>"], []),
    ],
)
def test_the_tokens_of_an_answer_are_those_with_a_character_of_it(
    tokens: list[str], inside: list[int]
):
    assert list(answer_tokens(tokens)) == inside


def test_the_text_before_a_call_is_all_that_precedes_its_tag():
    assert text_before_call("<think>a</think> b<tool_call>{}</tool_call>") == "<think>a</think> b"
    assert text_before_call("<think>a</think><answer>B</answer>").endswith("</answer>")


def test_a_tools_digest_changes_with_every_word_that_is_said_of_it(monkeypatch: pytest.MonkeyPatch):
    digests = {tool_sha256("set_window")}
    for field in ("description", "usage", "caption"):
        with monkeypatch.context() as patched:
            changed = dataclasses.replace(SET_WINDOW, **{field: "another word"})
            patched.setitem(TOOLS, "set_window", changed)
            tool_sha256.cache_clear()
            digests.add(tool_sha256("set_window"))
    tool_sha256.cache_clear()
    assert len(digests) == 4
