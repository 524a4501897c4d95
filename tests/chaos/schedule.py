"""Which blow falls when: a function of the seed, so that a run can be repeated.

In every round each process is killed once, in a random order; between two blows lies a random
pause. Redis is emptied once, at a random place of the first round. `latest_step` keeps a fast
machine from finishing the run before the last blow: whichever comes first, the end of the pause
or that step, lets the blow fall.
"""

import random
from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """What is struck; but for the last, names of processes."""

    FEEDER = "feeder"
    ROLLOUT = "rollout"
    ZOOM = "zoom"
    CCA = "cca"
    POLICY = "policy"
    TRAINER = "trainer"
    CLINIC = "clinic"
    VALKEY = "valkey"
    EMPTIED = "emptied redis"
    """FLUSHALL."""


PROCESSES = tuple(target for target in Target if target is not Target.EMPTIED)
_LONGEST_PAUSE = 3.0
"""In means."""


@dataclass(frozen=True)
class Blow:
    """SIGKILL of a process, or FLUSHALL."""

    target: Target
    pause_s: float
    """After the blow before it."""
    latest_step: int
    """Falls at once when the run has come to this step."""


def schedule(seed: int, *, rounds: int, max_steps: int, mean_pause_s: float) -> list[Blow]:
    """`rounds` kills of every process and one FLUSHALL, before the last two steps of the run."""
    rng = random.Random(f"blows:{seed}")
    targets: list[Target] = []
    for index in range(rounds):
        order = list(PROCESSES)
        rng.shuffle(order)
        if index == 0:
            order.insert(rng.randrange(1, len(order)), Target.EMPTIED)
        targets += order
    last_step = max_steps - 2
    return [
        Blow(
            target,
            pause_s=min(rng.expovariate(1 / mean_pause_s), _LONGEST_PAUSE * mean_pause_s),
            latest_step=max(1, last_step * (number + 1) // len(targets)),
        )
        for number, target in enumerate(targets)
    ]
