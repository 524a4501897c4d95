"""A request to its response: the reward of a group, and the consensus of K trajectories."""

from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from string import ascii_uppercase

from services.cca.consensus import Consensus, TooManyCells, find_consensus, tool_reward
from services.cca.format import format_reward
from services.cca.heatmap import draw_heatmap
from services.cca.matching import accuracy, is_committed, normal_form, words
from services.cca.regions import area_px, run_lengths
from shared.api.cca import (
    AttemptConsensus,
    ConsensusAttempt,
    ConsensusOutcome,
    ConsensusRegion,
    ConsensusRequest,
    ConsensusResponse,
    ScoredAttempt,
    ScoreRequest,
    ScoreResponse,
    WireReward,
)
from shared.api.zoom import WireBox, WireImageSize
from shared.errors import ApiProblem
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind

MAX_SIDE_PX = 2**20
MAX_RUNS = 2_000_000
"""Most runs of a mask that are written out: a strip per column of a tall image makes billions."""


def score(request: ScoreRequest, max_grid_cells: int) -> ScoreResponse:
    """R(T) = R_acc + R_format + 1[R_acc > 0]·R_tool for every attempt. Raises `ApiProblem`."""
    check_gold(request)
    accuracies = [
        accuracy(attempt.answer, request.gold_answer, request.answer_kind, request.options)
        for attempt in request.attempts
    ]
    correct = [index for index, right in enumerate(accuracies) if right > 0]
    image, boxes = read_boxes(request.image_size, request.attempts)
    consensus = _consensus(boxes, correct, max_grid_cells)
    rewards = [
        _reward(request, attempt, right, iou)
        for attempt, right, iou in zip(request.attempts, accuracies, consensus.ious, strict=True)
    ]
    return ScoreResponse(
        rewards=rewards,
        consensus=_region(consensus, image),
        heatmap=draw_heatmap(consensus, image) if request.heatmap else None,
    )


def _reward(request: ScoreRequest, attempt: ScoredAttempt, right: float, iou: float) -> WireReward:
    knobs = request.settings
    form = format_reward(
        is_well_formed=attempt.is_well_formed,
        all_calls_parsed=attempt.all_calls_parsed,
        answer=attempt.answer,
        penalty=knobs.format_penalty,
    )
    tool = tool_reward(is_correct=right > 0, has_zoomed=bool(attempt.boxes), iou=iou, knobs=knobs)
    return WireReward(
        trajectory_id=attempt.trajectory_id,
        accuracy=right,
        format=form,
        tool=tool,
        total=right + form + tool,
        consensus_iou=iou,
    )


def agree(request: ConsensusRequest, max_grid_cells: int) -> ConsensusResponse:
    """Modal answer, the region behind it, the trajectory to show. Raises `ApiProblem`."""
    check_names(request)
    forms = [normal_form(a.answer, request.answer_kind, request.options) for a in request.attempts]
    votes = Counter(form for form in forms if form is not None)
    outcome, answer = _outcome(votes, request.answer_kind)
    agreeing = [index for index, form in enumerate(forms) if answer is not None and form == answer]
    image, boxes = read_boxes(request.image_size, request.attempts)
    consensus = _consensus(boxes, agreeing, max_grid_cells)
    shown = max(agreeing, key=lambda index: consensus.ious[index], default=None)
    return ConsensusResponse(
        outcome=outcome,
        answer=answer,
        agreement=max(votes.values(), default=0) / len(request.attempts),
        votes=dict(votes),
        shown_trajectory_id=None if shown is None else request.attempts[shown].trajectory_id,
        attempts=[
            AttemptConsensus(
                trajectory_id=attempt.trajectory_id,
                answer=form,
                agrees=index in agreeing,
                consensus_iou=consensus.ious[index],
            )
            for index, (attempt, form) in enumerate(zip(request.attempts, forms, strict=True))
        ],
        consensus=_region(consensus, image),
        heatmap=draw_heatmap(consensus, image) if request.heatmap else None,
    )


def _outcome(votes: Counter[str], kind: AnswerKind) -> tuple[ConsensusOutcome, str | None]:
    """The modal answer, unless there is none or more than one, or it commits to nothing."""
    first_two = votes.most_common(2)
    if not first_two:
        return ConsensusOutcome.UNANSWERED, None
    if len(first_two) == 2 and first_two[0][1] == first_two[1][1]:
        return ConsensusOutcome.TIED, None
    if not is_committed(first_two[0][0], kind):
        return ConsensusOutcome.UNCOMMITTED, None
    return ConsensusOutcome.AGREED, first_two[0][0]


def check_gold(request: ScoreRequest) -> None:
    """A gold answer no answer could match is a mistake. Raises `ApiProblem` 422."""
    gold = request.gold_answer.strip()
    if not words(gold):
        raise _invalid("gold_answer: must hold a word or a number")
    if request.answer_kind is AnswerKind.YES_NO and gold.lower() not in ("yes", "no"):
        raise _invalid("gold_answer: must be 'yes' or 'no' for answer_kind 'yes_no'")
    if request.answer_kind is AnswerKind.CHOICE:
        letters = ascii_uppercase[: len(request.options) or 26]
        if len(gold) != 1 or gold.upper() not in letters:
            raise _invalid(
                f"gold_answer: must be one letter of {letters[0]} to {letters[-1]} "
                "for answer_kind 'choice'"
            )


def check_names(request: ConsensusRequest) -> None:
    """The trajectory to show is told by its id, so no two may share it. Raises `ApiProblem` 422."""
    names = Counter(attempt.trajectory_id for attempt in request.attempts)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise _invalid(f"attempts: trajectory_id {name[:64]!r} is given {count} times")


def read_boxes(
    size: WireImageSize, attempts: Sequence[ScoredAttempt | ConsensusAttempt]
) -> tuple[ImageSize, list[list[Box]]]:
    """Boxes as geometry knows them. Raises `ApiProblem` 422 for one not inside the image."""
    boxes = [attempt.boxes for attempt in attempts]
    image = ImageSize(size.width_px, size.height_px)
    if max(image.width_px, image.height_px) > MAX_SIDE_PX:
        raise _invalid(f"image_size: sides of at most {MAX_SIDE_PX} px are accepted")
    for index, own in enumerate(boxes):
        for box in own:
            if not (0 <= box.x1 < box.x2 <= image.width_px) or not (
                0 <= box.y1 < box.y2 <= image.height_px
            ):
                raise _invalid(
                    f"attempts.{index}.boxes: every box must lie inside the image, "
                    "with x1 < x2 and y1 < y2"
                )
    return image, [[Box(box.x1, box.y1, box.x2, box.y2) for box in own] for own in boxes]


def _consensus(boxes: list[list[Box]], agreeing: list[int], max_grid_cells: int) -> Consensus:
    try:
        return find_consensus(boxes, agreeing, max_grid_cells)
    except TooManyCells as error:
        raise _invalid(f"attempts: {error}") from error


def _invalid(detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, "Request does not validate", detail)


def _region(consensus: Consensus, image: ImageSize) -> ConsensusRegion:
    num_runs = sum(box.height_px for box in consensus.region)
    if num_runs > MAX_RUNS:
        raise _invalid(
            f"attempts: the mask of the consensus would have up to {num_runs} runs; at most "
            f"{MAX_RUNS} are written out"
        )
    return ConsensusRegion(
        num_agreeing=consensus.num_agreeing,
        rectangles=[WireBox(x1=b.x1, y1=b.y1, x2=b.x2, y2=b.y2) for b in consensus.region],
        area_px=area_px(consensus.region),
        rle=run_lengths(consensus.region, image),
    )
