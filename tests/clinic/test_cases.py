"""A case from upload to evidence, over HTTP, with real zoom and cca; the policy is scripted."""

import io
from hashlib import sha256
from typing import Any

import httpx
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from shared.geometry import Box, PixelLimits
from shared.render import encode_png, show_region
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import CROP, Say, ScriptedPolicy, answer, look

QUESTION = "What kind of lesion is shown?"
CHOICES = ["ring", "cross", "dot"]

# The view is 168 px of a 336-px original, so boxes double.
IN_VIEW, IN_ORIGINAL = [84, 42, 110, 70], Box(168, 84, 220, 140)
ELSEWHERE = [10, 10, 40, 40]


def ask(
    clinic: httpx.Client, image: bytes | None = None, headers: Any = None, **form: Any
) -> httpx.Response:
    fields = {"question": QUESTION, "choices": CHOICES, "k": "3", "seed": "1"} | form
    fields = {name: value for name, value in fields.items() if value is not None}
    files = {"image": ("scan.png", png(picture()) if image is None else image, "image/png")}
    return clinic.post("/v1/cases", data=fields, files=files, headers=headers)


def two_against_one(policy: ScriptedPolicy) -> None:
    zooms = {"words_nats": 0.25, "box_nats": 1.5}
    policy.rehearse(
        [look(IN_VIEW, "bright on the right", **zooms), answer("B")],
        [look(IN_VIEW, "bright on the right", **zooms), answer("B")],
        [look(ELSEWHERE), answer("C")],
    )


def test_the_answer_is_what_most_trajectories_gave(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)

    response = ask(clinic)
    case = response.json()

    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/cases/{case['case_id']}"
    assert (case["status"], case["answer"], case["option_text"]) == ("answered", "B", "cross")
    assert case["agreement"] == pytest.approx(2 / 3)
    assert sorted(case["votes"].values()) == [1, 2]
    assert sorted(attempt["answer"] for attempt in case["attempts"]) == ["B", "B", "C"]
    assert case["policy"]["versions"] == [7]
    assert case["notice"] == "Research use only. Not a medical device."
    assert clinic.get(response.headers["location"]).json() == case


def test_evidence_is_the_place_the_crop_came_from(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)

    case = ask(clinic).json()
    [zoom] = case["evidence"]
    crop = clinic.get(zoom["crop_url"])

    assert zoom["box"] == {"x1": 168, "y1": 84, "x2": 220, "y2": 140}
    assert zoom["box_normalised"] == pytest.approx([0.5, 0.25, 220 / 336, 140 / 336])
    assert crop.headers["content-type"] == "image/png"
    assert sha256(crop.content).hexdigest() == zoom["crop"]
    limits = PixelLimits(CROP.min_pixels, CROP.max_pixels)
    assert crop.content == encode_png(show_region(picture(), IN_ORIGINAL, limits))
    assert Image.open(io.BytesIO(crop.content)).size == (
        zoom["crop_width_px"],
        zoom["crop_height_px"],
    )


def test_evidence_has_the_entropies_the_policy_reported(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)

    [zoom] = ask(clinic).json()["evidence"]

    assert zoom["baseline_entropy_nats"] == pytest.approx(0.25)
    assert zoom["tool_entropy_nats"] == pytest.approx(1.5)
    assert zoom["entropy_increase_nats"] == pytest.approx(1.25)


def test_the_steps_are_the_turns_of_the_trajectory_shown(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)

    case = ask(clinic).json()
    first, second = case["turns"]

    assert first["thought"] == "bright on the right"
    assert first["call"] == {
        "tool": "zoom_in",
        "bbox_2d": IN_VIEW,
        "window": None,
        "evidence_index": 0,
        "error": None,
    }
    assert first["answer"] is None
    assert (second["thought"], second["answer"]) == ("it is clear now", "B")
    shown = [a for a in case["attempts"] if a["trajectory_id"] == case["shown_trajectory_id"]]
    assert [attempt["answer"] for attempt in shown] == ["B"]


def test_the_consensus_region_is_where_most_of_the_agreeing_looked(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)

    case = ask(clinic).json()
    consensus = case["consensus"]
    heatmap = Image.open(io.BytesIO(clinic.get(consensus["heatmap_url"]).content))

    assert consensus["rectangles"] == [{"x1": 168, "y1": 84, "x2": 220, "y2": 140}]
    assert consensus["area_px"] == 52 * 56
    assert consensus["area_share"] == pytest.approx(52 * 56 / 336**2)
    assert (consensus["num_agreeing"], consensus["heatmap_max_count"]) == (2, 2)
    assert heatmap.convert("L").getpixel((194, 112)) == 255
    assert heatmap.convert("L").getpixel((30, 30)) == 0


