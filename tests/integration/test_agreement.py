"""Engine and trainer agree on whole trajectories: images, masks, positions, templates.

The tiny base policy, served by vLLM, attempts real phantoms over several turns with crops; the
trainer then computes the same tokens from the record alone.
"""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from statistics import fmean

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from services.problems.phantoms import OPTIONS, QUESTION, render_phantoms
from services.trainer.images import ImageSource
from services.trainer.model import Policy
from services.trainer.sample import build_samples
from services.zoom.app import create_app
from services.zoom.settings import ZoomSettings
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings, run_episode
from shared.agent.opened import OpenedProblem
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import PixelLimits
from shared.problem import AnswerKind
from shared.render import encode_png, show_region
from shared.trajectory import SCHEMA_VERSION, Trajectory, TrajectoryGroup
from tests.fixtures_policy import RunningPolicy, run_policy_server
from tests.trainer.trees import tree_logprobs

BASE = Path(__file__).parents[2] / "services/trainer/tiny/base"
NUM_PROBLEMS = 4
ATTEMPTS_EACH = 4


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[RunningPolicy]:
    folder = tmp_path_factory.mktemp("agreement")
    with run_policy_server(BASE, folder, free_port()) as running:
        yield running


@pytest.fixture
async def zoom(server: RunningPolicy) -> AsyncIterator[ZoomClient]:
    app = create_app(ZoomSettings(blob_url=server.blob_url))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://zoom") as client:
            yield ZoomClient("http://zoom", client)


async def attempted(
    server: RunningPolicy, zoom: ZoomClient
) -> list[tuple[OpenedProblem, list[Trajectory], Image.Image]]:
    policy = PolicyClient(server.url)
    description = await policy.describe()
    settings = EpisodeSettings(max_turns=4, max_turn_tokens=96)
    attempts = []
    for index, phantom in enumerate(render_phantoms("brain", 11, NUM_PROBLEMS)):
        stored = await zoom.ingest(encode_png(phantom.image))
        opened = await open_problem(
            zoom,
            description,
            image=stored.image,
            question=QUESTION,
            options=list(OPTIONS),
        )
        trajectories = [
            await run_episode(
                policy,
                zoom,
                opened,
                trajectory_id=f"{index}/{attempt}",
                seed=100 * index + attempt,
                settings=settings,
            )
            for attempt in range(ATTEMPTS_EACH)
        ]
        attempts.append((opened, trajectories, phantom.image))
    await policy.aclose()
    return attempts


def group_of(opened: OpenedProblem, trajectories: list[Trajectory]) -> TrajectoryGroup:
    assert opened.prompt is not None
    return TrajectoryGroup(
        schema_version=SCHEMA_VERSION,
        group_id="g",
        run="r",
        problem_id="p",
        round=0,
        image=opened.image,
        image_size=opened.image_size,
        view_size=opened.view_size,
        answer_kind=AnswerKind.CHOICE,
        prompt=opened.prompt,
        trajectories=trajectories,
        consensus=[],
        arm="test",
        rollout_seconds=0.0,
    )


@pytest.mark.timeout(900)
async def test_trainer_and_engine_agree_over_whole_trajectories_and_boxes_are_where_crops_came_from(
    server: RunningPolicy, zoom: ZoomClient
) -> None:
    attempts = await attempted(server, zoom)
    trainer_policy = Policy.load(BASE, torch.device("cpu"))
    images = ImageSource(server.blobs, BASE)
    differences: list[float] = []
    num_crops = 0
    for opened, trajectories, original in attempts:
        group = group_of(opened, trajectories)
        samples = build_samples(group, [0.0] * len(group.trajectories), trainer_policy.limits)
        images.hold(span for sample in samples for span in sample.images)
        with torch.no_grad():
            computed = tree_logprobs(trainer_policy, [samples], images)
        sampled = torch.tensor([x for s in samples for x in s.sampled_logprobs])
        differences += (computed - sampled).abs().tolist()
        num_crops += sum(check_crops(server, t, original) for t in trajectories)
    assert num_crops >= NUM_PROBLEMS * ATTEMPTS_EACH // 2, "too few crops to have tested anything"
    assert fmean(differences) < 1e-3
    assert max(differences) < 2e-2


def check_crops(server: RunningPolicy, trajectory: Trajectory, original: Image.Image) -> int:
    """Each crop shown holds exactly the pixels of its box, enlarged."""
    num_crops = 0
    for turn in trajectory.turns:
        call = turn.call
        if call is None or call.box is None or call.crop is None:
            continue
        shown = Image.open(io.BytesIO(server.blobs.get(call.crop.image)))
        size = call.crop.size
        limits = PixelLimits(size.num_pixels, size.num_pixels)
        expected = show_region(original, call.box, limits)
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))
        num_crops += 1
    return num_crops
