"""The case API's acting side: ask, follow, cancel. Every POST may carry an idempotency key."""

import asyncio
from hashlib import sha256
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Header, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from services.clinic.examples import (
    CANCEL_PROBLEMS,
    EXAMPLE_CANCELLED,
    EXAMPLE_CASE,
    EXAMPLE_RUNNING,
    EXAMPLE_STREAM,
    FOLLOW_PROBLEMS,
    KEY_PROBLEMS,
    SUBMISSION_PROBLEMS,
    json_example,
    merged,
)
from services.clinic.following import LAST_EVENT, follow
from services.clinic.idempotency import KEY_PATTERN, fingerprint_of, key_of, made
from services.clinic.preference import wait_preference_s
from services.clinic.state import CaseId, State, found_case, no_such_case
from services.clinic.store import Answer, Repeatable, UnknownCase
from services.clinic.submission import asked_rendering, check_submission
from shared.api.clinic import MAX_TRAJECTORIES, Case, CaseStatus
from shared.api.zoom import RenderingRequest
from shared.errors import ApiProblem

acting = APIRouter(prefix="/v1", tags=["cases"])

_REPEATED = "choices"
_RENDERING = ("frame", "axis", "index", "window", "window_center", "window_width")
_FIELDS = ("image", "question", _REPEATED, "k", "seed", *_RENDERING)


async def _only_known_fields(request: Request) -> None:
    """A misspelt field would be missed in silence, and of two questions one. Raises `ApiProblem`.

    FastAPI has parsed the form already, so this reads nothing.
    """
    names = [name for name, _ in (await request.form()).multi_items()]
    unknown = sorted(set(names) - set(_FIELDS))
    repeated = sorted({n for n in names if n != _REPEATED and names.count(n) > 1})
    detail = f"accepted: {', '.join(_FIELDS)}; only {_REPEATED} may be repeated"
    if unknown or repeated:
        what = f"unknown field {unknown[0][:64]!r}" if unknown else f"{repeated[0]} is given twice"
        raise ApiProblem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "Request does not validate", f"{what}; {detail}"
        )


def _key(
    request: Request,
    idempotency_key: Annotated[  # noqa: ARG001 - for the document
        str | None,
        Header(
            description="Makes the request safe to repeat: a repetition is sent the first answer "
            "and does nothing. Of a request that was refused, nothing is kept.",
            json_schema_extra={"pattern": KEY_PATTERN},
            examples=['"8e03978e-40d5-43e8-bc93-6894a57f9324"'],
        ),
    ] = None,
) -> str | None:
    return key_of(request.headers.getlist("idempotency-key"))


def _wait_s(
    request: Request,
    state: State,
    prefer: Annotated[  # noqa: ARG001 - for the document
        str | None,
        Header(
            description="`wait=N`: answer within N seconds, with 202 if the case has not ended. "
            "N over the clinic's longest wait counts as that. What is malformed is ignored.",
            examples=["wait=10"],
        ),
    ] = None,
) -> int | None:
    wait_s = wait_preference_s(request.headers.getlist("prefer"))
    return None if wait_s is None else min(wait_s, state.settings.max_wait_s)


Key = Annotated[str | None, Depends(_key)]
WaitS = Annotated[int | None, Depends(_wait_s)]


def _sent(answer: Answer) -> Response:
    return Response(
        answer.body, answer.status, headers=answer.headers, media_type="application/json"
    )


