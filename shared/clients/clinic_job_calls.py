"""The jobs of a clinic, as steps of `clinic_calls`: many questions at once, each becomes a case.

A job is sent whole, with one idempotency key for all its repetitions. There are no events of a job,
so whoever waits looks again and again, more and more rarely. Its items come page by page, in order
of their numbers; a page shows them as they stand when it is read.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from shared.api.jobs import Job, JobPage, JobStatus
from shared.clients.clinic_calls import (
    AskForm,
    Call,
    ImageSource,
    Steps,
    answered,
    decoded,
    form_call,
    found,
    image_bytes,
    keyed,
    polled,
    read,
)
from shared.clients.http import Retries

NamedFile = tuple[str, bytes]

_POLLS = Retries(first_pause_s=0.2, factor=1.5, longest_pause_s=5.0)


def job_path(job_id: str, *parts: str) -> str:
    """The path of a job, or of something of it."""
    return "/".join(["/v1/jobs", *(quote(part, safe="") for part in (job_id, *parts))])


def job_files(
    images: Sequence[ImageSource], questions: ImageSource | None
) -> list[tuple[str, NamedFile]]:
    """The files of a job, read whole. Raises `OSError`.

    The name of a path is sent only with questions, whose rows may go by it; the clinic does not
    keep it. What is not given as a path goes by the SHA-256 of its bytes.
    """
    files = [
        ("images", (_name(image) if questions is not None else "image", image_bytes(image)))
        for image in images
    ]
    if questions is not None:
        files.append(("questions", ("questions.csv", image_bytes(questions))))
    return files


def _name(image: ImageSource) -> str:
    return Path(image).name if isinstance(image, str | PathLike) else "image"


def start(
    files: Sequence[tuple[str, NamedFile]],
    question: str | None,
    form: AskForm,
    *,
    key: str | None,
    retries: Retries,
) -> Steps[Job]:
    """Send a job; the clinic has stored all of it when it answers."""
    fields = [] if question is None else [("question", question)]
    call = form_call("/v1/jobs", fields, form, files)
    response = yield from found(keyed(call, key), retries, None)
    return decoded(response.content, Job)


def job(job_id: str, retries: Retries) -> Steps[Job]:
    """The job with the first page of its items."""
    return read(job_path(job_id), Job, retries)


def items(job_id: str, next_url: str | None, limit: int, retries: Retries) -> Steps[Job]:
    """A page of the items of a job: the first, or the one that another leads to."""
    return read(next_url or f"{job_path(job_id)}?limit={limit}", Job, retries)


def page(next_url: str | None, limit: int, retries: Retries) -> Steps[JobPage]:
    """A page of the jobs: the first, or the one that another leads to."""
    return read(next_url or f"/v1/jobs?limit={limit}", JobPage, retries)


def wait(job_id: str, wait_s: float | None, retries: Retries) -> Steps[Job]:
    """The job once it has ended, or as it stands after `wait_s`."""
    return polled(
        lambda: job(job_id, retries), lambda seen: seen.status is JobStatus.RUNNING, wait_s, _POLLS
    )


def cancel(job_id: str, key: str | None, retries: Retries) -> Steps[Job]:
    """End a running job."""
    call = Call(method="POST", path=job_path(job_id, "cancel"))
    response = yield from answered(keyed(call, key), retries)
    return decoded(response.content, Job)
