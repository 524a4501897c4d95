"""Decoded originals in memory: least recently used out first, each decoded once at a time.

Only the event loop touches the cache; decoding runs in the threads it is given. The blobs are
PNGs that a decoder child or a problem-set job of this system made, and their hash is checked on
reading. An original in another window is an original of its own here: a decoder child shows its
grey levels, and what it answers is kept like the rest.
"""

import asyncio
import io
from collections import OrderedDict
from concurrent.futures import Executor
from http import HTTPStatus

from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.zoom.formats import GREY_CHUNK, KEPT, Rendering, Window
from services.zoom.sandbox import Sandbox
from shared.blobs import BlobStore
from shared.errors import ApiProblem, BlobError, NoGreyLevels

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked right after the header was read

_BYTES_PER_PIXEL = {"L": 1, "RGB": 4}
"""What Pillow uses; also the modes an original may have."""

_Key = tuple[str, Window | None]
"""An original's hash, and the window it is shown in; None: as ingested."""


def open_original(blobs: BlobStore, image: str, max_pixels: int) -> Image.Image:
    """An original, its pixels not yet decoded. Raises `ApiProblem` 404 if it is none."""
    try:
        png = blobs.get(image)
    except BlobError as error:
        raise ApiProblem(HTTPStatus.NOT_FOUND, "No such image", str(error)) from error
    return open_png(png, image, max_pixels)


def open_png(png: bytes, image: str, max_pixels: int) -> Image.Image:
    """As `open_original`, of bytes already read."""
    try:
        original = Image.open(io.BytesIO(png), formats=("PNG",))
    except (OSError, SyntaxError, ValueError) as error:
        raise _no_original(image) from error
    if original.mode not in _BYTES_PER_PIXEL or original.width * original.height > max_pixels:
        raise _no_original(image)
    return original


def _no_original(image: str) -> ApiProblem:
    return ApiProblem(
        HTTPStatus.NOT_FOUND, "No such image", f"blob {image} is no image this service took in"
    )


class OriginalCache:
    """`get` an original by hash, in a window or as ingested, from memory or the blob store."""

    def __init__(
        self,
        blobs: BlobStore,
        *,
        executor: Executor,
        decoding: Executor,
        sandbox: Sandbox,
        max_bytes: int,
        max_pixels: int,
        registry: CollectorRegistry,
    ) -> None:
        """PNGs are decoded in `executor`, grey levels by `sandbox` from `decoding`'s threads."""
        self._blobs = blobs
        self._executor = executor
        self._decoding = decoding
        self._sandbox = sandbox
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._originals: OrderedDict[_Key, Image.Image] = OrderedDict()
        self._loading: dict[_Key, asyncio.Future[Image.Image]] = {}
        self._num_bytes = 0
        lookups = Counter(
            "medvr_zoom_originals", "Originals asked for.", ["found"], registry=registry
        )
        self._hits, self._misses = lookups.labels("memory"), lookups.labels("store")
        self._size_gauge = Gauge(
            "medvr_zoom_cache_bytes", "Memory of decoded originals.", registry=registry
        )

    async def get(self, image: str, window: Window | None = None) -> Image.Image:
        """The decoded original; treat it as read-only.

        Raises `ApiProblem` 404, and `NoGreyLevels` where a window is asked for in vain.
        """
        key = (image, window)
        original = self._originals.get(key)
        if original is not None:
            self._originals.move_to_end(key)
            self._hits.inc()
            return original
        self._misses.inc()
        loading = self._loading.get(key)
        if loading is None:
            loop = asyncio.get_running_loop()
            if window is None:
                loading = loop.run_in_executor(self._executor, self._decode, image)
            else:
                loading = loop.run_in_executor(self._decoding, self._show, image, window)
            self._loading[key] = loading
            loading.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(loading)  # one caller's leaving must not fail the others

    def _decode(self, image: str) -> Image.Image:
        original = open_original(self._blobs, image, self._max_pixels)
        return _loaded(original, image)

    def _show(self, image: str, window: Window) -> Image.Image:
        """The grey levels of an original in a window."""
        greys = open_original(self._blobs, image, self._max_pixels).info.get(GREY_CHUNK)
        if not isinstance(greys, str):
            raise NoGreyLevels("this image was kept without grey levels: no window can be set")
        try:
            blob = self._blobs.get(greys)
        except BlobError as error:
            raise ApiProblem(HTTPStatus.NOT_FOUND, "No such image", str(error)) from error
        shown = self._sandbox.decode(blob, KEPT, Rendering(windows=(window,)))
        return _loaded(open_png(shown.png, image, self._max_pixels), image)

    def _keep(self, key: _Key, loaded: "asyncio.Future[Image.Image]") -> None:
        del self._loading[key]
        if loaded.cancelled() or loaded.exception() is not None:
            return
        original = loaded.result()
        self._originals[key] = original
        self._num_bytes += _num_bytes(original)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._originals.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)
        self._size_gauge.set(self._num_bytes)


def _loaded(original: Image.Image, image: str) -> Image.Image:
    try:
        original.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise _no_original(image) from error
    return original


def _num_bytes(image: Image.Image) -> int:
    return image.width * image.height * _BYTES_PER_PIXEL[image.mode]
