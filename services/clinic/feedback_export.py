"""`medvr clinic export-feedback`: what reviewers said, as a problem set for the next round.

Of each case the newest feedback counts, whoever gave it: every version was written in sight of the
one before. *agree* takes the case's answer as gold, *corrected* the corrected one (where only the
place was corrected, the case's); *disagree* says no answer and is left out. So are follow-ups: a
problem has one question, and theirs means little without those before it. Training sees image,
question, choices and answer; corrected boxes go to `lesions.parquet`, which only evaluation may
open. Roles and notes stay in the clinic. Images are named by hash and stay where they are.

The folder is whole or not there, and never changed once it is: a run may be reading it. The same
feedback gives the same bytes.
"""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from services.clinic.settings import ClinicSettings
from shared.api.feedback import Feedback, Verdict
from shared.errors import MedvrError
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind, Problem, ProblemSetManifest, write_problem_set

if TYPE_CHECKING:  # what they import takes long to load
    from services.clinic.feedback_store import ReviewedCase
    from shared.blobs import BlobStore

_YES_NO = ("yes", "no")
DISAGREED, NO_IMAGE = "disagreed without a correction", "image gone from the blob store"
FOLLOWS = "asked in the context of an earlier question"


class ExportError(MedvrError):
    """The folder cannot be written; the message says why."""


class Export(msgspec.Struct, frozen=True):
    """What goes into a problem set, and what does not."""

    problems: list[Problem]
    lesions: list[tuple[str, Box]]
    """(problem id, corrected box)."""
    left_out: Counter[str]
    """Cases by reason."""


def exported(reviewed: "Iterable[ReviewedCase]", blobs: "BlobStore") -> Export:
    """The problems that reviewed cases pose, in the order of the cases."""
    export = Export([], [], Counter())
    for one in reviewed:
        case, box = one.case, one.feedback.corrected_box
        if case.follows is not None:
            export.left_out[FOLLOWS] += 1
            continue
        gold = _gold_answer(case.answer, one.feedback)
        if gold is None:
            export.left_out[DISAGREED] += 1
            continue
        if not blobs.has(case.image.sha256):
            export.left_out[NO_IMAGE] += 1
            continue
        problem = Problem(
            problem_id=case.case_id,
            image=case.image.sha256,
            image_size=ImageSize(case.image.width_px, case.image.height_px),
            question=case.question,
            options=tuple(case.choices),
            gold_answer=gold,
            answer_kind=_kind_of(gold, has_choices=bool(case.choices)),
        )
        export.problems.append(problem)
        if box is not None:
            export.lesions.append((case.case_id, Box(box.x1, box.y1, box.x2, box.y2)))
    return export


def _gold_answer(answer: str | None, feedback: Feedback) -> str | None:
    """The right answer as far as it is known; of an open question, yes and no in one spelling."""
    if feedback.verdict is Verdict.DISAGREE:
        return None
    gold = feedback.corrected_answer or answer
    word = (gold or "").strip(" .!").casefold()
    return word if word in _YES_NO else gold


def _kind_of(gold: str, *, has_choices: bool) -> AnswerKind:
    if has_choices:
        return AnswerKind.CHOICE
    return AnswerKind.YES_NO if gold in _YES_NO else AnswerKind.FREE_TEXT


def write_export(folder: Path, export: Export) -> bool:
    """Write a problem set; False if it is there already, byte for byte.

    Raises `ExportError` if the folder holds anything else.
    """
    manifest = ProblemSetManifest(
        name=folder.name,
        num_problems=len(export.problems),
        seed=0,
        source="a clinic's feedback, the newest of each case",
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_problem_set(made, manifest, export.problems, export.lesions)
        made.chmod(0o700)
        if folder.exists():
            if _is_same(folder, made):
                return False
            raise ExportError(
                f"{folder} is there and holds something else; a run may be reading it: give a new "
                "folder"
            )
        os.rename(made, folder)
        return True
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _is_same(folder: Path, made: Path) -> bool:
    if not folder.is_dir():
        return False
    names = sorted(path.name for path in made.iterdir())
    if names != sorted(path.name for path in folder.iterdir()):
        return False
    return filecmp.cmpfiles(folder, made, names, shallow=False)[0] == names


def build_parser() -> argparse.ArgumentParser:
    """The command line; what it does not know is for the clinic's settings."""
    parser = argparse.ArgumentParser(
        prog="medvr clinic export-feedback",
        description="Writes the newest feedback of each case as a problem set. Disagreement "
        "without a correction, and follow-up questions, are left out and counted; corrected boxes "
        "go to lesions.parquet, for evaluation only.",
        epilog="Which clinic: --database and --blob-url, or MEDVR_CLINIC_DATABASE and "
        "MEDVR_CLINIC_BLOB_URL, as for `medvr clinic`. It may be running meanwhile.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a new one")
    return parser


def main(argv: Sequence[str]) -> None:
    """Export and say what was written and left out."""
    arguments, rest = build_parser().parse_known_args(argv)
    settings = ClinicSettings.load(rest)
    from services.clinic.database import must_exist
    from services.clinic.feedback_store import FeedbackStore
    from services.clinic.store import CaseStore
    from shared.blobs import BlobStore
    from shared.service.process import plain_errors

    with plain_errors():
        must_exist(settings.database)
        store = CaseStore(settings.database)
        try:
            reviewed = FeedbackStore(store).newest_of_all()
            export = exported(reviewed, BlobStore(settings.blob_url))
        finally:
            store.close()
        is_new = write_export(arguments.out, export)
    sys.stdout.write(
        f"{arguments.out}: {len(export.problems)} problems, {len(export.lesions)} boxes"
        f"{'' if is_new else ' (unchanged)'}\n"
    )
    for reason, number in sorted(export.left_out.items()):
        sys.stdout.write(f"left out: {number} {reason}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
