"""Problems attempted by the served second checkpoint, with every call that was told."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from services.local.processes import CommandLines
from services.local.supervisor import Supervisor
from shared.agent.environment import open_problem
from shared.agent.episode import CallMade, EpisodeSettings, run_episode
from shared.agent.opened import OpenedProblem
from shared.blobs import BlobStore
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.problem import AnswerKind
from shared.render import encode_png
from shared.trajectory import SCHEMA_VERSION, Trajectory, TrajectoryGroup
from tests.realvocab.warmup import OPTIONS, QUESTION

IMAGE_SIZES = ((336, 280), (300, 300), (420, 150))
ATTEMPTS_EACH = 6
SETTINGS = EpisodeSettings(max_turns=5, max_turn_tokens=96)


@dataclass(frozen=True)
class RunningStack:
    """Valkey, policy, zoom and cca, ready; workers are started by whoever needs them."""

    supervisor: Supervisor
    lines: CommandLines
    checkpoint: Path

    @property
    def blobs(self) -> BlobStore:
        """Originals and crops."""
        return BlobStore(str(self.lines.paths.blobs))

    def num_restarts(self) -> int:
        """How often any process was started again after a crash."""
        return sum(child.num_restarts for child in self.supervisor.children())


@dataclass(frozen=True)
class Attempts:
    """One problem, the attempts at it, and their calls as they were told."""

    opened: OpenedProblem
    trajectories: list[Trajectory]
    calls: list[CallMade]

    def group(self) -> TrajectoryGroup:
        """As the trainer receives it, but for the rewards."""
        assert self.opened.prompt is not None
        return TrajectoryGroup(
            schema_version=SCHEMA_VERSION,
            group_id="g",
            run="r",
            problem_id="p",
            round=0,
            image=self.opened.image,
            image_size=self.opened.image_size,
            view_size=self.opened.view_size,
            answer_kind=AnswerKind.CHOICE,
            prompt=self.opened.prompt,
            trajectories=self.trajectories,
            consensus=[],
            arm="test",
            rollout_seconds=0.0,
        )


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of nothing, with detail at every scale."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    fine = random.integers(-40, 40, (size[1], size[0], 3))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int) + fine
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


async def play(stack: RunningStack) -> list[Attempts]:
    """Attempt a problem of each image size a few times."""
    policy, zoom = PolicyClient(stack.lines.policy_url), ZoomClient(stack.lines.zoom_url)
    description = await policy.describe()
    played: list[Attempts] = []
    for index, size in enumerate(IMAGE_SIZES):
        stored = await zoom.ingest(encode_png(picture(index, size)))
        opened = await open_problem(
            zoom, description, image=stored.image, question=QUESTION, options=OPTIONS
        )
        calls: list[CallMade] = []
        trajectories = [
            await run_episode(
                policy,
                zoom,
                opened,
                trajectory_id=f"{index}/{attempt}",
                seed=100 * index + attempt,
                settings=SETTINGS,
                on_call=calls.append,
            )
            for attempt in range(ATTEMPTS_EACH)
        ]
        played.append(Attempts(opened, trajectories, calls))
    await policy.aclose()
    await zoom.aclose()
    return played
