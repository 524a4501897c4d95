"""Runs the agent over the problems that are not done yet: the same loop as rollout and clinic.

One trajectory per problem. A dependency that fails for a moment is asked again; one that stays
down ends the evaluation with its error, and running it again continues. A problem that is
refused for good is recorded as failed and counted, never dropped.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.evaluation.records import EvaluationRecord
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings, run_episode
from shared.api.cca import ScoredAttempt, ScoreRequest
from shared.api.policy import PolicyDescription
from shared.api.zoom import WireBox, WireImageSize
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.errors import BoundaryError
from shared.geometry import BadBox
from shared.problem import Problem
from shared.trajectory import Trajectory

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 15.0


def problem_seed(seed: int, problem_id: str) -> int:
    """Seed of a problem's trajectory: the same whatever the order or the number of workers."""
    digest = hashlib.sha256(f"{seed}:{problem_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@dataclass(frozen=True)
class Agent:
    """The services behind the agent, and how an episode is run."""

    policy: PolicyClient
    zoom: ZoomClient
    cca: CcaClient
    description: PolicyDescription
    episode: EpisodeSettings
    seed: int
    patience_s: float
    """How long a dependency may fail for a moment, as when it is restarted."""

    async def attempt(self, problem: Problem) -> Trajectory:
        """One trajectory on a problem."""
        opened = await open_problem(
            self.zoom,
            self.description,
            image=problem.image,
            question=problem.question,
            options=problem.options,
        )
        return await run_episode(
            self.policy.of_group(problem.problem_id),
            self.zoom,
            opened,
            trajectory_id=problem.problem_id,
            seed=problem_seed(self.seed, problem.problem_id),
            settings=self.episode,
        )

    async def accuracy(self, problem: Problem, trajectory: Trajectory) -> float:
        """R_acc of the trajectory, from the one place that knows."""
        facts = trajectory.format_facts
        attempt = ScoredAttempt(
            trajectory_id=trajectory.trajectory_id,
            answer=trajectory.answer,
            is_well_formed=facts.is_well_formed,
            all_calls_parsed=facts.all_calls_parsed,
            boxes=[WireBox(x1=b.x1, y1=b.y1, x2=b.x2, y2=b.y2) for b in trajectory.boxes],
        )
        size = problem.image_size
        request = ScoreRequest(
            gold_answer=problem.gold_answer,
            answer_kind=problem.answer_kind,
            options=list(problem.options),
            image_size=WireImageSize(width_px=size.width_px, height_px=size.height_px),
            attempts=[attempt],
        )
        return (await self.cca.score(request)).rewards[0].accuracy

    async def work(self, problem: Problem) -> EvaluationRecord:
        """The record of a problem. Raises `BoundaryError` if a dependency stays down."""
        started, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                trajectory = await self.attempt(problem)
                accuracy = await self.accuracy(problem, trajectory)
                break
            except BadBox as error:  # the image itself is too elongated to be shown
                return EvaluationRecord.failed(problem, str(error), time.monotonic() - started)
            except BoundaryError as error:
                seconds = time.monotonic() - started
                if not error.is_transient:
                    return EvaluationRecord.failed(problem, str(error), seconds)
                if seconds > self.patience_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return EvaluationRecord(
            problem_id=problem.problem_id,
            image=problem.image,
            image_size=problem.image_size,
            gold_answer=problem.gold_answer,
            accuracy=accuracy,
            seconds=time.monotonic() - started,
            trajectory=trajectory,
        )


async def run_problems(
    agent: Agent,
    problems: Sequence[Problem],
    *,
    concurrency: int,
    on_record: Callable[[EvaluationRecord], None],
) -> None:
    """Work on all problems, `concurrency` at a time; `on_record` is called as each finishes."""
    waiting: Iterator[Problem] = iter(problems)

    async def worker() -> None:
        for problem in waiting:
            on_record(await agent.work(problem))

    workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, len(problems)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
