# pyright: basic
"""Puts a trainer together from its settings: newest checkpoint or base model, stream, sinks.

One trainer per run: a lock on the run folder refuses a second.
"""

import fcntl
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import redis
import torch
from prometheus_client import CollectorRegistry
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.trainer.checkpoint import (
    CheckpointStore,
    Progress,
    Trained,
    fingerprint,
    refuse_other_settings,
)
from services.trainer.delivery import Delivery
from services.trainer.images import ImageSource
from services.trainer.intake import Intake
from services.trainer.loop import Trainer
from services.trainer.metrics import Recorder
from services.trainer.model import Policy, resolve_checkpoint
from services.trainer.optimizer import build_optimizer
from services.trainer.persistence import Persistence
from services.trainer.publish import Publisher
from services.trainer.settings import TrainerSettings
from services.trainer.sharding import shard
from services.trainer.step import Learner
from services.trainer.transfer import choose_transfer
from services.trainer.world import World
from shared.blobs import BlobStore
from shared.errors import MedvrError
from shared.stream import RunStream

REDIS_TIMEOUT_S = 30.0


class RunLockedError(MedvrError):
    """Another trainer works on this run."""


@contextmanager
def locked_run(folder: Path) -> Generator[None]:
    """Hold the run's lock, which the kernel drops with the process. Raises `RunLockedError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "trainer.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(f"another trainer works on {folder}") from error
        yield


def connect(url: str) -> redis.Redis:
    """A client that does not retry by itself: a repeated read would lose what the first one took.

    `Delivery` waits and drains its pending list instead.
    """
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=REDIS_TIMEOUT_S)


def build_learner(
    settings: TrainerSettings, base: Path, images: ImageSource, world: World
) -> Learner:
    """Policy, reference (only if β > 0) and optimizer from the base checkpoint, on every rank."""
    torch.manual_seed(settings.seed)  # adapters begin alike everywhere
    torch.set_num_threads(settings.threads)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    # Where weights are sharded each shard moves to its card, and the whole never does.
    place = world.device if world.mesh is None else torch.device("cpu")
    policy = Policy.load(base, place, dtype, gradient_checkpointing=settings.gradient_checkpointing)
    if settings.freeze_vision:
        policy.freeze_vision()
    if settings.lora_rank:
        policy.add_adapters(settings.lora_rank, settings.lora_alpha)
    if world.mesh is not None:
        shard(policy, world.mesh, dtype=dtype, cpu_offload=settings.cpu_offload)
    reference = policy if settings.kl_beta > 0 else None
    if reference is not None and not settings.lora_rank:
        reference = Policy.load(base, place, dtype).freeze()
        if world.mesh is not None:
            shard(reference, world.mesh, dtype=dtype, cpu_offload=settings.cpu_offload)
    optimizer = build_optimizer(policy, lr=settings.lr, weight_decay=settings.weight_decay)
    return Learner(policy, reference, optimizer, images, settings, world)


def build_follower(settings: TrainerSettings, world: World) -> Learner:
    """What a rank that does not lead brings, at the newest checkpoint."""
    base = resolve_checkpoint(settings.model)
    learner = build_learner(settings, base, ImageSource(BlobStore(settings.blob_url), base), world)
    if (folder := world.told(None)) is not None:
        learner.restore(folder)
    return learner


def build_trainer(
    settings: TrainerSettings,
    client: redis.Redis,
    registry: CollectorRegistry,
    stop: threading.Event,
    world: World,
) -> Trainer:
    """A trainer at its newest checkpoint. Raises `WeightsError` if that cannot be."""
    base = resolve_checkpoint(settings.model)
    checkpoints = CheckpointStore(settings.run_folder / "checkpoints", settings.keep_checkpoints)
    resumed = checkpoints.newest()
    trained = Trained(
        base=fingerprint(base),
        freeze_vision=settings.freeze_vision,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha if settings.lora_rank else 0,
    )
    progress = Progress(run=settings.run, step=0, cursor=0, fates={}, trained=trained)
    if resumed:
        progress = resumed[0]
        refuse_other_settings(progress, trained)
    publisher = Publisher(
        client,
        base=base,
        root=settings.weights_root,
        run=settings.run,
        channel=settings.weights_channel,
        keep=settings.keep_versions,
        transfer=choose_transfer(settings, client),
    )
    publisher.refuse_reuse(progress.step)
    images = ImageSource(BlobStore(settings.blob_url), base)
    learner = build_learner(settings, base, images, world)
    world.told(resumed[1] if resumed else None)
    if resumed:
        learner.restore(resumed[1])
    recorder = Recorder(registry, settings.run_folder, progress.step)
    stream = RunStream(client, settings.run)

    def announce() -> None:
        stream.announce_bound(settings.max_outstanding)
        publisher.announce()

    delivery = Delivery(
        stream,
        fates=progress.fates,
        cursor=progress.cursor,
        stop=stop,
        on_reopened=announce,
    )
    return Trainer(
        settings,
        progress=progress,
        learner=learner,
        images=images,
        intake=Intake(delivery, images, learner.policy.limits, settings, recorder),
        delivery=delivery,
        persistence=Persistence(learner, checkpoints, publisher),
        publisher=publisher,
        recorder=recorder,
        stop=stop,
    )
