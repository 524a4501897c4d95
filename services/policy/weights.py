"""Following a weights channel: verify, pause, load in place, resume; never half of a version.

Sequence of a swap: the new version is verified on disk (hashes, shapes) while the old one serves;
then the engine pauses between two steps and keeps its requests, drops KV and encoder outputs,
loads, is labelled with the new version, and resumes in `finally`. If loading fails the old weights
are loaded again before it resumes; if that fails too the engine is shut down and never resumed,
because nothing may be sampled from mixed weights. So is an engine whose worker hangs in a transfer.

If the trainer offers to send the version (services/policy/offers), its weights are received in the
pause instead of read, and their file is not hashed before. If that fails the folder is verified
and loaded, still in the same pause.
"""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from redis.asyncio import Redis

from services.policy.metrics import PolicyMetrics
from services.policy.offers import EngineStuck, Offers, Seat
from shared.agent.tools import tools_named
from shared.checkpoint import read_tensors
from shared.errors import WeightsError
from shared.transfer import checkpoint_layout
from shared.weights import (
    BASE_RUN,
    VERSION_MANIFEST,
    ChannelPointer,
    PolicyManifest,
    VersionManifest,
    channel_key,
    decode_pointer,
    read_policy_manifest,
    verify_version,
    weights_sha256,
)

if TYPE_CHECKING:
    from services.policy.vllm_adapter import Engine

logger = logging.getLogger(__name__)

_RETRY_REFUSED_S = 30.0


@dataclass(frozen=True, slots=True)
class ServedWeights:
    """What is served now."""

    run: str
    version: int
    path: str
    manifest: PolicyManifest
    sha256: str | None
    """`weights_sha256` of the folder; None for a checkpoint that is named on a hub."""


def _manifest(folder: Path) -> PolicyManifest:
    """Its policy's, which names no tool but ours. Raises `WeightsError`."""
    manifest = read_policy_manifest(folder)
    tools_named(manifest.tools)
    return manifest


def first_weights(model: str) -> ServedWeights:
    """What the server starts with: version 0 of run `base`, or the published version it is."""
    folder = Path(model)
    manifest = _manifest(folder)
    published, sha256 = folder / VERSION_MANIFEST, weights_sha256(folder)
    if not published.is_file():
        return ServedWeights(BASE_RUN, 0, model, manifest, sha256)
    version = msgspec.json.decode(published.read_bytes(), type=VersionManifest)
    return ServedWeights(version.run, version.version, model, manifest, sha256)


