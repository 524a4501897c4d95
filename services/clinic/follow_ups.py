"""Follow-up questions: a new case about the same image, whose policy knows what was said before."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from services.clinic.examples import EXAMPLE_FOLLOW_UP, EXAMPLE_RUNNING
from services.clinic.headers import Key, Waiting, sent, waited
from services.clinic.idempotency import fingerprint_of
from services.clinic.problem_examples import FOLLOW_UP_PROBLEMS, KEY_PROBLEMS, json_example, merged
from services.clinic.state import CaseId, State, no_such_case
from services.clinic.store import Answer, Repeatable, UnknownCase
from services.clinic.submission import check_question, only_fields
from shared.api.clinic import Case, FollowUp
from shared.errors import ApiProblem

follow_ups = APIRouter(prefix="/v1", tags=["cases"])

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_JSON = "application/json"
_FIELDS = tuple(FollowUp.model_fields)

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": FollowUp.model_json_schema()} for media_type in (_JSON, *_FORMS)
        },
    }
}


async def _follow_up(request: Request) -> FollowUp:
    """The body, as JSON or as a form. Raises `ApiProblem`, `RequestValidationError`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == _JSON:
            return FollowUp.model_validate_json(await request.body())
        if media_type not in _FORMS:
            raise ApiProblem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "Unsupported content type",
                f"accepted: {', '.join((_JSON, *_FORMS))}",
            )
        form = await request.form()
        only_fields([name for name, _ in form.multi_items()], _FIELDS)
        given: dict[str, Any] = dict(form.multi_items())
        return FollowUp.model_validate(given | {"choices": form.getlist("choices")})
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        ) from error


@follow_ups.post(
    "/cases/{case_id}/follow-ups",
    status_code=HTTPStatus.CREATED,
    summary="Ask a further question about the image of a case",
    description="A new case, whose policy is shown the conversation so far: the questions, and "
    "what the shown trajectories wrote and saw. The two cases name each other (`follows`, "
    "`follow_ups`), and `context` says what did not fit. Only an answered case can be followed. "
    "Else as asking a first question.",
    response_model=Case,
    responses={
        201: json_example("The whole new case.", EXAMPLE_FOLLOW_UP),
        202: {
            **json_example("The new case, which goes on under its `Location`.", EXAMPLE_RUNNING),
            "model": Case,
        },
        **merged(FOLLOW_UP_PROBLEMS, KEY_PROBLEMS),
    },
    openapi_extra=_BODY,
)
async def create_follow_up(
    state: State,
    key: Key,
    wait: Waiting,
    case_id: CaseId,
    follow_up: Annotated[FollowUp, Depends(_follow_up)],
) -> Response:
    """Check the question, work the new case, return it."""
    asked = check_question(
        state.settings,
        question=follow_up.question,
        choices=follow_up.choices,
        k=follow_up.k,
        seed=follow_up.seed,
    )

    async def work(request: Repeatable | None) -> Answer:
        wait_s = None if wait is None else wait.seconds
        try:
            case = await state.desk.follow_up(case_id, asked, wait_s=wait_s, request=request)
        except UnknownCase as error:
            raise no_such_case(error) from error
        return waited(case, wait, state.metrics)

    fingerprint = fingerprint_of("follow up", case_id, follow_up.model_dump())
    return sent(await state.repetitions.once(key, fingerprint, work))
