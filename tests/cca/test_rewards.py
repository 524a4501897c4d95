"""METHOD.md's reward, case by case, through the HTTP app and its client."""

import base64
import io
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from PIL import Image

from services.cca.app import create_app
from services.cca.settings import CcaSettings
from shared.api.cca import (
    ConsensusAttempt,
    ConsensusOutcome,
    ConsensusRequest,
    RewardSettings,
    ScoredAttempt,
    ScoreRequest,
    ScoreResponse,
    ToolRewardArm,
)
from shared.api.zoom import WireBox, WireImageSize
from shared.clients.cca import CcaClient
from shared.errors import CcaError
from shared.problem import AnswerKind

GOLD = "A"
IMAGE = WireImageSize(width_px=100, height_px=80)
HERE = WireBox(x1=10, y1=10, x2=30, y2=30)
THERE = WireBox(x1=60, y1=40, x2=80, y2=60)


@pytest.fixture
async def cca() -> AsyncIterator[CcaClient]:
    transport = httpx.ASGITransport(create_app(CcaSettings()))
    async with httpx.AsyncClient(transport=transport) as client:
        yield CcaClient("http://cca", client)


def attempt(
    answer: str | None, *boxes: WireBox, well_formed: bool = True, parsed: bool = True
) -> ScoredAttempt:
    return ScoredAttempt(
        trajectory_id="t",
        answer=answer,
        is_well_formed=well_formed,
        all_calls_parsed=parsed,
        boxes=list(boxes),
    )


def group(*attempts: ScoredAttempt, heatmap: bool = False, **knobs: object) -> ScoreRequest:
    return ScoreRequest(
        gold_answer=GOLD,
        answer_kind=AnswerKind.CHOICE,
        options=["ring", "cross"],
        image_size=IMAGE,
        attempts=list(attempts),
        settings=RewardSettings.model_validate(knobs),
        heatmap=heatmap,
    )


def tools(response: ScoreResponse) -> list[float]:
    return [reward.tool for reward in response.rewards]


async def test_the_total_is_the_sum_of_its_parts(cca: CcaClient) -> None:
    response = await cca.score(group(attempt("A", HERE, parsed=False), attempt("B", HERE)))
    right, wrong = response.rewards
    assert (right.accuracy, right.format, right.tool) == (1.0, -0.2, 1.0)
    assert right.total == pytest.approx(1.8)
    assert (wrong.accuracy, wrong.format, wrong.tool, wrong.total) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "bad",
    [
        attempt("A", well_formed=False),
        attempt("A", parsed=False),
        attempt(None),
        attempt(" "),
    ],
)
async def test_each_fault_of_form_costs_the_same_penalty_once(
    cca: CcaClient, bad: ScoredAttempt
) -> None:
    response = await cca.score(group(bad, format_penalty=-0.3))
    assert response.rewards[0].format == -0.3


async def test_consensus_needs_a_strict_majority(cca: CcaClient) -> None:
    two_of_four = [attempt("A", HERE)] * 2 + [attempt("A", THERE)] * 2
    response = await cca.score(group(*two_of_four))
    assert response.consensus.rectangles == []
    assert response.consensus.area_px == 0
    assert response.consensus.rle == [8000]
    assert tools(response) == [0.5] * 4

    three_of_five = [attempt("A", HERE)] * 3 + [attempt("A", THERE)] * 2
    response = await cca.score(group(*three_of_five))
    assert response.consensus.rectangles == [HERE]
    assert tools(response) == [1.0, 1.0, 1.0, 0.5, 0.5]


async def test_wrong_trajectories_do_not_vote_but_are_compared(cca: CcaClient) -> None:
    response = await cca.score(
        group(attempt("A", HERE), *[attempt("B", THERE)] * 5, attempt("B", HERE))
    )
    assert response.consensus.num_agreeing == 1
    assert response.consensus.rectangles == [HERE]
    assert [r.consensus_iou for r in response.rewards] == [1.0, 0, 0, 0, 0, 0, 1.0]
    assert tools(response) == [1.0] + [0.0] * 6


async def test_a_single_correct_trajectory_agrees_with_itself(cca: CcaClient) -> None:
    response = await cca.score(group(attempt("A", HERE, THERE), attempt("B")))
    assert response.consensus.area_px == 800
    assert tools(response) == [1.0, 0.0]


