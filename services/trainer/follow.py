"""What a rank that does not lead does: its part of whatever the leader begins, until the end."""

from concurrent.futures import Future
from typing import Any

from services.trainer.step import Learner, StepAbandoned
from services.trainer.world import Order, World


def follow(world: World, learner: Learner) -> None:
    """Take part until the leader says it is the end. Raises `LeaderGone`."""
    writing: Future[Any] | None = None
    while (order := world.next_order()) is not Order.END:
        match order:
            case Order.TAKE_STEP:
                try:
                    learner.take_step()
                except StepAbandoned:
                    continue  # the leader knows: it was asked to stop
            case Order.SAVE:
                if writing is not None:
                    writing.result()
                writing = learner.save()
            case Order.EXPORT:
                learner.export()
    if writing is not None:
        writing.result()