@acting.post(
    "/cases",
    status_code=HTTPStatus.CREATED,
    summary="Ask a question about an image",
    description="Waits for the end of the case, or as long as `Prefer: wait` says. 201 also for a "
    "case that abstained or failed: its `status` says so, and it stays readable under its id. "
    "Research use only. Not a medical device.",
    response_model=Case,
    responses={
        201: json_example("The whole case.", EXAMPLE_CASE),
        202: {
            **json_example("The case, which goes on under its `Location`.", EXAMPLE_RUNNING),
            "model": Case,
        },
        **merged(SUBMISSION_PROBLEMS, KEY_PROBLEMS),
    },
    dependencies=[Depends(_only_known_fields)],
)
async def create_case(
    state: State,
    key: Key,
    wait_s: WaitS,
    rendering: Annotated[RenderingRequest, Depends(asked_rendering)],
    image: Annotated[
        UploadFile,
        File(
            description="PNG, JPEG, WebP, TIFF, DICOM or NIfTI file, told by content. Its name is "
            "not read. Of a DICOM header nothing is kept that names a person; what it names is "
            "taken out of the question."
        ),
    ],
    question: Annotated[str, Form(examples=["What kind of lesion is shown?"])],
    choices: Annotated[
        list[str] | None,
        Form(description="Repeat the field per choice.", examples=[["ring", "cross"]]),
    ] = None,
    k: Annotated[
        int | None,
        Form(description=f"Number of trajectories, 1 to {MAX_TRAJECTORIES}.", examples=[5]),
    ] = None,
    seed: Annotated[
        int | None, Form(description="Makes the case repeatable.", examples=[7])
    ] = None,
) -> Response:
    """Check the form, work the case, return it."""
    submission = check_submission(
        state.settings,
        image=await image.read(),
        media_type=image.content_type,
        question=question,
        choices=choices or [],
        k=k,
        seed=seed,
        rendering=rendering,
    )

    async def work(request: Repeatable | None) -> Answer:
        case = await state.desk.answer(submission, wait_s=wait_s, request=request)
        if wait_s is None:
            return made(case)
        in_time = case.status is not CaseStatus.RUNNING
        state.metrics.waits.labels("finished" if in_time else "running").inc()
        return made(case, **{"preference-applied": f"wait={wait_s}"})

    fingerprint = ""
    if key is not None:
        image_sha256 = (await asyncio.to_thread(sha256, submission.image)).hexdigest()
        fingerprint = fingerprint_of(
            *("ask", image_sha256, image.content_type, question, choices, k, seed),
            rendering.model_dump(),
        )
    return _sent(await state.repetitions.once(key, fingerprint, work))


@acting.post(
    "/cases/{case_id}/cancel",
    summary="Cancel a running case",
    description="The work is stopped and the case stays readable, with the final status "
    "`cancelled`. Cancelling it again changes nothing.",
    response_model=Case,
    responses={
        200: json_example("The cancelled case.", EXAMPLE_CANCELLED),
        **merged(CANCEL_PROBLEMS, KEY_PROBLEMS),
    },
)
async def cancel_case(state: State, key: Key, case_id: CaseId) -> Response:
    """End the case, return it."""

    async def work(_: Repeatable | None) -> Answer:
        try:
            case = await state.desk.cancel(case_id)
        except UnknownCase as error:
            raise no_such_case(error) from error
        return Answer(status=HTTPStatus.OK, headers={}, body=case.model_dump_json())

    return _sent(await state.repetitions.once(key, fingerprint_of("cancel", case_id), work))


@acting.get(
    "/cases/{case_id}/events",
    summary="Follow a case as it runs",
    description="Server-sent events, each with its number as `id`, the kind as `event` and JSON as "
    "`data`. The last one is `done`; a finished case is replayed. `Last-Event-ID` goes on after "
    "that event, with 204 where nothing can follow.",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, **EXAMPLE_STREAM}},
        },
        204: {"description": "The case has ended, and its last event is known."},
        **FOLLOW_PROBLEMS,
    },
)
async def follow_case(
    state: State,
    case_id: CaseId,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=2**31 - 1, description="Number of the last event seen.", examples=[3]),
    ] = None,
) -> Response:
    """The events of a case after the last one seen."""
    await asyncio.to_thread(found_case, state, case_id)
    after = last_event_id or 0
    last = await asyncio.to_thread(state.store.last_event, case_id)
    if after > (0 if last is None else last.number):
        raise ApiProblem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Unknown Last-Event-ID",
            f"case {case_id} has not told an event of this number",
        )
    if last is not None and last.name == LAST_EVENT and after == last.number:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    if state.bells.num_listening >= state.settings.max_event_streams:
        raise ApiProblem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Too many event streams",
            f"{state.settings.max_event_streams} are being read; come back later",
        )
    events = follow(
        state.store,
        state.bells,
        case_id,
        after,
        heartbeat_s=state.settings.heartbeat_s,
        stream_s=state.settings.event_stream_s,
    )
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )
