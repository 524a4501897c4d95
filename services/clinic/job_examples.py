"""The examples of the jobs in the OpenAPI document."""

from datetime import UTC, datetime
from http import HTTPStatus

from services.clinic.examples import EXAMPLE_CASE
from services.clinic.problem_examples import problems
from shared.api.clinic import CaseStatus
from shared.api.jobs import (
    ItemStatus,
    Job,
    JobCounts,
    JobItem,
    JobPage,
    JobStatus,
    JobSummary,
)

EXAMPLE_JOB_ID = "0d6f3c8e52b94a7f8f1e6a4c9b7d2e30"
_URL = f"/v1/jobs/{EXAMPLE_JOB_ID}"

EXAMPLE_JOB = Job(
    job_id=EXAMPLE_JOB_ID,
    url=_URL,
    status=JobStatus.RUNNING,
    created_at=datetime(2026, 3, 2, 9, 29, 0, tzinfo=UTC),
    num_items=2,
    counts=JobCounts(queued=1, done=1),
    items=[
        JobItem(
            number=1,
            image_number=1,
            image_sha256=EXAMPLE_CASE.image.sha256,
            question=EXAMPLE_CASE.question,
            status=ItemStatus.DONE,
            case_id=EXAMPLE_CASE.case_id,
            case_url=f"/v1/cases/{EXAMPLE_CASE.case_id}",
            case_status=CaseStatus.ANSWERED,
            attempts=1,
        ),
        JobItem(
            number=2,
            image_number=1,
            image_sha256=EXAMPLE_CASE.image.sha256,
            question="Is it on the left?",
            status=ItemStatus.QUEUED,
            attempts=0,
        ),
    ],
)
EXAMPLE_CANCELLED_JOB = EXAMPLE_JOB.model_copy(
    update={
        "status": JobStatus.CANCELLED,
        "finished_at": datetime(2026, 3, 2, 9, 31, 0, tzinfo=UTC),
        "counts": JobCounts(done=1, cancelled=1),
        "items": [
            EXAMPLE_JOB.items[0],
            EXAMPLE_JOB.items[1].model_copy(update={"status": ItemStatus.CANCELLED}),
        ],
    }
)
EXAMPLE_JOB_PAGE = JobPage(
    jobs=[JobSummary(**EXAMPLE_JOB.model_dump(include=set(JobSummary.model_fields)))],
    next_url=f"/v1/jobs?limit=1&before={EXAMPLE_JOB_ID}",
)

UNKNOWN_JOB = problems(
    unknown_job=(HTTPStatus.NOT_FOUND, "No such job", f"no job {EXAMPLE_JOB_ID}")
)
BAD_PAGE = problems(
    bad_limit=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Request does not validate",
        "query.limit: Input should be less than or equal to 100",
    )
)
JOB_PROBLEMS = problems(
    no_form=(HTTPStatus.BAD_REQUEST, "Bad Request", "Missing boundary in multipart."),
    too_large=(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "An image file is too large",
        "image 3 has 70000000 bytes; at most 67108864 are accepted",
    ),
    bad_image=(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Images cannot be used",
        "row 4: Unsupported image: the file is not a PNG, JPEG, WebP, TIFF or DICOM image",
    ),
    bad_rows=(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Questions cannot be asked",
        "row 3: image is neither the name nor the SHA-256 of an uploaded file; "
        "row 7: one choice given; give two or more, or none for an open question",
    ),
    no_queue=(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Jobs are not set up",
        "this clinic has no queue: start it with --redis-url (MEDVR_CLINIC_REDIS_URL), and a "
        "worker with `medvr clinic-worker`",
    ),
)
JOB_CANCEL_PROBLEMS = problems(
    unknown_job=(HTTPStatus.NOT_FOUND, "No such job", f"no job {EXAMPLE_JOB_ID}"),
    ended=(
        HTTPStatus.CONFLICT,
        "The job has ended",
        f"job {EXAMPLE_JOB_ID} is done; only a running job can be cancelled",
    ),
)
