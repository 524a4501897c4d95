# pyright: basic
"""What makes a step last, beside the training: a durable checkpoint, then a published version.

Weights are copied while the training waits; the rest happens behind the next batch, one step at a
time:

    background     checkpoint written, synced, renamed  →  version written, synced, renamed
    training loop  groups of the checkpoint settled     →  channel pointed at the version

`finished` is what the loop asks between packs and groups, so that Redis is talked to by one thread
alone. An error of the background is raised there.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from services.trainer.checkpoint import CheckpointStore, Progress
from services.trainer.publish import Publisher
from services.trainer.step import Learner
from shared.errors import WeightsError
from shared.weights import ChannelPointer


@dataclass(frozen=True, slots=True)
class Lasting:
    """A step that is durable."""

    progress: Progress
    published: ChannelPointer | None
    """The version, if this step is published."""
    seconds_checkpoint: float
    seconds_publish: float
    """In the background."""


class Persistence:
    """At most one step at a time on its way to the disk."""

    def __init__(
        self, learner: Learner, checkpoints: CheckpointStore, publisher: Publisher
    ) -> None:
        self._learner = learner
        self._checkpoints = checkpoints
        self._publisher = publisher
        self._background = ThreadPoolExecutor(1, thread_name_prefix="persistence")
        self._running: Future[Lasting] | None = None

    def begin(self, progress: Progress, *, publish: bool) -> None:
        """Copy what the step made; nothing may be running."""
        assert self._running is None
        writing = self._learner.save(self._checkpoints.begin(progress.step))
        weights = self._learner.export(self._publisher.dtype) if publish else None
        self._running = self._background.submit(self._last, progress, writing, weights)

    def publish_now(self, version: int) -> ChannelPointer:
        """The current weights, which a checkpoint holds or the base is; waits for the disk."""
        return self._publisher.write(self._learner.export(self._publisher.dtype), version)

    def finished(self, *, wait: bool) -> Lasting | None:
        """The step that lasts now, once. None if nothing runs, or still does and is not waited for.

        Raises whatever the background raised: `WeightsError`, `OSError`.
        """
        if self._running is None or not (wait or self._running.done()):
            return None
        running, self._running = self._running, None
        return running.result()

    def close(self) -> None:
        """Let the background end."""
        self._background.shutdown()

    def _last(
        self, progress: Progress, writing: "Future[Any]", weights: dict[str, Tensor] | None
    ) -> Lasting:
        started = time.perf_counter()
        try:
            writing.result()
        except CheckpointException as error:  # not even an Exception
            reasons = "; ".join(sorted({str(e[0]) for e in error.failures.values()}))
            raise WeightsError(f"step {progress.step} could not be saved: {reasons}") from error
        self._checkpoints.commit(progress)
        committed = time.perf_counter()
        published = None
        if weights is not None:
            published = self._publisher.write(weights, progress.step)
        ended = time.perf_counter()
        return Lasting(progress, published, committed - started, ended - committed)
