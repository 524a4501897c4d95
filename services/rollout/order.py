"""The order in which problems are handed out: a function of seed and position, so resumable.

Position n (from 0) is problem perm_r[n mod N] of round r = n div N, where perm_r is the
permutation of the N problems that seed and round give.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

from services.rollout.task import RolloutTask
from shared.problem import Problem
from shared.trajectory import make_group_id


@lru_cache(maxsize=4)
def permutation(seed: int, round_index: int, num_problems: int) -> tuple[int, ...]:
    """Order of the problems in one round."""
    order = list(range(num_problems))
    random.Random(f"order:{seed}:{round_index}").shuffle(order)
    return tuple(order)


class ProblemOrder:
    """The endless list of tasks that a problem set and a seed make for a run."""

    def __init__(self, run: str, problems: Sequence[Problem], seed: int) -> None:
        if not problems:
            raise ValueError("a problem set must have at least one problem")
        self._run = run
        self._problems = problems
        self._seed = seed

    def round_at(self, position: int) -> int:
        """Index of the pass over the problem set."""
        return position // len(self._problems)

    def task_at(self, position: int) -> RolloutTask:
        """The task at a position, from 0."""
        round_index, place = divmod(position, len(self._problems))
        problem = self._problems[permutation(self._seed, round_index, len(self._problems))[place]]
        return RolloutTask(
            group_id=make_group_id(self._run, round_index, problem.problem_id),
            run=self._run,
            round=round_index,
            position=position,
            problem=problem,
        )
