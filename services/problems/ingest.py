"""Puts rendered phantoms into the system: images through zoom, the rest into a problem set.

The true boxes go to `lesions.parquet` and nowhere else; the problem itself says nothing of them.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from services.problems.dicom_file import dicom_bytes
from services.problems.hounsfield import FILE_WINDOW
from services.problems.phantoms import OPTIONS, QUESTION, Phantom
from shared.clients.zoom import ZoomClient
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind, Problem, ProblemSetManifest, write_problem_set
from shared.progress import progress
from shared.render import encode_png

_CONCURRENT_UPLOADS = 8


def as_problem(phantom: Phantom, image: str) -> Problem:
    """The problem a phantom poses; `image` is the hash of its picture."""
    return Problem(
        problem_id=phantom.problem_id,
        image=image,
        image_size=ImageSize(*phantom.image.size),
        question=QUESTION,
        options=OPTIONS,
        gold_answer=phantom.gold_answer,
        answer_kind=AnswerKind.CHOICE,
        modality=phantom.modality,
    )


def file_of(phantom: Phantom) -> bytes:
    """What is uploaded: a PNG, or DICOM of a phantom in Hounsfield units."""
    if phantom.hounsfield_hw is None:
        return encode_png(phantom.image)
    return dicom_bytes(phantom.hounsfield_hw, FILE_WINDOW, phantom.problem_id)


async def ingest_phantoms(
    phantoms: Iterable[Phantom], zoom: ZoomClient, on_uploaded: Callable[[int], object]
) -> tuple[list[Problem], list[tuple[str, Box]]]:
    """Upload every picture; the problems in order, and their true boxes. Raises `ZoomError`.

    `on_uploaded` is told how many more are stored, every few of them.
    """
    gate = asyncio.Semaphore(_CONCURRENT_UPLOADS)
    problems: list[Problem] = []
    lesions: list[tuple[str, Box]] = []

    async def upload(phantom: Phantom) -> Problem:
        async with gate:
            stored = await zoom.ingest(file_of(phantom))
        return as_problem(phantom, stored.image)

    for few in _batched(phantoms, 4 * _CONCURRENT_UPLOADS):
        problems += await asyncio.gather(*(upload(phantom) for phantom in few))
        lesions += [(phantom.problem_id, phantom.box) for phantom in few]
        on_uploaded(len(few))
    return problems, lesions


def _batched(phantoms: Iterable[Phantom], size: int) -> Iterable[list[Phantom]]:
    held: list[Phantom] = []
    for phantom in phantoms:
        held.append(phantom)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


async def write_phantom_set(
    folder: Path,
    phantoms: Iterable[Phantom],
    zoom: ZoomClient,
    *,
    num_phantoms: int,
    seed: int,
    source: str,
) -> int:
    """Ingest and write one problem set, with a progress bar; the number of problems in it."""
    with progress(title=folder.name, unit="phantom", total=num_phantoms) as bar:
        problems, lesions = await ingest_phantoms(phantoms, zoom, bar.update)
    manifest = ProblemSetManifest(
        name=folder.name, num_problems=len(problems), seed=seed, source=source
    )
    write_problem_set(folder, manifest, problems, lesions)
    return len(problems)