async def test_correct_trajectories_without_a_zoom_count_in_the_majority(cca: CcaClient) -> None:
    response = await cca.score(group(attempt("A", HERE), attempt("A", HERE), attempt("A")))
    assert response.consensus.rectangles == [HERE]
    assert tools(response) == [1.0, 1.0, 0.0]

    response = await cca.score(group(attempt("A", HERE), attempt("A", HERE), *[attempt("A")] * 2))
    assert response.consensus.num_agreeing == 4
    assert response.consensus.rectangles == []
    assert tools(response) == [0.5, 0.5, 0.0, 0.0]


async def test_not_zooming_earns_what_the_setting_says(cca: CcaClient) -> None:
    request = group(attempt("A"), attempt("B"), no_zoom_tool_reward=0.5)
    assert tools(await cca.score(request)) == [0.5, 0.0]


async def test_nobody_correct_means_no_consensus_and_no_tool_reward(cca: CcaClient) -> None:
    response = await cca.score(group(attempt("B", HERE), attempt(None, HERE)))
    assert response.consensus.num_agreeing == 0
    assert response.consensus.rectangles == []
    assert tools(response) == [0.0, 0.0]


async def test_the_iou_threshold_is_strict(cca: CcaClient) -> None:
    half = WireBox(x1=10, y1=10, x2=30, y2=20)
    attempts = [attempt("A", HERE)] * 2 + [attempt("A", half)]
    response = await cca.score(group(*attempts))
    assert response.rewards[2].consensus_iou == 0.5
    assert tools(response) == [1.0, 1.0, 0.5]
    assert tools(await cca.score(group(*attempts, iou_threshold=0.49))) == [1.0, 1.0, 1.0]


async def test_zooming_twice_on_one_place_counts_once(cca: CcaClient) -> None:
    response = await cca.score(group(attempt("A", HERE, HERE), attempt("A", THERE), attempt("A")))
    assert response.consensus.rectangles == []


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (ToolRewardArm.CCA, [1.0, 0.5, 0.0, 0.0, 0.0]),
        (ToolRewardArm.GATED, [0.5, 0.5, 0.0, 0.0, 0.0]),
        (ToolRewardArm.UNCONDITIONAL, [0.5, 0.5, 0.0, 0.5, 0.0]),
        (ToolRewardArm.NONE, [0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
async def test_the_arms_of_the_ablation(
    cca: CcaClient, arm: ToolRewardArm, expected: list[float]
) -> None:
    attempts = [
        attempt("A", HERE),
        attempt("A", THERE),
        attempt("A"),
        attempt("B", HERE),
        attempt("B"),
    ]
    same_place = [attempt("A", HERE)] * 3
    response = await cca.score(group(*attempts, *same_place, arm=arm))
    assert tools(response)[:5] == expected
    assert response.rewards[0].total == 1.0 + expected[0]
    assert response.rewards[3].total == expected[3]


async def test_the_heatmap_shows_how_many_looked_where(cca: CcaClient) -> None:
    request = group(
        attempt("A", HERE), attempt("A", HERE), attempt("A", THERE), attempt("B", THERE),
        heatmap=True,
    )  # fmt: skip
    heatmap = (await cca.score(request)).heatmap
    assert heatmap is not None
    assert (heatmap.width_px, heatmap.height_px, heatmap.max_count) == (100, 80, 2)
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(heatmap.png_base64))))
    expected = np.zeros((80, 100), dtype=np.uint8)
    expected[10:30, 10:30] = 170
    expected[40:60, 60:80] = 85
    assert np.array_equal(levels, expected)


