"""The real zoom and cca apps around a scripted policy, in process: where a rollout is played."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI
from PIL import Image

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from services.rollout.attempt import Services
from services.rollout.branching import BranchingSettings
from services.rollout.group import roll_out
from services.zoom.app import create_app as create_zoom
from services.zoom.settings import ZoomSettings
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings
from shared.agent.opened import OpenedProblem
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.http import Retries
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import ImageSize
from shared.problem import AnswerKind, Problem
from shared.render import encode_png
from shared.trajectory import ForkOrigin, Trajectory
from tests.rollout.scripted_policy import ScriptedPolicy, scripted_app

IMAGE_SIZE = ImageSize(336, 336)
"""Twice the view: a box of the original has twice the coordinates the policy wrote."""

EPISODE = EpisodeSettings(max_turns=4, max_turn_tokens=200)
ALWAYS = BranchingSettings(group_size=4, base_probability=1.0)
"""Every candidate forks."""
NEVER = BranchingSettings(group_size=4, base_probability=0.0, entropy_gain=1e-9)
"""Candidates exist, but no draw succeeds."""
SURE, UNSURE = 0.1, 1.25
"""Entropies inside a box: below and above that of the words before it."""
BOX = (21, 21, 63, 63)


def store_image(blobs: BlobStore) -> str:
    gradient = Image.linear_gradient("L").resize((IMAGE_SIZE.width_px, IMAGE_SIZE.height_px))
    return blobs.put(encode_png(gradient.convert("RGB")))


def make_problem(image: str, number: int = 0) -> Problem:
    return Problem(
        problem_id=f"p{number}",
        image=image,
        image_size=IMAGE_SIZE,
        question="Which kind of lesion is it?",
        options=("ring", "disc"),
        gold_answer="A",
        answer_kind=AnswerKind.CHOICE,
    )


@dataclass
class Stage:
    """A scripted policy, its clients, and a problem."""

    script: ScriptedPolicy
    services: Services
    problem: Problem
    crops: list[bytes]
    """Bodies of the crop requests that reached zoom."""

    async def open(self) -> OpenedProblem:
        """The problem, opened as a rollout opens it."""
        description = await self.services.policy.describe()
        problem = self.problem
        return await open_problem(
            self.services.zoom,
            description,
            image=problem.image,
            question=problem.question,
            options=problem.options,
        )


@asynccontextmanager
async def set_stage(folder: Path) -> AsyncIterator[Stage]:
    blobs = BlobStore(str(folder))
    script = ScriptedPolicy(blobs)
    once = Retries(max_attempts=1)
    crops: list[bytes] = []

    async def note_crop(request: httpx.Request) -> None:
        crops.append(request.content)

    async with AsyncExitStack() as stack:

        async def client(app: FastAPI) -> httpx.AsyncClient:
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app=app)
            return await stack.enter_async_context(httpx.AsyncClient(transport=transport))

        zoom = await client(create_zoom(ZoomSettings(blob_url=str(folder))))
        zoom.event_hooks["request"].append(note_crop)
        cca = await client(create_cca(CcaSettings()))
        policy = await client(scripted_app(script))
        services = Services(
            policy=PolicyClient("http://policy", policy, retries=once),
            zoom=ZoomClient("http://zoom", zoom, retries=once),
            cca=CcaClient("http://cca", cca, retries=once),
        )
        yield Stage(script, services, make_problem(store_image(blobs)), crops)


async def play(
    stage: Stage,
    branching: BranchingSettings = ALWAYS,
    *,
    group_id: str = "g",
    on_displaced: Callable[[], None] | None = None,
) -> dict[str, Trajectory]:
    trajectories = await roll_out(
        stage.services.policy,
        stage.services.zoom,
        await stage.open(),
        group_id=group_id,
        episode=EPISODE,
        branching=branching,
        on_displaced=on_displaced,
    )
    assert len({t.trajectory_id for t in trajectories}) == len(trajectories)
    return {t.trajectory_id: t for t in trajectories}


def origins(trajectories: dict[str, Trajectory]) -> dict[str, ForkOrigin]:
    return {name: t.origin for name, t in trajectories.items()}
