"""The case API's acting side: ask, follow, cancel. Every POST may carry an idempotency key."""

import asyncio
from hashlib import sha256
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Header, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from services.clinic.examples import (
    EXAMPLE_CANCELLED,
    EXAMPLE_CASE,
    EXAMPLE_RUNNING,
    EXAMPLE_STREAM,
)
from services.clinic.following import LAST_EVENT, follow
from services.clinic.headers import Key, Waiting, sent, waited
from services.clinic.idempotency import fingerprint_of
from services.clinic.problem_examples import (
    CANCEL_PROBLEMS,
    FOLLOW_PROBLEMS,
    KEY_PROBLEMS,
    SUBMISSION_PROBLEMS,
    json_example,
    merged,
)
from services.clinic.showing import as_stored, hides_words, shown, shown_event
from services.clinic.state import CaseId, Show, State, found_case, no_such_case
from services.clinic.store import Answer, Repeatable, UnknownCase
from services.clinic.submission import (
    RENDERING_FIELDS,
    asked_rendering,
    check_submission,
    only_fields,
)
from shared.api.clinic import MAX_TRAJECTORIES, Case
from shared.api.zoom import RenderingRequest
from shared.errors import ApiProblem

acting = APIRouter(prefix="/v1", tags=["cases"])

_FIELDS = ("image", "question", "choices", "k", "seed", "verify", *RENDERING_FIELDS)


async def _only_known_fields(request: Request) -> None:
    """FastAPI has parsed the form already, so this reads nothing. Raises `ApiProblem`."""
    only_fields([name for name, _ in (await request.form()).multi_items()], _FIELDS)


@acting.post(
    "/cases",
    status_code=HTTPStatus.CREATED,
    summary="Ask a question about an image",
    description="Waits for the end of the case, or as long as `Prefer: wait` says. 201 also for a "
    "case that abstained or failed: its `status` says so, and it stays readable under its id. "
    "An answer that is too unsure or unsupported is withheld (`is_withheld`). "
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
    wait: Waiting,
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
    verify: Annotated[
        bool,
        Form(
            description="Ask twice more, with the evidence blanked and with as much area elsewhere "
            "blanked: `verification` says whether the answer changed. Takes three times as long."
        ),
    ] = False,
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
        verify=verify,
        rendering=rendering,
    )

    async def work(request: Repeatable | None) -> Answer:
        wait_s = None if wait is None else wait.seconds
        case = await state.desk.answer(submission, wait_s=wait_s, request=request)
        return waited(case, wait, state.metrics)

    fingerprint = ""
    if key is not None:
        image_sha256 = (await asyncio.to_thread(sha256, submission.image)).hexdigest()
        fingerprint = fingerprint_of(
            *("ask", image_sha256, image.content_type, question, choices, k, seed),
            rendering.model_dump(),
            *(["verify"] if verify else []),
        )
    return sent(await state.repetitions.once(key, fingerprint, work))


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
        return Answer(status=HTTPStatus.OK, headers={}, body=shown(case).model_dump_json())

    return sent(await state.repetitions.once(key, fingerprint_of("cancel", case_id), work))


@acting.get(
    "/cases/{case_id}/events",
    summary="Follow a case as it runs",
    description="Server-sent events, each with its number as `id`, the kind as `event` and JSON as "
    "`data`. The last one is `done`; a finished case is replayed. `Last-Event-ID` goes on after "
    "that event, with 204 where nothing can follow. Where the answer is withheld, or may still be, "
    "thoughts and answers are left out unless `show=withheld` asks for them.",
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
    show: Show = None,
) -> Response:
    """The events of a case after the last one seen."""
    case = await asyncio.to_thread(found_case, state, case_id)
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
    is_hidden = hides_words(case)
    if is_hidden and show is not None:
        state.metrics.withheld_shown.labels("events").inc()
    events = follow(
        state.store,
        state.bells,
        case_id,
        after,
        present=shown_event if is_hidden and show is None else as_stored,
        heartbeat_s=state.settings.heartbeat_s,
        stream_s=state.settings.event_stream_s,
    )
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )
