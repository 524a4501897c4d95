"""A task to its scored group: open, roll out, score; again after a pause if a service was away.

Every attempt starts the group from nothing, with the same seeds, so under an unchanged policy it
makes the same group. What asking again cannot mend leaves as `RolloutFailed`, with the reason the
dead letter will carry.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from services.rollout.group import roll_out
from services.rollout.metrics import RolloutMetrics
from services.rollout.scoring import arm_name, score_request, scored_group
from services.rollout.settings import RolloutSettings
from services.rollout.task import RolloutTask
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings
from shared.api.policy import PolicyDescription
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.errors import BoundaryError, MedvrError, PolicyError
from shared.service.logs import new_request_id, request_id
from shared.trajectory import TrajectoryGroup
from shared.weights import BASE_RUN

logger = logging.getLogger(__name__)


class RolloutFailed(MedvrError):
    """A group that will not be made: its retries are used up, or the failure is permanent."""


class Services(msgspec.Struct, frozen=True):
    """Clients of the services a rollout talks to; their connections outlive the tasks."""

    policy: PolicyClient
    zoom: ZoomClient
    cca: CcaClient

    @classmethod
    def connect(cls, settings: RolloutSettings) -> "Services":
        """Clients of the configured URLs; connections are opened when first used."""
        return cls(
            policy=PolicyClient(settings.policy_url),
            zoom=ZoomClient(settings.zoom_url),
            cca=CcaClient(settings.cca_url),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self.policy.aclose()
        await self.zoom.aclose()
        await self.cca.aclose()


async def make_group_with_retries(
    task: RolloutTask,
    services: Services,
    settings: RolloutSettings,
    metrics: RolloutMetrics,
    is_wanted: Callable[[], bool],
) -> TrajectoryGroup | None:
    """The scored group; None if it is no longer wanted when it would be tried again.

    Raises `RolloutFailed`.
    """
    request_id.set(new_request_id())
    for attempt in range(1, settings.max_attempts + 1):
        try:
            async with asyncio.timeout(settings.group_timeout_s):
                return await make_group(task, services, settings, metrics)
        except TimeoutError as error:
            raise RolloutFailed(f"took longer than {settings.group_timeout_s:g} s") from error
        except BoundaryError as error:
            if not error.is_transient:
                raise RolloutFailed(str(error)) from error
            if attempt == settings.max_attempts:
                raise RolloutFailed(f"{error} (attempt {attempt} of {attempt})") from error
            metrics.retries.labels(error.service).inc()
            logger.warning("attempt %d failed: %s", attempt, error, extra=_group(task))
        pause_s = min(settings.first_backoff_s * 2 ** (attempt - 1), settings.longest_backoff_s)
        await asyncio.sleep(pause_s)
        if not await asyncio.to_thread(is_wanted):
            return None
    raise AssertionError("max_attempts is at least 1")


async def make_group(
    task: RolloutTask, services: Services, settings: RolloutSettings, metrics: RolloutMetrics
) -> TrajectoryGroup:
    """One attempt. Raises `BoundaryError`."""
    started_s = time.monotonic()
    policy = services.policy.of_group(task.group_id)
    description = await policy.describe()
    check_weights(description, task.run)
    opened = await open_problem(
        services.zoom,
        description,
        image=task.problem.image,
        question=task.problem.question,
        options=task.problem.options,
    )
    branching = settings.branching_settings()
    trajectories = await roll_out(
        policy,
        services.zoom,
        opened,
        group_id=task.group_id,
        episode=EpisodeSettings(
            max_turns=settings.max_turns or description.max_turns,
            max_turn_tokens=settings.max_turn_tokens,
        ),
        branching=branching,
        on_displaced=metrics.displaced.inc,
    )
    reward = settings.reward_settings()
    scores = await services.cca.score(score_request(task.problem, opened, trajectories, reward))
    return scored_group(
        task,
        opened,
        trajectories,
        scores,
        arm=arm_name(branching.arm, reward),
        rollout_seconds=time.monotonic() - started_s,
    )


def check_weights(description: PolicyDescription, run: str) -> None:
    """What is sampled must come from weights of the run, or from the base that it starts with.

    A run may begin while a policy still serves what the run before it ended with; their versions
    are numbers alike, so nobody could tell later. Raises `PolicyError`: the swap is on its way.
    """
    if description.run not in (run, BASE_RUN):
        raise PolicyError(
            f"serves weights of run {description.run!r}, these are groups of {run!r}",
            is_transient=True,
        )


def _group(task: RolloutTask) -> dict[str, str]:
    return {"group_id": task.group_id}
