"""Decoded originals in memory: least recently used out first, each decoded once at a time.

Only the event loop touches the cache; decoding runs in the threads it is given. The blobs are
PNGs that a decoder child or a problem-set job of this system made, and their hash is checked on
reading.
"""

import asyncio
import io
from collections import OrderedDict
from concurrent.futures import Executor
from http import HTTPStatus

from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge

from shared.blobs import BlobStore
from shared.errors import ApiProblem, BlobError

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked right after the header was read

_BYTES_PER_PIXEL = {"L": 1, "RGB": 4}
"""What Pillow uses; also the modes an original may have."""


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
    """`get` an original by hash, from memory or from the blob store."""

    def __init__(
        self,
        blobs: BlobStore,
        executor: Executor,
        *,
        max_bytes: int,
        max_pixels: int,
        registry: CollectorRegistry,
    ) -> None:
        self._blobs = blobs
        self._executor = executor
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._originals: OrderedDict[str, Image.Image] = OrderedDict()
        self._loading: dict[str, asyncio.Future[Image.Image]] = {}
        self._num_bytes = 0
        lookups = Counter(
            "medvr_zoom_originals", "Originals asked for.", ["found"], registry=registry
        )
        self._hits, self._misses = lookups.labels("memory"), lookups.labels("store")
        self._size_gauge = Gauge(
            "medvr_zoom_cache_bytes", "Memory of decoded originals.", registry=registry
        )

    async def get(self, image: str) -> Image.Image:
        """The decoded original; treat it as read-only. Raises `ApiProblem` 404."""
        original = self._originals.get(image)
        if original is not None:
            self._originals.move_to_end(image)
            self._hits.inc()
            return original
        self._misses.inc()
        loading = self._loading.get(image)
        if loading is None:
            loading = asyncio.get_running_loop().run_in_executor(
                self._executor, self._decode, image
            )
            self._loading[image] = loading
            loading.add_done_callback(lambda done: self._keep(image, done))
        return await asyncio.shield(loading)  # one caller's leaving must not fail the others

    def _decode(self, image: str) -> Image.Image:
        original = open_original(self._blobs, image, self._max_pixels)
        try:
            original.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise _no_original(image) from error
        return original

    def _keep(self, image: str, loaded: "asyncio.Future[Image.Image]") -> None:
        del self._loading[image]
        if loaded.cancelled() or loaded.exception() is not None:
            return
        original = loaded.result()
        self._originals[image] = original
        self._num_bytes += _num_bytes(original)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._originals.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)
        self._size_gauge.set(self._num_bytes)


def _num_bytes(image: Image.Image) -> int:
    return image.width * image.height * _BYTES_PER_PIXEL[image.mode]
