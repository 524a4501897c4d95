"""A real zoom app with its decoders, over an in-process transport."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from services.zoom.app import create_app
from services.zoom.formats import DecodeLimits
from services.zoom.sandbox import Sandbox
from services.zoom.settings import ZoomSettings
from shared.clients.zoom import ZoomClient


@pytest.fixture(scope="session")
def zoom_settings(tmp_path_factory: pytest.TempPathFactory) -> ZoomSettings:
    return ZoomSettings(blob_url=str(tmp_path_factory.mktemp("zoom") / "blobs"))


@pytest.fixture(scope="session")
def zoom_app(zoom_settings: ZoomSettings) -> Iterator[FastAPI]:
    """One app for all tests that need no settings of their own: its decoder starts once."""
    app = create_app(zoom_settings)
    lifespan = app.router.lifespan_context(app)
    with asyncio.Runner() as runner:
        runner.run(lifespan.__aenter__())
        yield app
        runner.run(lifespan.__aexit__(None, None, None))


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://zoom")


@asynccontextmanager
async def running(settings: ZoomSettings) -> AsyncIterator[httpx.AsyncClient]:
    """An app of one's own within its lifespan, and an HTTP client of it."""
    app = create_app(settings)
    async with app.router.lifespan_context(app), client_of(app) as http:
        yield http


@pytest.fixture
async def http(zoom_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(zoom_app) as client:
        yield client


@pytest.fixture
def run_zoom() -> Callable[[ZoomSettings], object]:
    """`async with run_zoom(settings) as http`: for tests that need settings of their own."""
    return running


@pytest.fixture
def zoom(http: httpx.AsyncClient) -> ZoomClient:
    return ZoomClient("http://zoom", http)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One decoder for all tests that look at decoding alone."""
    sandbox = Sandbox(DecodeLimits(max_pixels=4_000_000, memory_bytes=2**29, timeout_s=20.0))
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """`encoded(array_or_image, "PNG", **save_options)` → a file's bytes."""

    def encode(picture: np.ndarray | Image.Image, file_format: str, **options: object) -> bytes:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        buffer = io.BytesIO()
        image.save(buffer, format=file_format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def pixels() -> Callable[[bytes], np.ndarray]:
    """PNG bytes → array."""
    return lambda png: np.asarray(Image.open(io.BytesIO(png)))
