"""`verify=true`: asked again without the evidence and without as much elsewhere, over HTTP."""

import io
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import Say, ScriptedPolicy, answer, look, window
from tests.clinic.test_cancel import cancel
from tests.clinic.test_cases import ELSEWHERE, IN_VIEW, ask
from tests.clinic.test_events import followed
from tests.clinic.test_recovery import (
    ClinicProcess,
    final_case,
    process,  # noqa: F401 - a fixture
)
from tests.clinic.test_rendering import CT
from tests.zoom.files import RAMP, dataset_of, file_of

StartClinic = Callable[..., httpx.Client]
EVIDENCE = {"x1": 168, "y1": 84, "x2": 220, "y2": 140}


def rounds(
    policy: ScriptedPolicy, first: list[Say], without: list[Say], control: list[Say], k: int = 2
) -> None:
    """What all K trajectories of the three rounds do, in the order they are asked."""
    policy.rehearse(*[first] * k, *[without] * k, *[control] * k)


def verified(clinic: httpx.Client, **form: Any) -> dict[str, Any]:
    return ask(clinic, verify="true", k="2", **form).json()


def pixels_of(clinic: httpx.Client, url: str) -> np.ndarray:
    response = clinic.get(url)
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))


def test_an_answer_that_changes_without_its_evidence_alone_is_supported(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    seen = [look(IN_VIEW), answer("B")]
    rounds(policy, seen, [answer("C")], seen)

    case = verified(clinic)
    found = case["verification"]
    without, control = found["evidence_blanked"], found["elsewhere_blanked"]

    assert (case["status"], case["answer"], found["supported"]) == ("answered", "B", True)
    assert found["region"] == "consensus"
    assert (without["answer"], without["option_text"], without["changed"]) == ("C", "dot", True)
    assert (control["answer"], control["votes"], control["changed"]) == ("B", {"B": 2}, False)
    assert (found["evidence_unasked"], found["elsewhere_unasked"]) == (None, None)


def test_what_is_blanked_is_the_evidence_and_as_much_elsewhere_and_nothing_else(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    rounds(policy, [look(IN_VIEW), answer("B")], [answer("C")], [answer("B")])

    case = verified(clinic)
    found = case["verification"]
    original = np.asarray(picture())

    assert found["evidence_blanked"]["rectangles"] == [EVIDENCE]
    for part in ("evidence", "elsewhere"):
        asked = found[f"{part}_blanked"]
        [box] = asked["rectangles"]
        assert (box["x2"] - box["x1"], box["y2"] - box["y1"]) == (52, 56)
        assert asked["area_px"] == 52 * 56
        image = pixels_of(clinic, asked["image_url"])
        differs = (image != original).any(axis=2)
        inside = np.zeros_like(differs)
        inside[box["y1"] : box["y2"], box["x1"] : box["x2"]] = True
        assert not differs[~inside].any()
        assert differs[inside].mean() > 0.9
        assert case["links"][f"{part}_blanked"] == asked["image_url"]
    [other] = found["elsewhere_blanked"]["rectangles"]
    assert other["x2"] <= 168 or other["x1"] >= 220 or other["y2"] <= 84 or other["y1"] >= 140


def test_both_rounds_ask_the_same_question_with_the_same_seeds_about_another_image(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    rounds(policy, [look(IN_VIEW), answer("B")], [answer("C")], [answer("B")])

    verified(clinic, seed="5")
    first_turns = [r for r in policy.requests if r.segments[0].type == "text"]
    texts = {tuple(s.text for s in r.segments if s.type == "text") for r in first_turns}
    seeds = [r.seed for r in first_turns]
    views = [next(s.image for s in r.segments if s.type == "image") for r in first_turns]

    assert len(first_turns) == 6
    assert len(texts) == 1
    assert set(seeds[:2]) == set(seeds[2:4]) == set(seeds[4:])
    assert len({*views[:2]}) == len({*views[2:4]}) == 1
    assert len(set(views)) == 3


def test_an_answer_that_survives_the_loss_of_its_evidence_is_withheld_as_unsupported(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    rounds(policy, [look(IN_VIEW), answer("B")], [answer("B")], [answer("B")])

    case = verified(clinic)

    assert (case["status"], case["abstention"]) == ("abstained", "unsupported")
    assert case["verification"]["supported"] is False
    assert case["is_withheld"]
    metrics = clinic.get("/metrics").text
    assert 'medvr_clinic_verifications_total{outcome="unsupported"} 1.0' in metrics
    assert 'medvr_clinic_abstentions_total{reason="unsupported"} 1.0' in metrics


def test_an_unsupported_answer_is_only_flagged_where_the_clinic_withholds_none(
    start_clinic: StartClinic, policy: ScriptedPolicy
):
    rounds(policy, [look(IN_VIEW), answer("B")], [answer("B")], [answer("B")])

    case = verified(start_clinic(withhold_unsupported=False))

    assert (case["status"], case["answer"]) == ("answered", "B")
    assert case["verification"]["supported"] is False


def test_no_majority_without_the_evidence_counts_as_a_change(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    seen = [look(IN_VIEW), answer("B")]
    policy.rehearse(seen, seen, [answer("A")], [answer("B")], seen, seen)

    without = verified(clinic)["verification"]["evidence_blanked"]

    assert (without["answer"], without["changed"]) == (None, True)
    assert without["votes"] == {"A": 1, "B": 1}


def test_without_a_majority_place_the_boxes_of_the_trajectory_shown_are_the_evidence(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse(
        *([look(IN_VIEW), answer("B")], [look(ELSEWHERE), answer("B")]),
        *[[answer("C")]] * 2,
        *[[answer("B")]] * 2,
    )

    case = verified(clinic)
    found = case["verification"]

    assert case["consensus"]["rectangles"] == []
    assert found["region"] == "shown_trajectory"
    assert found["evidence_blanked"]["rectangles"] == [zoom["box"] for zoom in case["evidence"]]


@pytest.fixture
def windowing(policy: ScriptedPolicy) -> bytes:
    """A CT slice with grey levels, and a policy that may set windows."""
    policy.rehearse()
    policy.tools = ["zoom_in", "set_window"]
    return file_of(dataset_of(np.kron(RAMP, np.ones((34, 34), np.uint16)) + 1000, **CT))


def test_a_window_that_was_set_is_no_place_of_the_evidence(
    clinic: httpx.Client, policy: ScriptedPolicy, windowing: bytes
):
    policy.plans = [
        *[[window(40, 400), look(box), answer("B")] for box in (IN_VIEW, ELSEWHERE)],
        *[[answer("C")]] * 2,
        *[[answer("B")]] * 2,
    ]

    case = verified(clinic, image=windowing)
    found = case["verification"]

    assert [zoom["tool"] for zoom in case["evidence"]] == ["set_window", "zoom_in"]
    assert (found["region"], found["supported"]) == ("shown_trajectory", True)
    assert found["evidence_blanked"]["rectangles"] == [case["evidence"][1]["box"]]


def test_a_window_alone_is_the_whole_image_and_nothing_is_concluded(
    clinic: httpx.Client, policy: ScriptedPolicy, windowing: bytes
):
    policy.plans = [[window(40, 400), answer("B")]]

    found = verified(clinic, image=windowing)["verification"]

    assert (found["evidence_unasked"], found["supported"]) == ("not_blankable", None)


def test_an_answer_without_any_evidence_is_not_supported_and_nothing_is_asked(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("B")])

    case = verified(clinic)
    found = case["verification"]

    assert (found["region"], found["supported"]) == (None, False)
    assert found["evidence_unasked"] == found["elsewhere_unasked"] == "no_evidence"
    assert len(policy.requests) == 2
    assert (case["status"], case["abstention"]) == ("abstained", "unsupported")


def test_a_region_with_no_room_beside_it_is_said_to_have_no_control(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    wide = [look([10, 0, 150, 168]), answer("B")]
    policy.rehearse(wide, wide, [answer("C")], [answer("C")])

    found = verified(clinic)["verification"]

    assert (found["supported"], found["elsewhere_unasked"]) == (True, "no_place")
    assert found["elsewhere_blanked"] is None


def test_the_whole_image_cannot_be_blanked_and_nothing_is_concluded(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look([0, 0, 168, 168]), answer("B")])

    case = verified(clinic)
    found = case["verification"]

    assert (case["status"], found["supported"]) == ("answered", None)
    assert found["evidence_unasked"] == "not_blankable"
    assert clinic.get(f"/v1/cases/{case['case_id']}/blanked/evidence").status_code == 404


def test_a_case_without_an_answer_is_not_verified(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")], [look(IN_VIEW), answer("B")])

    case = verified(clinic)

    assert (case["abstention"], case["verification"]) == ("tied", None)
    assert len(policy.requests) == 4


def test_events_and_timings_tell_of_both_rounds(clinic: httpx.Client, policy: ScriptedPolicy):
    rounds(policy, [look(IN_VIEW), answer("B")], [answer("C")], [answer("B")])

    case = verified(clinic)
    events = followed(clinic, case["case_id"])
    told = [
        (e.body["blanked"], e.body["state"], e.body["changed"])
        for e in events
        if e.name == "verification"
    ]

    assert told == [
        ("evidence", "asking", None),
        ("evidence", "asked", True),
        ("elsewhere", "asking", None),
        ("elsewhere", "asked", False),
    ]
    assert {e.body["trajectory_id"] for e in events if e.name == "turn"} == {
        attempt["trajectory_id"] for attempt in case["attempts"]
    }
    assert (events[-2].name, events[-2].body["supported"]) == ("answer", True)
    timings = case["timings"]
    total_s = timings.pop("total_s")
    assert timings["evidence_blanked_s"] > 0 < timings["elsewhere_blanked_s"]
    assert total_s == pytest.approx(sum(timings.values()))


def held_in_the_second_round(client: httpx.Client, policy: ScriptedPolicy) -> threading.Thread:
    """A case that is being verified, and waits for the policy."""
    rounds(policy, [look(IN_VIEW), answer("B")], [answer("C")], [answer("B")], k=1)
    policy.hold_after = 2

    def asking() -> None:
        try:
            ask(client, verify="true", k="1")
        except httpx.TransportError:
            return

    thread = threading.Thread(target=asking)
    thread.start()
    for _ in range(1000):
        if policy.num_entered == 3:
            return thread
        thread.join(0.01)
    pytest.fail("the second round was not asked")


def test_a_case_is_cancelled_while_it_is_verified(clinic: httpx.Client, policy: ScriptedPolicy):
    thread = held_in_the_second_round(clinic, policy)
    [line] = clinic.get("/v1/cases").json()["cases"]

    cancelled = cancel(clinic, line["case_id"]).json()
    policy.release.set()
    thread.join(timeout=10)

    assert (cancelled["status"], cancelled["answer"]) == ("cancelled", None)
    assert followed(clinic, line["case_id"])[-1].body["status"] == "cancelled"


def test_a_clinic_killed_while_it_verified_resumes_the_case(
    process: ClinicProcess,  # noqa: F811
    policy: ScriptedPolicy,
):
    thread = held_in_the_second_round(process.client, policy)
    process.end(signal.SIGKILL)
    thread.join(timeout=30)
    policy.release.set()
    for _ in range(1000):  # what the killed clinic asked must not take the next one's script
        if len(policy.requests) == 3:
            break
        time.sleep(0.01)

    rounds(policy, [look(IN_VIEW), answer("B")], [answer("C")], [answer("B")], k=1)
    process.start()
    case = final_case(process)

    assert (case["status"], case["answer"]) == ("answered", "B")
    assert case["verification"]["supported"] is True


def test_the_form_takes_only_a_truth_value(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    response = ask(clinic, k="1", verify="perhaps")
    assert response.status_code == 422
    assert "verify" in response.json()["detail"]
    files = {"image": ("scan.png", png(picture()), "image/png")}
    doubled = {"question": "?", "verify": ["true", "false"]}
    assert clinic.post("/v1/cases", data=doubled, files=files).status_code == 422