def _tensor_shapes(folder: Path) -> Counter[tuple[int, ...]]:
    """How often each shape occurs in a checkpoint, from the safetensors headers alone.

    Names are left out: hub checkpoints and trainer ones may spell the same tensor differently.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_tensors(path).items():
            if name != "lm_head.weight":
                shapes[tuple(tensor["shape"])] += 1
    return shapes


def check_loadable(folder: Path, serving: Path) -> None:
    """Raise `WeightsError` if a checkpoint cannot take the place of the one being served."""
    shapes = _tensor_shapes(folder)
    if not shapes:
        raise WeightsError(f"{folder} holds no safetensors")
    if serving.is_dir() and shapes != _tensor_shapes(serving):
        raise WeightsError(f"{folder} has other tensors than {serving}: not the same model")


class WeightsFollower:
    """Keeps the engine on the version that the channel points at."""

    def __init__(
        self,
        engine: "Engine",
        serving: ServedWeights,
        metrics: PolicyMetrics,
        *,
        channel: str,
        redis_url: str,
        poll_interval_s: float,
        offers: Offers,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._key = channel_key(channel)
        self._redis_url = redis_url
        self._poll_interval_s = poll_interval_s
        self._offers = offers
        self._refused: tuple[ChannelPointer, float] | None = None
        self._is_shut_down = False
        self.serving = serving
        self.is_caught_up = False
        self.waiting_for = f"has not looked at {self._key} yet"
        """Why it has not caught up."""

    async def run(self) -> None:
        """Follow for as long as the engine lives."""
        async with Redis.from_url(self._redis_url) as redis:
            while not self._is_shut_down:
                await self._look(redis)
                await self._offers.listen(self._poll_interval_s)

    async def _look(self, redis: Redis) -> None:
        try:
            value = await redis.get(self._key)
            pointer = None if value is None else decode_pointer(value)
        except Exception as error:  # noqa: BLE001 - whatever it was, the old version serves on
            self._metrics.channel_errors.inc()
            self.waiting_for = f"cannot read {self._key}: {error}"
            logger.warning("cannot read the weights channel: %s", error)
            return
        if pointer is None or self._is_serving(pointer):
            self.is_caught_up = True
        elif not self._was_just_refused(pointer):
            await self._follow(pointer)

    def _is_serving(self, pointer: ChannelPointer) -> bool:
        return (pointer.run, pointer.version) == (self.serving.run, self.serving.version)

    def _was_just_refused(self, pointer: ChannelPointer) -> bool:
        if self._refused is None:
            return False
        refused, at = self._refused
        return refused == pointer and time.monotonic() - at < _RETRY_REFUSED_S

    async def _follow(self, pointer: ChannelPointer) -> None:
        folder = Path(pointer.path)
        where = f"{pointer.run}/{pointer.version}"
        try:
            manifest, seat = await self._prepare(pointer, folder)
            sha256 = weights_sha256(folder)
            new = ServedWeights(pointer.run, pointer.version, str(folder), manifest, sha256)
            await self.swap(new, seat)
        except Exception as error:
            self._refused = (pointer, time.monotonic())
            self.waiting_for = f"version {where} cannot be served: {error}"
            if isinstance(error, WeightsError | OSError | ValueError):
                self._metrics.swaps.labels("refused").inc()
            logger.exception("version %s is not served, %s stays", where, self.serving.version)
        else:
            self._refused = None
            self.is_caught_up = True

    async def _prepare(
        self, pointer: ChannelPointer, folder: Path
    ) -> tuple[PolicyManifest, Seat | None]:
        """The manifest of a version that may be served, and a place in its transfer if any.

        Raises `WeightsError` if it may not.
        """
        offer = await self._offers.offer_of(pointer)
        if offer is not None:
            manifest = await asyncio.to_thread(self._verify, pointer, folder, weights=False)
            if (seat := await self._offers.accept(offer)) is not None:
                return manifest, seat
        return await asyncio.to_thread(self._verify, pointer, folder, weights=True), None

    def _verify(self, pointer: ChannelPointer, folder: Path, *, weights: bool) -> PolicyManifest:
        version = verify_version(folder, weights=weights)
        if (version.run, version.version) != (pointer.run, pointer.version):
            raise WeightsError(
                f"{folder} is {version.run}/{version.version}, "
                f"the channel says {pointer.run}/{pointer.version}"
            )
        check_loadable(folder, Path(self.serving.path))
        return _manifest(folder)

    async def swap(self, new: ServedWeights, seat: Seat | None = None) -> None:
        """Serve `new` from the next step on. On failure the old weights serve on, and it raises."""
        started = time.perf_counter()
        try:
            await self._engine.pause()
            await self._load_or_restore(new, seat)
            self.serving = new
        finally:
            if not self._is_shut_down:
                await self._engine.resume()
        seconds = time.perf_counter() - started
        self._metrics.swap_seconds.observe(seconds)
        self._metrics.swaps.labels("swapped").inc()
        self._metrics.weights_version.set(new.version)
        logger.info("serving %s/%d, swapped in %.3f s", new.run, new.version, seconds)

    async def _load_or_restore(self, new: ServedWeights, seat: Seat | None) -> None:
        try:
            if seat is None or not await self._received(new, seat):
                await self._engine.load(new.path)
            await self._engine.label_weights(new.version)
        except EngineStuck:
            self._shut_down()
            raise
        except Exception:
            self._metrics.swaps.labels("restored").inc()
            try:
                await self._restore()
            except Exception:
                self._shut_down()
                raise
            raise

    async def _received(self, new: ServedWeights, seat: Seat) -> bool:
        """Whether the trainer sent the version. If not, its folder is verified and may be loaded.

        Raises `WeightsError` if it may not.
        """
        try:
            await self._engine.receive(seat, checkpoint_layout(Path(new.path)))
        except EngineStuck:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the folder is there
            self._metrics.transfers.labels("failed").inc()
            logger.warning("version %d is read from its folder: %s", new.version, error)
            await asyncio.to_thread(verify_version, Path(new.path))
            return False
        self._metrics.transfers.labels("received").inc()
        return True

    async def _restore(self) -> None:
        """Load the version being served again; its file was not verified if it was sent."""
        folder = Path(self.serving.path)
        if (folder / VERSION_MANIFEST).is_file():
            await asyncio.to_thread(verify_version, folder)
        await self._engine.load(self.serving.path)
        await self._engine.label_weights(self.serving.version)

    def _shut_down(self) -> None:
        logger.critical("the weights are neither old nor new: shutting the engine down")
        self._is_shut_down, self.is_caught_up = True, False
        self._engine.shutdown()
