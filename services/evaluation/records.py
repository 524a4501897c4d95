"""The folder of an evaluation: its configuration, and one JSON line per finished problem.

`config.json` is written first and says what is being measured; `records.jsonl` grows by one
complete line per problem, so an interrupted evaluation loses at most the problems in flight, and
a line torn by a kill is dropped when the folder is opened again. Continuing with another
configuration would mix two measurements: that is an error which names what differs.
"""

from pathlib import Path
from typing import Self

import msgspec

from services.evaluation.metrics import ProblemScore, mean_box_area, union_iou
from shared.errors import MedvrError
from shared.geometry import Box, ImageSize
from shared.hits import is_hit
from shared.problem import Problem, ProblemSetManifest
from shared.trajectory import Trajectory

_WRITTEN = ("config.json", "records.jsonl", "report.json", "table.md", "bars.png", "gallery.png")


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


class EvaluationFolder:
    """The files of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records_path = path / "records.jsonl"

    def clear(self) -> None:
        """Remove what an evaluation writes here, and nothing else."""
        for name in _WRITTEN:
            (self.path / name).unlink(missing_ok=True)

    def open(self, config: EvaluationConfig) -> None:
        """Start here, or make sure that what is here was started with the same configuration.

        Raises `EvaluationError` naming every setting that differs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        config_path = self.path / "config.json"
        if not config_path.is_file():
            config_path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
            return
        try:
            found = msgspec.json.decode(config_path.read_bytes(), type=EvaluationConfig)
        except msgspec.MsgspecError as error:
            raise EvaluationError(f"{config_path}: {error}; --fresh starts over") from error
        before, now = msgspec.to_builtins(found), msgspec.to_builtins(config)
        differing = [f"{k} was {before[k]!r}, is {now[k]!r}" for k in now if before[k] != now[k]]
        if differing:
            raise EvaluationError(
                f"{self.path} holds another evaluation: {'; '.join(differing)}. "
                "Choose another --out, or --fresh to start over"
            )

    def read(self) -> list[EvaluationRecord]:
        """The finished problems in the order they finished; drops a torn last line."""
        if not self._records_path.is_file():
            return []
        lines = self._records_path.read_bytes()
        whole = lines[: lines.rfind(b"\n") + 1]
        if len(whole) < len(lines):
            self._records_path.write_bytes(whole)
        try:
            return [msgspec.json.decode(x, type=EvaluationRecord) for x in whole.splitlines()]
        except msgspec.MsgspecError as error:
            raise EvaluationError(f"{self._records_path}: {error}; --fresh starts over") from error

    def append(self, record: EvaluationRecord) -> None:
        """Add a finished problem as one line."""
        with self._records_path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
