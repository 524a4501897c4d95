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

from services.trainer.checkpoint import CheckpointStore, Progress
from services.trainer.delivery import Delivery
from services.trainer.images import ImageSource
from services.trainer.intake import Intake
from services.trainer.loop import Trainer
from services.trainer.metrics import Recorder
from services.trainer.model import Policy, resolve_checkpoint
from services.trainer.optimizer import build_optimizer
from services.trainer.publish import Publisher
from services.trainer.settings import TrainerSettings
from services.trainer.step import Learner
from services.trainer.transfer import choose_transfer
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


def build_learner(settings: TrainerSettings, base: Path, images: ImageSource) -> Learner:
    """Policy, reference (only if β > 0) and optimizer from the base checkpoint."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    policy = Policy.load(
        base, device, dtype, gradient_checkpointing=settings.gradient_checkpointing
    )
    if settings.freeze_vision:
        policy.freeze_vision()
    reference = Policy.load(base, device, dtype).freeze() if settings.kl_beta > 0 else None
    optimizer = build_optimizer(policy, lr=settings.lr, weight_decay=settings.weight_decay)
    return Learner(policy, reference, optimizer, images, settings)


def build_trainer(
    settings: TrainerSettings,
    client: redis.Redis,
    registry: CollectorRegistry,
    stop: threading.Event,
) -> Trainer:
    """A trainer at its newest checkpoint. Raises `WeightsError` if that cannot be."""
    base = resolve_checkpoint(settings.model)
    checkpoints = CheckpointStore(settings.run_folder / "checkpoints", settings.keep_checkpoints)
    resumed = checkpoints.newest()
    progress = resumed[0] if resumed else Progress(run=settings.run, step=0, cursor=0, fates={})
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
    learner = build_learner(settings, base, images)
    if resumed:
        learner.restore(checkpoints.load_state(resumed[1]))
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
        step=progress.step,
        learner=learner,
        images=images,
        intake=Intake(delivery, images, learner.policy.limits, settings, recorder),
        delivery=delivery,
        checkpoints=checkpoints,
        publisher=publisher,
        recorder=recorder,
        stop=stop,
    )
