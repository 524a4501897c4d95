"""Feedback on a case: checked against the case, added as its next version, listed."""

import asyncio
import string
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Response

from services.clinic.admission import unnamed
from services.clinic.desk import utc_now
from services.clinic.feedback_examples import (
    EXAMPLE_FEEDBACK,
    EXAMPLE_HISTORY,
    EXAMPLE_REQUEST,
    FEEDBACK_PROBLEMS,
)
from services.clinic.feedback_store import StaleFeedback
from services.clinic.headers import Key, sent
from services.clinic.idempotency import fingerprint_of
from services.clinic.problem_examples import KEY_PROBLEMS, UNKNOWN_CASE, json_example, merged
from services.clinic.pseudonyms import Pseudonyms
from services.clinic.state import CaseId, State, found_case
from services.clinic.store import Answer, Repeatable
from services.clinic.submission import checked_text
from shared.api.clinic import Case, CaseStatus
from shared.api.feedback import Feedback, FeedbackHistory, FeedbackRequest, Verdict
from shared.api.zoom import WireBox
from shared.errors import ApiProblem

reviewing = APIRouter(prefix="/v1", tags=["feedback"])


def _refuse(title: str, detail: str) -> ApiProblem:
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, title, detail)


def _checked_choice(answer: str, choices: list[str]) -> str:
    """The letter of the choice that is meant. Raises `ApiProblem`."""
    letters = string.ascii_uppercase[: len(choices)]
    meant = {
        letter
        for letter, choice in zip(letters, choices, strict=True)
        if answer.casefold() in (letter.casefold(), choice.casefold())
    }
    if len(meant) == 1:
        return meant.pop()
    if meant:
        raise _refuse(
            "The corrected answer is ambiguous",
            "it is the letter of one choice and the text of another; give the other's letter",
        )
    raise _refuse(
        "The corrected answer is no choice",
        f"accepted: the text of one of the case's choices, or its letter, A to {letters[-1]}",
    )


def _checked_box(box: WireBox, case: Case) -> None:
    width_px, height_px = case.image.width_px, case.image.height_px
    if not (0 <= box.x1 < box.x2 <= width_px and 0 <= box.y1 < box.y2 <= height_px):
        raise _refuse(
            "The corrected box is not in the image",
            f"accepted: whole pixels with 0 ≤ x1 < x2 ≤ {width_px} and 0 ≤ y1 < y2 ≤ {height_px}",
        )


def _check_verdict(case: Case, said: FeedbackRequest) -> None:
    """A verdict must fit what it is about and what comes with it. Raises `ApiProblem`."""
    corrects = said.corrected_answer is not None or said.corrected_box is not None
    if said.verdict is not Verdict.CORRECTED and corrects:
        raise _refuse(
            "A correction needs its verdict",
            f"corrected_answer and corrected_box belong to the verdict corrected, not to "
            f"{said.verdict.value}",
        )
    if said.verdict is Verdict.CORRECTED and not corrects:
        raise _refuse(
            "The correction is missing",
            "with the verdict corrected, give corrected_answer, corrected_box or both",
        )
    if case.status is CaseStatus.ANSWERED:
        return
    if said.verdict is Verdict.AGREE or (corrects and said.corrected_answer is None):
        raise _refuse(
            "The case gives no answer",
            f"case {case.case_id} is {case.status.value} and gives no answer that could stand; "
            "accepted: disagree, or corrected with corrected_answer",
        )


def _checked(case: Case, said: FeedbackRequest, max_answer_chars: int) -> Feedback:
    """The version to add. Raises `ApiProblem`."""
    if case.status is CaseStatus.RUNNING:
        raise ApiProblem(
            HTTPStatus.CONFLICT,
            "The case has not ended",
            f"case {case.case_id} is running; feedback is on what a case came to",
        )
    _check_verdict(case, said)
    answer = said.corrected_answer
    if answer is not None:
        answer = checked_text(answer, "corrected answer", max_answer_chars)
        answer = _checked_choice(answer, case.choices) if case.choices else answer
    if said.corrected_box is not None:
        _checked_box(said.corrected_box, case)
    return Feedback(
        case_id=case.case_id,
        version=said.replaces + 1,
        given_at=utc_now(),
        verdict=said.verdict,
        role=said.role,
        corrected_answer=answer,
        corrected_box=said.corrected_box,
        note=(said.note or "").strip() or None,
    )


def _unnamed(feedback: Feedback, case: Case, pseudonyms: Pseudonyms) -> Feedback:
    """Its free texts without the identity that the case's header has."""
    texts = {"note": feedback.note}
    if not case.choices:
        texts["corrected_answer"] = feedback.corrected_answer
    without = {
        name: None if text is None else unnamed(text, case.subject, pseudonyms)
        for name, text in texts.items()
    }
    return feedback.model_copy(update=without)


@reviewing.post(
    "/cases/{case_id}/feedback",
    status_code=HTTPStatus.CREATED,
    summary="Say whether a case is right",
    description="Adds a version to the case's feedback; the newest counts. `replaces` is the "
    "newest version its author knows of, so that two reviewers do not pass each other over.",
    response_model=Feedback,
    responses={
        201: json_example("The version that was added.", EXAMPLE_FEEDBACK),
        **merged(FEEDBACK_PROBLEMS, KEY_PROBLEMS),
    },
)
async def give_feedback(
    state: State,
    key: Key,
    case_id: CaseId,
    said: Annotated[FeedbackRequest, Body(examples=[EXAMPLE_REQUEST.model_dump(mode="json")])],
) -> Response:
    """Check it against the case, add it, return it."""

    async def work(request: Repeatable | None) -> Answer:
        case = await asyncio.to_thread(found_case, state, case_id)
        feedback = _checked(case, said, state.settings.max_choice_chars)
        feedback = await asyncio.to_thread(_unnamed, feedback, case, state.desk.pseudonyms)
        answer = Answer(HTTPStatus.CREATED, {}, feedback.model_dump_json())
        try:
            await asyncio.to_thread(state.feedback.add, feedback, request, answer)
        except StaleFeedback as error:
            raise ApiProblem(
                HTTPStatus.CONFLICT,
                "The feedback has changed",
                f"replaces is {said.replaces}, but {error}; read it and say whether yours still "
                "stands",
            ) from error
        state.metrics.feedback.labels(feedback.verdict.value, feedback.role.value).inc()
        return answer

    fingerprint = fingerprint_of("feedback", case_id, said.model_dump_json())
    return sent(await state.repetitions.once(key, fingerprint, work))


@reviewing.get(
    "/cases/{case_id}/feedback",
    summary="List the feedback on a case",
    responses={200: json_example("Every version, oldest first.", EXAMPLE_HISTORY), **UNKNOWN_CASE},
)
def list_feedback(state: State, case_id: CaseId) -> FeedbackHistory:
    """Every version; the last one counts."""
    found_case(state, case_id)
    return FeedbackHistory(case_id=case_id, versions=state.feedback.versions(case_id))
