"""The HTTP face of zoom. Nothing here blocks the event loop: pixels are threads' or children's.

Lifecycle: the lifespan owns the threads; originals and crop answers are remembered in memory,
both bounded, and may be lost at any time: blobs are the only state, and are never deleted by us.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Annotated, TypeVar

from fastapi import FastAPI, Query, Request, Response
from prometheus_client import CollectorRegistry, Counter

from services.zoom.blank import blank
from services.zoom.crop import check_request, render
from services.zoom.formats import (
    CanonicalOriginal,
    DecodeLimits,
    Rendering,
    Window,
    detect_format,
    unreadable,
)
from services.zoom.originals import OriginalCache, open_png
from services.zoom.rendering import asked_rendering, ingest_response
from services.zoom.sandbox import Sandbox
from services.zoom.settings import ZoomSettings
from services.zoom.wire import (
    bad_box_response,
    blob_headers,
    is_unmodified,
    no_grey_levels_response,
)
from shared.api.zoom import (
    BlankRequest,
    BlankResponse,
    CropRequest,
    CropResponse,
    ImageFacts,
    IngestQuery,
    IngestResponse,
)
from shared.blobs import BlobStore
from shared.errors import ApiProblem, BlobError, NoGreyLevels
from shared.geometry import BadBox
from shared.service.app import create_service_app
from shared.service.bodies import json_body, model_response, parse_body, read_body

T = TypeVar("T")

MAX_CROP_REQUEST_BYTES = 16_384
MAX_BLANK_REQUEST_BYTES = 131_072
_NO_BLOB = "0" * 64


class Zoom:
    """The operations behind the routes."""

    def __init__(self, settings: ZoomSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._blobs = BlobStore(settings.blob_url)
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="zoom")
        self._decoding = ThreadPoolExecutor(settings.max_decoders, thread_name_prefix="decode")
        self._sandbox = Sandbox(
            DecodeLimits(
                max_pixels=settings.max_pixels,
                memory_bytes=settings.decode_memory_bytes,
                timeout_s=settings.decode_timeout_s,
            )
        )
        self._originals = OriginalCache(
            self._blobs,
            executor=self._threads,
            decoding=self._decoding,
            sandbox=self._sandbox,
            max_bytes=settings.cache_bytes,
            max_pixels=settings.max_pixels,
            registry=registry,
        )
        self._answers: OrderedDict[bytes, Response] = OrderedDict()
        self._ingests = Counter(
            "medvr_zoom_ingests", "Files taken in.", ["format"], registry=registry
        )
        crops = Counter("medvr_zoom_crops", "Crop requests.", ["outcome"], registry=registry)
        self._blanks = Counter("medvr_zoom_blanks", "Regions blanked.", registry=registry)
        self._remembered = crops.labels("remembered")
        self._rendered = crops.labels("rendered")
        self._bad_boxes = crops.labels("bad_box")

    def close(self) -> None:
        """Let the threads finish, end the decoders."""
        self._threads.shutdown()
        self._decoding.shutdown()
        self._sandbox.close()

    async def check_blobs(self) -> None:
        """Raises if the blob store does not answer."""
        await self._in_thread(partial(self._blobs.has, _NO_BLOB))

    async def ingest(
        self, data: bytes, rendering: Rendering, *, with_identity: bool
    ) -> IngestResponse:
        """Decode in a child, keep the canonical original. Raises `ApiProblem`."""
        if not data:
            raise unreadable("the body is empty; send the file's bytes")
        loop = asyncio.get_running_loop()
        image, original = await loop.run_in_executor(
            self._decoding, self._decode_and_put, data, rendering, with_identity
        )
        self._ingests.labels(original.source_format).inc()
        return ingest_response(image, original)

    def _decode_and_put(
        self, data: bytes, rendering: Rendering, with_identity: bool
    ) -> tuple[str, CanonicalOriginal]:
        original = self._sandbox.decode(
            data, detect_format(data), rendering, with_identity=with_identity
        )
        if original.greys is not None:
            self._blobs.put(original.greys.blob)
        return self._blobs.put(original.png), original

    async def crop(self, body: bytes) -> Response:
        """Answer a crop request, given as its JSON.

        Raises `BadBox`, `NoGreyLevels` or `ApiProblem`.
        """
        answer = self._answers.get(body)
        if answer is not None:
            self._answers.move_to_end(body)
            self._remembered.inc()
            return answer
        request = parse_body(body, CropRequest)
        check_request(request, self._settings.max_pixels)
        asked = request.window
        window = None if asked is None else Window(asked.center, asked.width)
        original = await self._originals.get(request.image, window)
        try:
            crop = await self._in_thread(
                partial(render, request, original, self._blobs, self._settings.max_pixels)
            )
        except BadBox:
            self._bad_boxes.inc()
            raise
        self._rendered.inc()
        answer = model_response(crop)
        self._answers[body] = answer
        if len(self._answers) > self._settings.cache_crops:
            self._answers.popitem(last=False)
        return answer

    async def blank(self, request: BlankRequest) -> BlankResponse:
        """A new original without a region. Raises `ApiProblem`."""
        original = await self._originals.get(request.image)
        blanked = await self._in_thread(
            partial(blank, request, original, self._blobs, self._settings.max_blank_pixels)
        )
        self._blanks.inc()
        return blanked

    async def facts(self, image: str) -> ImageFacts:
        """Size and colours of an original. Raises `ApiProblem` 404."""
        png = await self._png(image)
        original = open_png(png, image, self._settings.max_pixels)
        return ImageFacts(
            image=image,
            width_px=original.width,
            height_px=original.height,
            mode="L" if original.mode == "L" else "RGB",
            num_bytes=len(png),
        )

    async def blob_response(self, name: str, request: Request) -> Response:
        """The PNG, or 304 if the caller has it. Raises `ApiProblem` 404."""
        headers = blob_headers(name)
        if is_unmodified(request, name) and await self._in_thread(partial(self._has, name)):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(await self._png(name), media_type="image/png", headers=headers)

    async def _png(self, name: str) -> bytes:
        png = await self._in_thread(partial(self._get, name))
        if not png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ApiProblem(HTTPStatus.NOT_FOUND, "No such image", f"blob {name} is no image")
        return png

    def _get(self, name: str) -> bytes:
        try:
            return self._blobs.get(name)
        except BlobError as error:
            raise ApiProblem(HTTPStatus.NOT_FOUND, "No such image", str(error)) from error

    def _has(self, name: str) -> bool:
        try:
            return self._blobs.has(name)
        except BlobError:
            return False

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def create_app(settings: ZoomSettings, registry: CollectorRegistry | None = None) -> FastAPI:
    """A fresh zoom app."""
    registry = registry or CollectorRegistry()
    zoom = Zoom(settings, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        yield
        zoom.close()

    app = create_service_app(
        "zoom",
        description="Images in, crops out. Research use only.",
        registry=registry,
        lifespan=lifespan,
        ready_checks={"blobs": zoom.check_blobs},
    )
    add_routes(app, zoom, settings.max_upload_bytes)
    return app


def add_routes(app: FastAPI, zoom: Zoom, max_upload_bytes: int) -> None:
    """`/v1/images`, `/v1/crops` and `/v1/blanks`."""

    async def on_bad_box(_: Request, error: Exception) -> Response:
        assert isinstance(error, BadBox)
        return bad_box_response(error)

    async def on_no_grey_levels(_: Request, error: Exception) -> Response:
        assert isinstance(error, NoGreyLevels)
        return no_grey_levels_response(error)

    app.add_exception_handler(BadBox, on_bad_box)
    app.add_exception_handler(NoGreyLevels, on_no_grey_levels)

    async def ingest(request: Request, query: Annotated[IngestQuery, Query()]) -> IngestResponse:
        rendering = asked_rendering(query)
        body = await read_body(request, max_upload_bytes)
        return await zoom.ingest(body, rendering, with_identity=query.identity)

    async def crop(request: Request) -> Response:
        return await zoom.crop(await read_body(request, MAX_CROP_REQUEST_BYTES))

    async def blank(request: Request) -> Response:
        body = await read_body(request, MAX_BLANK_REQUEST_BYTES)
        return model_response(await zoom.blank(parse_body(body, BlankRequest)))

    async def image(image: str, request: Request) -> Response:
        return await zoom.blob_response(image, request)

    async def facts(image: str) -> ImageFacts:
        return await zoom.facts(image)

    async def crop_png(crop: str, request: Request) -> Response:
        return await zoom.blob_response(crop, request)

    file_body = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    app.post(
        "/v1/images",
        summary="Take in an image file",
        openapi_extra={"requestBody": {"required": True, "content": file_body}},
    )(ingest)
    app.post(
        "/v1/crops",
        summary="Render a region as the model is shown it",
        responses={200: {"model": CropResponse}},
        openapi_extra=json_body(CropRequest),
    )(crop)
    app.post(
        "/v1/blanks",
        summary="An original without a region, filled from its border",
        responses={200: {"model": BlankResponse}},
        openapi_extra=json_body(BlankRequest),
    )(blank)
    app.get("/v1/images/{image}", summary="An original as PNG", response_class=Response)(image)
    app.get("/v1/images/{image}/facts", summary="Size and colours of an original")(facts)
    app.get("/v1/crops/{crop}", summary="A crop as PNG", response_class=Response)(crop_png)
