"""One round: K independent trajectories over one image, and what they say together.

A case is one round; verifying it takes two more, over the image without a region, with the same
question, K and seeds.
"""

import asyncio
import hashlib

import msgspec

from services.clinic.reasoning import size_of, wire_box
from services.clinic.telling import Tell, Teller
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings, run_episode
from shared.agent.opened import OpenedProblem
from shared.api.cca import ConsensusAttempt, ConsensusRequest
from shared.api.clinic import Case
from shared.api.policy import PolicyDescription
from shared.api.zoom import WireImageSize
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.problem import AnswerKind
from shared.trajectory import Trajectory


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


async def open_case(
    neighbours: Neighbours, description: PolicyDescription, case: Case, image: str
) -> OpenedProblem:
    """The question of a case about an image, ready to be attempted."""
    return await open_problem(
        neighbours.zoom, description, image=image, question=case.question, options=case.choices
    )


async def run_trajectories(
    neighbours: Neighbours,
    case: Case,
    description: PolicyDescription,
    opened: OpenedProblem,
    *,
    prefix: str,
    tell: Tell | None,
) -> list[Trajectory]:
    """K independent trajectories, told of as they run if `tell` is given.

    The first failure ends the others and is raised itself.
    """
    policy = neighbours.policy.of_group(case.case_id)
    settings = EpisodeSettings(
        max_turns=description.max_turns,
        max_turn_tokens=case.settings.max_turn_tokens,
        temperature=case.settings.temperature,
    )

    async def attempt(index: int) -> Trajectory:
        trajectory_id = f"{prefix}:{index}"
        teller = None if tell is None else Teller(case, trajectory_id, tell)
        trajectory = await run_episode(
            policy,
            neighbours.zoom,
            opened,
            trajectory_id=trajectory_id,
            seed=trajectory_seed(case.settings.seed, index),
            settings=settings,
            on_call=None if teller is None else teller.on_call,
            on_turn=None if teller is None else teller.on_turn,
        )
        if teller is not None:
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


def consensus_request(
    case: Case, trajectories: list[Trajectory], *, heatmap: bool
) -> ConsensusRequest:
    """What the scorer is asked of a round."""
    size = size_of(case.image)
    return ConsensusRequest(
        answer_kind=answer_kind_of(case),
        options=case.choices,
        image_size=WireImageSize(width_px=size.width_px, height_px=size.height_px),
        attempts=[
            ConsensusAttempt(
                trajectory_id=trajectory.trajectory_id,
                answer=trajectory.answer,
                boxes=[wire_box(box) for box in trajectory.boxes],
            )
            for trajectory in trajectories
        ],
        heatmap=heatmap,
    )
