"""What a rank that does not lead does: its part of whatever the leader begins, until the end."""

from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from services.trainer.step import Learner, StepAbandoned
from services.trainer.world import Order, RankGone, World


def follow(world: World, learner: Learner) -> None:
    """Take part until the leader says it is the end. Raises `RankGone`."""
    writing: Future[Any] | None = None
    try:
        while (order := world.next_order()) is not Order.END:
            match order:
                case Order.TAKE_STEP:
                    with suppress(StepAbandoned):  # the leader knows: it was asked to stop
                        learner.take_step()
                case Order.SAVE:
                    if writing is not None:
                        writing.result()
                    writing = learner.save()
                case Order.EXPORT:
                    learner.export()
    except RankGone:
        writing = None  # it cannot end any more
        raise
    finally:
        if writing is not None:  # the leader may still wait for this rank's part
            writing.result()
