"""The jobs of the API: many questions at once, each of which becomes a case."""

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi import Path as PathParameter

from services.clinic.desk import utc_now
from services.clinic.headers import Key, Waiting, sent
from services.clinic.idempotency import fingerprint_of
from services.clinic.job_documents import ItemName, JobDocument, StoredItem, StoredJob, UnknownJob
from services.clinic.job_examples import (
    BAD_PAGE,
    EXAMPLE_CANCELLED_JOB,
    EXAMPLE_JOB,
    EXAMPLE_JOB_ID,
    EXAMPLE_JOB_PAGE,
    JOB_CANCEL_PROBLEMS,
    JOB_PROBLEMS,
    UNKNOWN_JOB,
)
from services.clinic.job_form import JobForm, check_form, image_hashes, items_of
from services.clinic.problem_examples import KEY_PROBLEMS, json_example, merged
from services.clinic.state import ClinicState, State
from services.clinic.store import Answer, Repeatable
from services.clinic.submission import RENDERING_FIELDS, asked_rendering, only_fields
from shared.api.clinic import MAX_TRAJECTORIES
from shared.api.jobs import ItemStatus, Job, JobCounts, JobItem, JobPage, JobStatus, JobSummary
from shared.api.zoom import RenderingRequest
from shared.errors import ApiProblem
from shared.service.logs import new_request_id

jobs_router = APIRouter(prefix="/v1", tags=["jobs"])

_FIELDS = ("images", "questions", "question", "choices", "k", "seed", "verify", *RENDERING_FIELDS)
_MANY = ("images", "choices")
_PAGE = 100
_WORK_WAIT_S = 5

JobId = Annotated[str, PathParameter(examples=[EXAMPLE_JOB_ID])]


def _summary(job: StoredJob) -> JobSummary:
    counts = job.counts
    return JobSummary(
        job_id=job.job_id,
        url=f"/v1/jobs/{job.job_id}",
        status=job.status,
        created_at=job.document.created_at,
        finished_at=job.document.finished_at,
        num_items=sum(dict(counts).values()),
        counts=counts,
    )


def _item(item: StoredItem) -> JobItem:
    case = item.document.case
    return JobItem(
        number=item.number,
        image_number=item.document.image_number,
        image_sha256=case.image.sha256,
        question=case.question,
        status=item.status,
        case_id=item.case_id,
        case_url=None if item.case_id is None else f"/v1/cases/{item.case_id}",
        case_status=item.case_status,
        failure=item.document.failure,
        attempts=item.attempts,
    )


def _page(job: StoredJob, items: list[StoredItem], limit: int) -> Job:
    """The job with the first `limit` of these items; one more says that another page follows."""
    shown = items[:limit]
    more = f"/v1/jobs/{job.job_id}?limit={limit}&after={shown[-1].number}" if shown else None
    return Job(
        **dict(_summary(job)),
        items=[_item(item) for item in shown],
        next_url=more if len(items) > limit else None,
    )


def _no_such_job(error: UnknownJob) -> ApiProblem:
    return ApiProblem(HTTPStatus.NOT_FOUND, "No such job", str(error))


def _read(state: ClinicState, job_id: str, after: int, limit: int) -> Job:
    """Raises `ApiProblem` 404."""
    store = state.jobs.store
    try:
        job = store.job(job_id)
    except UnknownJob as error:
        raise _no_such_job(error) from error
    return _page(job, store.items(job_id, after, limit + 1), limit)


async def _only_known_fields(request: Request, state: State) -> None:
    """FastAPI has parsed the form already, so this reads nothing. Raises `ApiProblem`."""
    if not state.jobs.has_queue:
        raise ApiProblem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Jobs are not set up",
            "this clinic has no queue: start it with --redis-url (MEDVR_CLINIC_REDIS_URL), and a "
            "worker with `medvr clinic-worker`",
        )
    only_fields([name for name, _ in (await request.form()).multi_items()], _FIELDS, _MANY)


