"""Works problems as the clinic works cases: the same casework and prompt, but nothing is stored."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from services.clinic.casework import Standing, Stopwatch, answer_case, features_of
from services.clinic.confidence import CalibrationError, Features
from services.clinic.patience import patiently
from services.clinic.provenance import code_version
from services.clinic.rounds import Neighbours
from shared.api.case_events import CaseEvent
from shared.api.cca import ScoredAttempt, ScoreRequest
from shared.api.clinic import Case, CaseImage, CaseSettings, CaseStatus
from shared.api.zoom import WireImageSize
from shared.errors import BoundaryError
from shared.geometry import BadBox
from shared.problem import Problem


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One problem, worked as a case."""

    problem_id: str
    image: str
    features: Features | None = None
    """None if the trajectories agreed on no answer, or the problem could not be worked."""
    is_right: bool = False
    error: str | None = None
    """Why it could not be worked; counted as unanswered."""


def case_of(problem: Problem, settings: CaseSettings) -> Case:
    """The case that a problem poses; it is never stored."""
    return Case(
        case_id=f"calibration-{problem.problem_id}",
        status=CaseStatus.RUNNING,
        created_at=datetime.now(UTC),
        question=problem.question,
        choices=list(problem.options),
        image=CaseImage(
            url="",
            sha256=problem.image,
            width_px=problem.image_size.width_px,
            height_px=problem.image_size.height_px,
            source_format="png",
        ),
        settings=settings,
    )


def problem_seed(seed: int, problem_id: str) -> int:
    """Seed of a problem's case: the same whatever the order or the number of workers."""
    digest = hashlib.sha256(f"{seed}:{problem_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


class Calibrator:
    """Works problems as the clinic works cases."""

    def __init__(
        self, neighbours: Neighbours, *, num_trajectories: int, max_turn_tokens: int, seed: int
    ) -> None:
        self._neighbours = neighbours
        self._num_trajectories = num_trajectories
        self._max_turn_tokens = max_turn_tokens
        self._seed = seed

    async def case(self, problem: Problem, *, verify: bool = False) -> Case:
        """The case a problem ends in. Raises `BoundaryError`, `BadBox`."""
        settings = CaseSettings(
            num_trajectories=self._num_trajectories,
            seed=problem_seed(self._seed, problem.problem_id),
            temperature=0.0 if self._num_trajectories == 1 else 1.0,
            max_turn_tokens=self._max_turn_tokens,
            verify=verify,
        )
        standing = Standing(None, code_version(""))
        case = case_of(problem, settings)
        return await answer_case(self._neighbours, standing, case, Stopwatch(), _tell_nobody)

    async def is_right(self, problem: Problem, case: Case) -> bool:
        """Whether the case's answer is the right one, from the one place that knows."""
        size = problem.image_size
        attempt = ScoredAttempt(
            trajectory_id=case.case_id,
            answer=case.answer,
            is_well_formed=True,
            all_calls_parsed=True,
        )
        request = ScoreRequest(
            gold_answer=problem.gold_answer,
            answer_kind=problem.answer_kind,
            options=list(problem.options),
            image_size=WireImageSize(width_px=size.width_px, height_px=size.height_px),
            attempts=[attempt],
        )
        return (await self._neighbours.cca.score(request)).rewards[0].accuracy > 0

    async def record(self, problem: Problem, weights_sha256: str) -> CalibrationRecord:
        """The record of a problem. Raises `CalibrationError` if the policy is another one now."""
        case = await self.case(problem)
        made_by = case.provenance
        if made_by is None or made_by.weights_sha256 != weights_sha256:
            raise CalibrationError(
                "the policy changed its weights while it was calibrated; "
                "--fresh starts over with those it serves now"
            )
        features = features_of(case)
        is_right = features is not None and await self.is_right(problem, case)
        return CalibrationRecord(
            problem_id=problem.problem_id, image=problem.image, features=features, is_right=is_right
        )

    async def patient_record(
        self, problem: Problem, weights_sha256: str, patience_s: float
    ) -> CalibrationRecord:
        """As `record`, asking again while a service fails for a moment."""
        try:
            return await patiently(lambda: self.record(problem, weights_sha256), patience_s)
        except (BadBox, BoundaryError) as error:
            if isinstance(error, BoundaryError) and error.is_transient:
                raise
            return CalibrationRecord(
                problem_id=problem.problem_id, image=problem.image, error=str(error)
            )


async def _tell_nobody(_: Sequence[CaseEvent]) -> None:
    """A case of a calibration has no followers."""