def test_the_original_is_served_pixel_for_pixel(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)

    case = ask(clinic).json()
    image = clinic.get(case["image"]["url"])

    assert Image.open(io.BytesIO(image.content)).convert("RGB").tobytes() == picture().tobytes()
    assert (case["image"]["width_px"], case["image"]["height_px"]) == (336, 336)
    again = clinic.get(case["image"]["url"], headers={"if-none-match": image.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_several_trajectories_are_sampled_independently(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)

    case = ask(clinic, seed="9").json()
    first = {(a["trajectory_id"][-1], a["seed"]) for a in case["attempts"]}
    seeds = [request.seed for request in policy.requests]

    assert {request.temperature for request in policy.requests} == {1.0}
    assert len(seeds) == len(set(seeds)) == 6
    two_against_one(policy)
    repeated = ask(clinic, seed="9").json()
    assert {(a["trajectory_id"][-1], a["seed"]) for a in repeated["attempts"]} == first


def test_a_single_trajectory_is_greedy(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")])

    case = ask(clinic, k="1").json()

    assert {request.temperature for request in policy.requests} == {0.0}
    assert case["settings"]["temperature"] == 0.0
    assert (case["answer"], case["option_text"], case["agreement"]) == ("A", "ring", 1.0)


def test_an_open_question_is_answered_in_the_policys_words(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A small Ring.")])

    case = ask(clinic, choices=None, k=None).json()

    assert (case["status"], case["answer"], case["option_text"]) == (
        "answered",
        "A small Ring.",
        None,
    )
    assert (case["agreement"], case["settings"]["num_trajectories"]) == (1.0, 5)
    assert (case["evidence"], case["consensus"]["rectangles"]) == ([], [])
    assert clinic.get(f"/v1/cases/{case['case_id']}/heatmap").status_code == 404


def test_a_tie_abstains_and_shows_what_was_tried(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")], [look(ELSEWHERE), answer("B")])

    case = ask(clinic, k="2").json()

    assert (case["status"], case["abstention"]) == ("abstained", "tied")
    assert (case["answer"], case["shown_trajectory_id"], case["turns"]) == (None, None, [])
    assert sorted(case["votes"].values()) == [1, 1]
    assert sorted(a["boxes"][0]["x1"] for a in case["attempts"]) == [20, 168]


def test_nobody_answering_abstains(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("")])

    case = ask(clinic, k="2").json()

    assert (case["status"], case["abstention"]) == ("abstained", "unanswered")
    assert case["votes"] == {}


def test_agreeing_on_none_of_the_choices_abstains(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("I cannot tell")])

    case = ask(clinic, k="2").json()

    assert (case["status"], case["abstention"]) == ("abstained", "uncommitted")
    assert (case["answer"], case["option_text"], case["turns"]) == (None, None, [])
    assert case["votes"] == {"i cannot tell": 2}
    assert len(case["attempts"]) == 2


def test_a_bad_call_is_a_step_and_no_evidence(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look([90, 90, 20, 20]), look(IN_VIEW), answer("A")])

    case = ask(clinic, k="1").json()
    bad, good, _ = case["turns"]

    assert bad["call"]["evidence_index"] is None
    assert "x1 < x2" in bad["call"]["error"]
    assert good["call"]["evidence_index"] == 0
    assert [zoom["turn"] for zoom in case["evidence"]] == [1]


def test_text_that_looks_like_markup_stays_text(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([Say("<think><b>x</b> & <img src=x></think><answer>a</answer>")])

    case = ask(clinic, k="1", choices=None, question="<script>alert(1)</script>?").json()

    assert case["question"] == "<script>alert(1)</script>?"
    assert case["turns"][0]["thought"] == "<b>x</b> & <img src=x>"


def test_a_dicom_file_goes_through_zoom(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([look([20, 20, 60, 60]), answer("A")])
    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str)
    with open(path, "rb") as file:
        data = file.read()

    case = ask(clinic, image=data, k="1").json()

    assert case["image"]["source_format"] == "dicom"
    assert (case["image"]["width_px"], case["image"]["height_px"]) == (128, 128)
    assert case["status"] == "answered"


def test_the_timings_add_up(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)

    timings = ask(clinic).json()["timings"]
    total_s = timings.pop("total_s")

    assert total_s == pytest.approx(sum(timings.values()))
    assert timings["trajectories_s"] > 0


def test_cases_are_listed_newest_first_in_pages(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    asked = [ask(clinic, k="1", question=f"question {n}?").json()["case_id"] for n in range(3)]

    first = clinic.get("/v1/cases", params={"limit": 2}).json()
    second = clinic.get(first["next_url"]).json()

    assert [line["case_id"] for line in first["cases"]] == [asked[2], asked[1]]
    assert [line["case_id"] for line in second["cases"]] == [asked[0]]
    assert second["next_url"] is None
    assert first["cases"][0]["question"] == "question 2?"
    assert (first["cases"][0]["answer"], first["cases"][0]["option_text"]) == ("A", "ring")
