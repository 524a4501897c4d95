"""One case, from its stored question to its answer: METHOD.md, At inference.

`view → K trajectories side by side → consensus → the case`. Nothing is stored here but the
heatmap's bytes; the same case may be worked again after a crash and costs only time.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

import msgspec

from services.clinic.reasoning import (
    attempt_of,
    consensus_of,
    evidence_of,
    option_text,
    turns_of,
    versions_of,
    wire_box,
)
from services.clinic.telling import Tell, Teller
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings, run_episode
from shared.agent.opened import OpenedProblem
from shared.api.case_events import StartedEvent
from shared.api.cca import (
    ConsensusAttempt,
    ConsensusOutcome,
    ConsensusRequest,
    ConsensusResponse,
    Heatmap,
)
from shared.api.clinic import AbstentionReason, Case, CasePolicy, CaseStatus, CaseTimings
from shared.api.policy import PolicyDescription
from shared.api.zoom import WireImageSize
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.errors import CcaError
from shared.geometry import ImageSize
from shared.problem import AnswerKind
from shared.trajectory import Trajectory

Stage = Literal["ingest_s", "waiting_s", "view_s", "trajectories_s", "consensus_s"]

_ABSTENTIONS = {
    ConsensusOutcome.TIED: AbstentionReason.TIED,
    ConsensusOutcome.UNANSWERED: AbstentionReason.UNANSWERED,
    ConsensusOutcome.UNCOMMITTED: AbstentionReason.UNCOMMITTED,
}


class Stopwatch:
    """Seconds per stage of one case; a stage that fails is still measured."""

    def __init__(
        self, before: CaseTimings | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        if before is not None:
            self._seconds["ingest_s"] = before.ingest_s

    @contextmanager
    def stage(self, name: Stage) -> Generator[None, None, None]:
        """Measure a stage."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._clock() - started

    @property
    def timings(self) -> CaseTimings:
        """What was measured so far."""
        return CaseTimings(**self._seconds, total_s=sum(self._seconds.values()))


class Neighbours(msgspec.Struct, frozen=True):
    """The services a case needs, and the store its crops lie in."""

    policy: PolicyClient
    zoom: ZoomClient
    cca: CcaClient
    blobs: BlobStore


def trajectory_seed(case_seed: int, index: int) -> int:
    """Seed of one of the K trajectories: independent for every index, the same on every run."""
    digest = hashlib.sha256(f"{case_seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def answer_kind_of(case: Case) -> AnswerKind:
    """How answers are compared: by letter where there are choices, else as normalised text."""
    return AnswerKind.CHOICE if case.choices else AnswerKind.FREE_TEXT


async def answer_case(neighbours: Neighbours, case: Case, watch: Stopwatch, tell: Tell) -> Case:
    """The case answered or abstained, telling its course. Raises the `BoundaryError` it met."""
    await tell([StartedEvent(num_trajectories=case.settings.num_trajectories)])
    with watch.stage("view_s"):
        policy_client = neighbours.policy.of_group(case.case_id)
        description = await policy_client.describe()
        opened = await open_problem(
            neighbours.zoom,
            description,
            image=case.image.sha256,
            question=case.question,
            options=case.choices,
        )
    with watch.stage("trajectories_s"):
        trajectories = await _run_trajectories(
            policy_client, neighbours.zoom, case, description, opened, tell
        )
    with watch.stage("consensus_s"):
        outcome = await neighbours.cca.consensus(_consensus_request(case, trajectories))
        heatmap = await asyncio.to_thread(_store_heatmap, neighbours.blobs, outcome.heatmap)
    policy = CasePolicy(
        model=description.model,
        run=description.run,
        versions=versions_of(trajectories),
        view_width_px=opened.view_size.width_px,
        view_height_px=opened.view_size.height_px,
        max_turns=description.max_turns,
    )
    return _concluded(case, trajectories, outcome, heatmap).model_copy(update={"policy": policy})


async def _run_trajectories(
    policy: PolicyClient,
    zoom: ZoomClient,
    case: Case,
    description: PolicyDescription,
    opened: OpenedProblem,
    tell: Tell,
) -> list[Trajectory]:
    """K independent trajectories; the first failure ends the others and is raised itself."""
    settings = EpisodeSettings(
        max_turns=description.max_turns,
        max_turn_tokens=case.settings.max_turn_tokens,
        temperature=case.settings.temperature,
    )

    async def attempt(index: int) -> Trajectory:
        trajectory_id = f"{case.case_id}:{index}"
        teller = Teller(case, trajectory_id, tell)
        trajectory = await run_episode(
            policy,
            zoom,
            opened,
            trajectory_id=trajectory_id,
            seed=trajectory_seed(case.settings.seed, index),
            settings=settings,
            on_call=teller.on_call,
            on_turn=teller.on_turn,
        )
        await teller.on_end(trajectory)
        return trajectory

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(attempt(index)) for index in range(case.settings.num_trajectories)
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


def _consensus_request(case: Case, trajectories: list[Trajectory]) -> ConsensusRequest:
    return ConsensusRequest(
        answer_kind=answer_kind_of(case),
        options=case.choices,
        image_size=WireImageSize(width_px=case.image.width_px, height_px=case.image.height_px),
        attempts=[
            ConsensusAttempt(
                trajectory_id=trajectory.trajectory_id,
                answer=trajectory.answer,
                boxes=[wire_box(box) for box in trajectory.boxes],
            )
            for trajectory in trajectories
        ],
        heatmap=True,
    )


def _store_heatmap(blobs: BlobStore, heatmap: Heatmap | None) -> str | None:
    """The heatmap's name in the blob store; None if there is none or it is all zero."""
    if heatmap is None or heatmap.max_count == 0:
        return None
    return blobs.put(base64.b64decode(heatmap.png_base64, validate=True))


def _concluded(
    case: Case,
    trajectories: list[Trajectory],
    outcome: ConsensusResponse,
    heatmap_sha256: str | None,
) -> Case:
    """The case with everything the trajectories and the scorer said."""
    size = ImageSize(case.image.width_px, case.image.height_px)
    concluded = case.model_copy(
        update={
            "attempts": [attempt_of(trajectory) for trajectory in trajectories],
            "agreement": outcome.agreement,
            "votes": outcome.votes,
            "consensus": consensus_of(
                case.case_id, outcome.consensus, outcome.heatmap, heatmap_sha256, size
            ),
        }
    )
    if outcome.outcome is not ConsensusOutcome.AGREED:
        abstained = {
            "status": CaseStatus.ABSTAINED,
            "abstention": _ABSTENTIONS[outcome.outcome],
        }
        return concluded.model_copy(update=abstained)
    return _answered(concluded, _shown(trajectories, outcome), outcome, size)


def _shown(trajectories: list[Trajectory], outcome: ConsensusResponse) -> Trajectory:
    for trajectory in trajectories:
        if trajectory.trajectory_id == outcome.shown_trajectory_id:
            return trajectory
    raise CcaError("the consensus names a trajectory it was not given", is_transient=False)


def _answered(case: Case, shown: Trajectory, outcome: ConsensusResponse, size: ImageSize) -> Case:
    evidence = evidence_of(case.case_id, shown, size)
    letter = outcome.answer or ""
    chosen = option_text(letter, case.choices)
    answered = {
        "status": CaseStatus.ANSWERED,
        "answer": shown.answer if chosen is None else letter.upper(),
        "option_text": chosen,
        "shown_trajectory_id": shown.trajectory_id,
        "turns": turns_of(shown, evidence),
        "evidence": evidence,
    }
    return case.model_copy(update=answered)
