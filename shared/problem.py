"""A problem (image + question + gold answer) and the folder a set of them lives in.

A problem set is a folder: `manifest.json`, `problems.parquet`, and `lesions.parquet` where the
true boxes are known. Images are blobs, named by hash. The lesions are a file of their own because
only evaluation may open them: training sees the image, the question and the gold answer.

pyarrow is imported where files are read or written, because most services need only the words.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shared.errors import MedvrError
from shared.geometry import Box, ImageSize

if TYPE_CHECKING:
    import pyarrow as pa


class AnswerKind(StrEnum):
    """How an answer is matched with the gold answer (METHOD.md, Reward)."""

    CHOICE = "choice"
    YES_NO = "yes_no"
    FREE_TEXT = "free_text"


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question about one image."""

    problem_id: str
    image: str
    """sha256 (hex) of the original in the blob store."""
    image_size: ImageSize
    """Of the original."""
    question: str
    options: tuple[str, ...] = ()
    """Texts of the choices in order A, B, …; empty for an open question."""
    gold_answer: str
    """The letter for CHOICE, `yes`/`no` for YES_NO, else text."""
    answer_kind: AnswerKind
    modality: str = ""


class ProblemSetError(MedvrError):
    """A folder that is not a readable problem set; the message names what is wrong with it."""


class ProblemSetManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What made a problem set: enough to make it again."""

    name: str
    num_problems: int
    seed: int
    source: str
    """Generator and its parameters, or the released files it was imported from."""


def _problem_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("problem_id", pa.string()),
            ("image", pa.string()),
            ("width_px", pa.int32()),
            ("height_px", pa.int32()),
            ("question", pa.string()),
            ("options", pa.list_(pa.string())),
            ("gold_answer", pa.string()),
            ("answer_kind", pa.string()),
            ("modality", pa.string()),
        ]
    )


def _lesion_schema() -> "pa.Schema":
    import pyarrow as pa

    corners = ("x1", "y1", "x2", "y2")
    return pa.schema([("problem_id", pa.string()), *((c, pa.int32()) for c in corners)])


def write_problem_set(
    folder: Path,
    manifest: ProblemSetManifest,
    problems: Sequence[Problem],
    lesions: Iterable[tuple[str, Box]] = (),
) -> None:
    """Write a problem set; `lesions` are (problem_id, true box). The manifest comes last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "problem_id": p.problem_id,
            "image": p.image,
            "width_px": p.image_size.width_px,
            "height_px": p.image_size.height_px,
            "question": p.question,
            "options": list(p.options),
            "gold_answer": p.gold_answer,
            "answer_kind": p.answer_kind.value,
            "modality": p.modality,
        }
        for p in problems
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=_problem_schema()), folder / "problems.parquet"
    )
    boxes = [
        {"problem_id": problem_id, "x1": b.x1, "y1": b.y1, "x2": b.x2, "y2": b.y2}
        for problem_id, b in lesions
    ]
    pq.write_table(pa.Table.from_pylist(boxes, schema=_lesion_schema()), folder / "lesions.parquet")
    (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))


def read_manifest(folder: Path) -> ProblemSetManifest:
    """The manifest of a problem set. Raises `ProblemSetError`."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ProblemSetError(f"{folder} is not a problem set: it has no manifest.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProblemSetManifest)
    except msgspec.MsgspecError as error:
        raise ProblemSetError(f"{path}: {error}") from error


def read_problems(folder: Path) -> list[Problem]:
    """The problems of a set, in file order, without their lesions. Raises `ProblemSetError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_manifest(folder)
    try:
        rows = pq.read_table(folder / "problems.parquet", schema=_problem_schema()).to_pylist()
        problems = [
            Problem(
                problem_id=row["problem_id"],
                image=row["image"],
                image_size=ImageSize(row["width_px"], row["height_px"]),
                question=row["question"],
                options=tuple(row["options"]),
                gold_answer=row["gold_answer"],
                answer_kind=AnswerKind(row["answer_kind"]),
                modality=row["modality"],
            )
            for row in rows
        ]
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ProblemSetError(f"{folder / 'problems.parquet'}: {error}") from error
    if len(problems) != manifest.num_problems:
        raise ProblemSetError(
            f"{folder}: manifest says {manifest.num_problems} problems, file has {len(problems)}"
        )
    return problems


def read_lesions(folder: Path) -> dict[str, list[Box]]:
    """True boxes by problem id; for evaluation only. Raises `ProblemSetError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(folder / "lesions.parquet", schema=_lesion_schema()).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ProblemSetError(f"{folder / 'lesions.parquet'}: {error}") from error
    lesions: dict[str, list[Box]] = {}
    for row in rows:
        box = Box(row["x1"], row["y1"], row["x2"], row["y2"])
        lesions.setdefault(row["problem_id"], []).append(box)
    return lesions