@jobs_router.post(
    "/jobs",
    status_code=HTTPStatus.ACCEPTED,
    summary="Ask many questions at once",
    description="Either one question of each image, or the questions of a CSV file with the "
    "columns image (name or SHA-256 of an uploaded file), question, choices (| between them, or "
    "the column repeated) and the other fields of this form; what a row leaves out is the form's. "
    "All is checked, and every image ingested, before anything is accepted. File names are not "
    "kept: items go by their numbers. Research use only. Not a medical device.",
    response_model=Job,
    responses={
        202: json_example("The job, which goes on under its `Location`.", EXAMPLE_JOB),
        **merged(JOB_PROBLEMS, KEY_PROBLEMS),
    },
    dependencies=[Depends(_only_known_fields)],
)
async def create_job(
    state: State,
    key: Key,
    rendering: Annotated[RenderingRequest, Depends(asked_rendering)],
    images: Annotated[list[UploadFile], File(description="One file per image, as of a case.")],
    questions: Annotated[UploadFile | None, File(description="CSV file, UTF-8.")] = None,
    question: Annotated[str | None, Form(examples=["What kind of lesion is shown?"])] = None,
    choices: Annotated[
        list[str] | None,
        Form(description="Repeat the field per choice.", examples=[["ring", "cross"]]),
    ] = None,
    k: Annotated[
        int | None,
        Form(
            description=f"Number of trajectories, 1 to {MAX_TRAJECTORIES}, where the row says "
            "none.",
            examples=[5],
        ),
    ] = None,
    seed: Annotated[int | None, Form(description="Where the row says none.", examples=[7])] = None,
    verify: Annotated[bool, Form(description="As of a case; where the row does not say.")] = False,
) -> Response:
    """Check the form, store the job, send for its items."""
    form = JobForm(
        images=images,
        questions=questions,
        question=question,
        choices=choices or [],
        k=k,
        seed=seed,
        verify=verify,
        rendering=rendering,
    )
    check_form(form, state.settings)
    hashes = await image_hashes(images)

    async def work(request: Repeatable | None) -> Answer:
        items = await items_of(form, state.settings, state.jobs.desk, hashes)
        job = StoredJob(
            new_request_id(),
            JobStatus.RUNNING,
            JobDocument(created_at=utc_now()),
            JobCounts(queued=len(items)),
        )
        stored = [
            StoredItem(job.job_id, number, ItemStatus.QUEUED, None, None, 0, item)
            for number, item in enumerate(items[: _PAGE + 1], start=1)
        ]
        answer = Answer(
            status=HTTPStatus.ACCEPTED,
            headers={"location": f"/v1/jobs/{job.job_id}"},
            body=_page(job, stored, _PAGE).model_dump_json(),
        )
        kept = None if request is None else (request, answer)
        await asyncio.to_thread(state.jobs.store.create, job.job_id, job.document, items, kept)
        await state.jobs.announce(job.job_id, len(items))
        return answer

    fingerprint = ""
    if key is not None:
        names = [image.filename for image in images] if questions is not None else []
        asked = [] if questions is None else await image_hashes([questions])
        settings = (k, seed, verify, rendering.model_dump())
        fingerprint = fingerprint_of(
            *("job", hashes, names, asked, question, form.choices), *settings
        )
    return sent(await state.repetitions.once(key, fingerprint, work))


@jobs_router.get(
    "/jobs",
    summary="List jobs, newest first",
    responses={
        200: json_example("A page of jobs.", EXAMPLE_JOB_PAGE),
        **merged(UNKNOWN_JOB, BAD_PAGE),
    },
)
def list_jobs(
    state: State,
    limit: Annotated[int, Query(ge=1, le=_PAGE, examples=[20])] = 20,
    before: Annotated[
        str | None, Query(description="Only jobs older than this one.", examples=[EXAMPLE_JOB_ID])
    ] = None,
) -> JobPage:
    """One page; `next_url` leads to the next."""
    try:
        jobs = state.jobs.store.newest(limit + 1, before)
    except UnknownJob as error:
        raise _no_such_job(error) from error
    shown = jobs[:limit]
    more = f"/v1/jobs?limit={limit}&before={shown[-1].job_id}" if len(jobs) > limit else None
    return JobPage(jobs=[_summary(job) for job in shown], next_url=more)


@jobs_router.get(
    "/jobs/{job_id}",
    summary="Read a job and its items",
    responses={
        200: json_example("The job with a page of its items.", EXAMPLE_JOB),
        **merged(UNKNOWN_JOB, BAD_PAGE),
    },
)
def read_job(
    state: State,
    job_id: JobId,
    limit: Annotated[int, Query(ge=1, le=_PAGE, examples=[_PAGE])] = _PAGE,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Only items after this one.", examples=[100])
    ] = 0,
) -> Job:
    """The job as it stands; `next_url` leads to the next items."""
    return _read(state, job_id, after, limit)


@jobs_router.post(
    "/jobs/{job_id}/cancel",
    summary="Cancel a running job",
    description="Items that wait are dropped and running cases are cancelled; cases that have "
    "ended stay. Cancelling it again changes nothing.",
    response_model=Job,
    responses={
        200: json_example("The cancelled job.", EXAMPLE_CANCELLED_JOB),
        **merged(JOB_CANCEL_PROBLEMS, KEY_PROBLEMS),
    },
)
async def cancel_job(state: State, key: Key, job_id: JobId) -> Response:
    """End the job, return it."""

    async def work(_: Repeatable | None) -> Answer:
        try:
            await state.jobs.cancel(job_id)
        except UnknownJob as error:
            raise _no_such_job(error) from error
        job = await asyncio.to_thread(_read, state, job_id, 0, _PAGE)
        return Answer(status=HTTPStatus.OK, headers={}, body=job.model_dump_json())

    return sent(await state.repetitions.once(key, fingerprint_of("cancel job", job_id), work))


@jobs_router.post("/jobs/{job_id}/items/{number}/work", include_in_schema=False)
async def work_item(
    state: State,
    wait: Waiting,
    job_id: str,
    number: Annotated[int, PathParameter(ge=1, le=2**31 - 1)],
) -> Response:
    """For the workers: see to it that an item is worked on; 202 as long as it has not ended.

    It may be repeated as it is, so it needs no key, and does nothing that would not be done anyway.
    """
    wait_s = _WORK_WAIT_S if wait is None else wait.seconds
    try:
        item = await state.jobs.work(ItemName(job_id, number), wait_s)
    except UnknownJob as error:
        raise _no_such_job(error) from error
    is_open = item.status in (ItemStatus.QUEUED, ItemStatus.RUNNING)
    return Response(
        _item(item).model_dump_json(),
        HTTPStatus.ACCEPTED if is_open else HTTPStatus.OK,
        media_type="application/json",
    )