async def test_the_heatmap_of_a_large_image_is_shrunk_and_keeps_its_mass(cca: CcaClient) -> None:
    request = ScoreRequest(
        gold_answer="yes",
        answer_kind=AnswerKind.YES_NO,
        image_size=WireImageSize(width_px=5120, height_px=2560),
        attempts=[attempt("yes", WireBox(x1=100, y1=100, x2=115, y2=110))],
        heatmap=True,
    )
    heatmap = (await cca.score(request)).heatmap
    assert heatmap is not None
    assert (heatmap.width_px, heatmap.height_px) == (512, 256)
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(heatmap.png_base64))))
    assert {(y, x): int(levels[y, x]) for y, x in np.argwhere(levels)} == {
        (10, 10): 255,
        (10, 11): 128,
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"gold_answer": "C"}, "gold_answer: must be one letter of A to B"),
        ({"answer_kind": "yes_no"}, "gold_answer: must be 'yes' or 'no'"),
        ({"image_size": {"width_px": 20, "height_px": 20}}, "attempts.0.boxes"),
        ({"attempts": []}, "body.attempts"),
        ({"reward": 1}, "body.reward"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    change: dict[str, object], complaint: str
) -> None:
    body = {**group(attempt("A", HERE)).model_dump(mode="json"), **change}
    transport = httpx.ASGITransport(create_app(CcaSettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://cca") as client:
        response = await client.post("/v1/score", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert complaint in response.json()["detail"]


async def test_boxes_that_span_too_large_a_grid_are_refused() -> None:
    transport = httpx.ASGITransport(create_app(CcaSettings(max_grid_cells=8)))
    async with httpx.AsyncClient(transport=transport) as client:
        cca = CcaClient("http://cca", client)
        await cca.score(group(attempt("A", HERE)))
        with pytest.raises(CcaError, match="cells, at most 8 are scored") as caught:
            await cca.score(group(attempt("A", HERE, THERE)))
        assert not caught.value.is_transient


def case(*attempts: tuple[str | None, list[WireBox]]) -> ConsensusRequest:
    return ConsensusRequest(
        answer_kind=AnswerKind.CHOICE,
        options=["ring", "cross"],
        image_size=IMAGE,
        attempts=[
            ConsensusAttempt(trajectory_id=f"t{index}", answer=answer, boxes=boxes)
            for index, (answer, boxes) in enumerate(attempts)
        ],
    )


async def test_at_inference_the_modal_answer_brings_its_region(cca: CcaClient) -> None:
    wide = WireBox(x1=10, y1=10, x2=40, y2=30)
    response = await cca.consensus(
        case(
            ("A", [wide]), ("ring", [HERE]), ("(A)", [HERE]), ("B", [THERE]), (None, [THERE])
        )
    )  # fmt: skip
    assert response.outcome is ConsensusOutcome.AGREED
    assert response.answer == "A"
    assert response.votes == {"A": 3, "B": 1}
    assert response.agreement == 0.6
    assert response.consensus.rectangles == [HERE]
    assert response.consensus.num_agreeing == 3
    assert response.shown_trajectory_id == "t1"
    assert [a.answer for a in response.attempts] == ["A", "A", "A", "B", None]
    assert [a.agrees for a in response.attempts] == [True, True, True, False, False]
    assert [a.consensus_iou for a in response.attempts] == [400 / 600, 1.0, 1.0, 0.0, 0.0]


async def test_at_inference_a_tie_abstains(cca: CcaClient) -> None:
    response = await cca.consensus(case(("A", [HERE]), ("B", [THERE])))
    assert response.outcome is ConsensusOutcome.TIED
    assert response.answer is None
    assert response.agreement == 0.5
    assert response.shown_trajectory_id is None
    assert response.consensus.rectangles == []


async def test_at_inference_no_answer_is_no_vote(cca: CcaClient) -> None:
    response = await cca.consensus(case((None, [HERE]), ("", [HERE])))
    assert response.outcome is ConsensusOutcome.UNANSWERED
    assert response.votes == {}
    assert response.agreement == 0.0


async def test_at_inference_agreeing_that_one_cannot_tell_is_no_answer(cca: CcaClient) -> None:
    response = await cca.consensus(
        case(("I cannot tell.", [HERE]), ("i cannot tell", [HERE]), ("B", [THERE]))
    )
    assert response.outcome is ConsensusOutcome.UNCOMMITTED
    assert (response.answer, response.shown_trajectory_id) == (None, None)
    assert response.votes == {"i cannot tell": 2, "B": 1}
    assert response.consensus.rectangles == []

    unsure = case(("unclear", [HERE]), ("Unclear.", [HERE])).model_copy(
        update={"answer_kind": AnswerKind.YES_NO, "options": []}
    )
    assert (await cca.consensus(unsure)).outcome is ConsensusOutcome.UNCOMMITTED
    text = unsure.model_copy(update={"answer_kind": AnswerKind.FREE_TEXT})
    assert (await cca.consensus(text)).answer == "unclear"


async def test_agreeing_without_looking_shows_the_first(cca: CcaClient) -> None:
    response = await cca.consensus(case(("B", []), ("A", []), ("a", [])))
    assert response.answer == "A"
    assert response.shown_trajectory_id == "t1"
    assert response.consensus.area_px == 0
