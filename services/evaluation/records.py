"""The folder of an evaluation (`shared.records`): what is measured, and a line per problem."""

from pathlib import Path
from typing import Self

import msgspec

from services.evaluation.metrics import ProblemScore, mean_box_area, union_iou
from shared.errors import MedvrError
from shared.geometry import Box, ImageSize
from shared.hits import is_hit
from shared.problem import Problem, ProblemSetManifest
from shared.records import RecordFolder
from shared.trajectory import Trajectory


class EvaluationError(MedvrError):
    """An evaluation that cannot be done as asked; the message says why and what would."""


class EvaluationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that two evaluations must share to be parts of one."""

    label: str
    problem_set: ProblemSetManifest
    num_problems: int
    model: str
    """Name of the policy, from its manifest."""
    run: str
    """Training run its weights come from."""
    version: int
    """Policy version."""
    temperature: int
    seed: int
    max_turns: int
    max_turn_tokens: int


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One problem, worked on once."""

    problem_id: str
    image: str
    """sha256 of the original."""
    image_size: ImageSize
    gold_answer: str
    accuracy: float
    seconds: float
    trajectory: Trajectory | None
    """None if the problem could not be worked on; `error` says why."""
    error: str | None = None

    @classmethod
    def failed(cls, problem: Problem, error: str, seconds: float) -> Self:
        """A problem that no trajectory could be had for: it counts as wrong and unanswered."""
        return cls(
            problem_id=problem.problem_id,
            image=problem.image,
            image_size=problem.image_size,
            gold_answer=problem.gold_answer,
            accuracy=0.0,
            seconds=seconds,
            trajectory=None,
            error=error,
        )

    def score(self, lesions: list[Box] | None) -> ProblemScore:
        """Its figures; `lesions` is None where the truth is unknown."""
        trajectory = self.trajectory
        boxes = trajectory.boxes if trajectory else []
        facts = trajectory.format_facts if trajectory else None
        is_formed = facts is not None and facts.is_well_formed and facts.all_calls_parsed
        return ProblemScore(
            accuracy=self.accuracy,
            hit=float(is_hit(boxes, lesions, self.image_size)) if lesions else None,
            iou=union_iou(boxes, lesions) if lesions else None,
            box_area=mean_box_area(boxes, self.image_size),
            num_zooms=len(boxes),
            num_turns=len(trajectory.turns) if trajectory else 0,
            answered=float(trajectory is not None and trajectory.answer is not None),
            well_formed=float(is_formed),
        )


class EvaluationFolder(RecordFolder[EvaluationConfig, EvaluationRecord]):
    """The files of one evaluation."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            EvaluationConfig,
            EvaluationRecord,
            job="evaluation",
            error=EvaluationError,
            written=("report.json", "table.md", "bars.png", "gallery.png"),
        )
