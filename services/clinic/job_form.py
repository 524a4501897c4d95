"""What a caller may ask at once: the form of `POST /v1/jobs`, checked whole before it is accepted.

Either `question` is asked of every image, or `questions` says which question is asked of which.
First all texts are checked, then all images go through zoom; a mistake anywhere refuses the job
and names the row or the image by its number, because names and questions may tell who the patient
is. Past this point a job is a list of cases that only need to be begun.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import BinaryIO

import msgspec
from fastapi import UploadFile

from services.clinic.desk import CaseDesk
from services.clinic.job_documents import ItemDocument
from services.clinic.questions_file import BadQuestions, QuestionRow, read_questions
from services.clinic.settings import ClinicSettings
from services.clinic.submission import Submission, check_submission
from shared.api.zoom import RenderingRequest
from shared.errors import ApiProblem

MAX_REPORTED = 8
"""Mistakes that are told at once."""
MAX_QUESTIONS_BYTES = 4 * 1024 * 1024
_CONCURRENT_IMAGES = 4
_CHUNK_BYTES = 1024 * 1024


class JobForm(msgspec.Struct, frozen=True, kw_only=True):
    """The fields as they came."""

    images: Sequence[UploadFile]
    questions: UploadFile | None
    question: str | None
    choices: Sequence[str]
    k: int | None
    seed: int | None
    verify: bool
    rendering: RenderingRequest


def _refuse(title: str, detail: str, status: int = HTTPStatus.UNPROCESSABLE_ENTITY) -> ApiProblem:
    return ApiProblem(HTTPStatus(status), title, detail)


def _refuse_all(title: str, mistakes: Sequence[str], status: int) -> ApiProblem:
    told = [*mistakes[:MAX_REPORTED]]
    if len(mistakes) > MAX_REPORTED:
        told.append(f"and {len(mistakes) - MAX_REPORTED} more")
    return _refuse(title, "; ".join(told), status)


def _sha256_of(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


async def image_hashes(images: Sequence[UploadFile]) -> list[str]:
    """SHA-256 of every uploaded file, each left at its beginning."""
    return [await asyncio.to_thread(_sha256_of, image.file) for image in images]


def check_form(form: JobForm, settings: ClinicSettings) -> None:
    """What can be said before any file is read. Raises `ApiProblem`."""
    limit = settings.max_job_items
    if len(form.images) > limit:
        raise _refuse(
            "Too many images", f"{len(form.images)} images given; at most {limit} are accepted"
        )
    for number, image in enumerate(form.images, start=1):
        size = image.size or 0
        if size > settings.max_upload_bytes:
            raise _refuse(
                "An image file is too large",
                f"image {number} has {size} bytes; at most {settings.max_upload_bytes} are "
                "accepted",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
    if (form.question is None) == (form.questions is None):
        raise _refuse(
            "Request does not validate",
            "give either question, which is asked of every image, or questions, a CSV file",
        )
    if form.questions is not None and form.choices:
        raise _refuse(
            "Request does not validate", "with questions, choices are a column of the file"
        )


def _numbers_of(images: Sequence[UploadFile], hashes: Sequence[str]) -> dict[str, int | None]:
    """Number of the image behind every name and hash; None behind a name of several."""
    numbers: dict[str, int | None] = {}
    first: dict[str, int] = {}
    for number, digest in enumerate(hashes, start=1):
        first.setdefault(digest, number)
    for image, digest in zip(images, hashes, strict=True):
        name = (image.filename or "").strip()
        number = first[digest]
        if name:
            numbers[name] = number if numbers.get(name, number) == number else None
    return numbers | dict(first)


async def _rows_of(
    form: JobForm, settings: ClinicSettings, hashes: Sequence[str]
) -> tuple[list[QuestionRow], dict[int, str]]:
    if form.questions is None:
        rows = [
            QuestionRow(
                line=number,
                image_number=number,
                question=form.question or "",
                choices=list(form.choices),
                k=None,
                seed=None,
                verify=None,
                rendering={},
            )
            for number in range(1, len(form.images) + 1)
        ]
        return rows, {}
    if (form.questions.size or 0) > MAX_QUESTIONS_BYTES:
        raise _refuse(
            "The questions are too large",
            f"the file has {form.questions.size} bytes; at most {MAX_QUESTIONS_BYTES} are accepted",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    content = await form.questions.read()
    numbers = _numbers_of(form.images, hashes)
    try:
        return await asyncio.to_thread(read_questions, content, numbers, settings.max_job_items)
    except BadQuestions as error:
        raise _refuse("The questions cannot be read", str(error)) from error


async def items_of(
    form: JobForm, settings: ClinicSettings, desk: CaseDesk, hashes: Sequence[str]
) -> list[ItemDocument]:
    """The items of a job, their images ingested. Raises `ApiProblem`, `ZoomError`."""
    rows, wrong = await _rows_of(form, settings, hashes)
    mistakes = {line: f"row {line}: {what}" for line, what in wrong.items()}
    checks: list[tuple[QuestionRow, Callable[[bytes], Submission]]] = []
    for row in rows:
        check = _check_of(form, settings, row)
        try:
            check(b"only the texts are looked at yet")
        except ApiProblem as error:
            if form.questions is None:  # the same is wrong with all of them
                raise
            mistakes[row.line] = f"row {row.line}: {error.detail}"
        checks.append((row, check))
    if mistakes:
        told = [mistakes[line] for line in sorted(mistakes)]
        raise _refuse_all("Questions cannot be asked", told, HTTPStatus.UNPROCESSABLE_ENTITY)
    unasked = sorted(set(range(1, len(hashes) + 1)) - _asked_images(rows, hashes))
    if unasked:
        told = [f"image {number} is asked nothing" for number in unasked]
        raise _refuse_all("Images without a question", told, HTTPStatus.UNPROCESSABLE_ENTITY)
    return await _ingested(form, desk, checks)


def _asked_images(rows: Sequence[QuestionRow], hashes: Sequence[str]) -> set[int]:
    """Numbers of the images that a row names; files of the same bytes are one."""
    asked = {hashes[row.image_number - 1] for row in rows}
    return {number for number, digest in enumerate(hashes, start=1) if digest in asked}


def _check_of(
    form: JobForm, settings: ClinicSettings, row: QuestionRow
) -> Callable[[bytes], Submission]:
    """Makes the submission of a row once there is its image."""

    def check(image: bytes) -> Submission:
        return check_submission(
            settings,
            image=image,
            media_type=form.images[row.image_number - 1].content_type,
            question=row.question,
            choices=row.choices,
            k=form.k if row.k is None else row.k,
            seed=form.seed if row.seed is None else row.seed,
            verify=form.verify if row.verify is None else row.verify,
            rendering=form.rendering.model_copy(update=row.rendering),
        )

    return check


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


async def _ingested(
    form: JobForm,
    desk: CaseDesk,
    checks: Sequence[tuple[QuestionRow, Callable[[bytes], Submission]]],
) -> list[ItemDocument]:
    """Every row's case, its image ingested; a few at a time, so that few lie in memory."""
    places = asyncio.Semaphore(_CONCURRENT_IMAGES)
    locks = [asyncio.Lock() for _ in form.images]
    refused: dict[int, ApiProblem] = {}

    async def open_one(
        row: QuestionRow, check: Callable[[bytes], Submission]
    ) -> ItemDocument | None:
        index = row.image_number - 1
        async with places:
            if len(refused) > MAX_REPORTED:
                return None
            async with locks[index]:  # one position in the file
                content = await asyncio.to_thread(_content, form.images[index].file)
            try:
                case, _ = await desk.opened(check(content))
            except ApiProblem as error:
                refused[row.line] = error
                return None
            return ItemDocument(image_number=row.image_number, case=case)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(open_one(row, check)) for row, check in checks]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    opened = [task.result() for task in tasks]
    if refused:
        what = "image" if form.questions is None else "row"
        told = [f"{what} {line}: {refused[line].detail}" for line in sorted(refused)]
        status = refused[min(refused)].status
        raise _refuse_all("Images cannot be used", told, status)
    return [item for item in opened if item is not None]
