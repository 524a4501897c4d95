"""The real zoom and cca apps around a scripted policy, in process: where a rollout is played."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI
from PIL import Image

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from services.rollout.attempt import Services
from services.zoom.app import create_app as create_zoom
from services.zoom.settings import ZoomSettings
from shared.agent.environment import OpenedProblem, open_problem
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.http import Retries
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import ImageSize
from shared.problem import AnswerKind, Problem
from shared.render import encode_png
from tests.rollout.scripted_policy import ScriptedPolicy, scripted_app

IMAGE_SIZE = ImageSize(336, 336)
"""Twice the view: a box of the original has twice the coordinates the policy wrote."""


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
