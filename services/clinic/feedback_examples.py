"""The examples of the feedback routes in the OpenAPI document: real models."""

from datetime import UTC, datetime
from http import HTTPStatus

from services.clinic.examples import EXAMPLE_ID
from services.clinic.problem_examples import problems
from shared.api.feedback import Feedback, FeedbackHistory, FeedbackRequest, ReviewerRole, Verdict
from shared.api.zoom import WireBox

EXAMPLE_REQUEST = FeedbackRequest(
    verdict=Verdict.CORRECTED,
    role=ReviewerRole.RADIOLOGIST,
    corrected_answer="ring",
    corrected_box=WireBox(x1=160, y1=80, x2=224, y2=144),
    note="The bars are an artefact.",
)

EXAMPLE_FEEDBACK = Feedback(
    case_id=EXAMPLE_ID,
    version=1,
    given_at=datetime(2026, 3, 2, 10, 5, 0, tzinfo=UTC),
    verdict=EXAMPLE_REQUEST.verdict,
    role=EXAMPLE_REQUEST.role,
    corrected_answer="A",
    corrected_box=EXAMPLE_REQUEST.corrected_box,
    note=EXAMPLE_REQUEST.note,
)

EXAMPLE_HISTORY = FeedbackHistory(case_id=EXAMPLE_ID, versions=[EXAMPLE_FEEDBACK])

FEEDBACK_PROBLEMS = problems(
    unknown_case=(HTTPStatus.NOT_FOUND, "No such case", f"no case {EXAMPLE_ID}"),
    still_running=(
        HTTPStatus.CONFLICT,
        "The case has not ended",
        f"case {EXAMPLE_ID} is running; feedback is on what a case came to",
    ),
    stale=(
        HTTPStatus.CONFLICT,
        "The feedback has changed",
        "replaces is 0, but the newest feedback is version 1; read it and say whether yours still "
        "stands",
    ),
    nobody_knows=(
        HTTPStatus.CONFLICT,
        "Nobody knows whom the case is about",
        "its pseudonyms are not in this clinic's database of them, so identity could not be taken "
        "out of the text",
    ),
    no_choice=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The corrected answer is no choice",
        "accepted: the text of one of the case's choices, or its letter, A to D",
    ),
    no_answer=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The case gives no answer",
        f"case {EXAMPLE_ID} is abstained and gives no answer that could stand; accepted: "
        "disagree, or corrected with corrected_answer",
    ),
    bad_box=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The corrected box is not in the image",
        "accepted: whole pixels with 0 ≤ x1 < x2 ≤ 336 and 0 ≤ y1 < y2 ≤ 336",
    ),
)
