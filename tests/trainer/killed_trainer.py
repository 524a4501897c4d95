"""A real trainer that SIGKILLs itself at a chosen moment; run by the tests as a process.

`python -m tests.trainer.killed_trainer <moment> <path> --flags…`. Moments: `step` (between two
packs), `settle` (before any MULTI once `path`, a checkpoint, exists), `announce` (before
the channel key is set once `path`, a published version, exists). Both hooks are parameters of the
trainer: its stop event and its Redis client.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import redis
import torch
from prometheus_client import CollectorRegistry
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.trainer.assembly import build_trainer, locked_run
from services.trainer.settings import TrainerSettings
from services.trainer.world import World

NUM_LOOKS = 4
"""Looks at the stop event before the kill: two while collecting, then between packs."""


def die() -> None:
    """No handler, no cleanup."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingEvent(threading.Event):
    """A stop event that kills at the n-th look."""

    def __init__(self, num_looks: int) -> None:
        super().__init__()
        self._left = num_looks

    def is_set(self) -> bool:
        """Never set; deadly in the end."""
        self._left -= 1
        if self._left == 0:
            die()
        return False


class DyingRedis(redis.Redis):
    """A client that kills before a MULTI or a SET once `path` exists."""

    moment = "step"
    path = Path("/nonexistent")

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """Start a transaction, or die."""
        if self.moment == "settle" and self.path.exists():
            die()
        return super().pipeline(*args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> Any:
        """Set a key, or die."""
        if self.moment == "announce" and self.path.exists():
            die()
        return super().set(*args, **kwargs)


def main(moment: str, path: Path, argv: list[str]) -> None:
    """Train until killed."""
    settings = TrainerSettings.load(argv)
    client = DyingRedis.from_url(settings.redis_url, retry=Retry(NoBackoff(), 0))
    client.moment, client.path = moment, path
    stop = DyingEvent(NUM_LOOKS) if moment == "step" else threading.Event()
    with locked_run(settings.run_folder):
        world = World(torch.device("cpu"))
        build_trainer(settings, client, CollectorRegistry(), stop, world).run()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
