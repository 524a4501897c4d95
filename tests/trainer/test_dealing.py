"""An optimizer batch, dealt to ranks."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.trainer.dealing import deal, total_weight, weigh
from services.trainer.loss import Loss
from services.trainer.model import Policy
from services.trainer.sample import ModelLimits, TrainingSample, build_samples
from services.trainer.tree import num_new_tokens
from tests.trainer.groups import GroupBuilder


@pytest.fixture(scope="module")
def limits(checkpoint: Path) -> ModelLimits:
    return Policy.load(checkpoint, torch.device("cpu")).limits


def group(
    builder: GroupBuilder, limits: ModelLimits, seed: int, zooms: tuple[int, ...]
) -> list[TrainingSample]:
    totals = tuple(float(i % 2) for i in range(len(zooms)))
    return build_samples(builder.group(seed, totals=totals, zooms=zooms), totals, limits)


def cost(samples: list[TrainingSample]) -> int:
    return sum(num_new_tokens(samples))


@given(
    st.lists(
        st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6
    ),
    st.integers(2, 5),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_trajectory_is_dealt_once_with_its_weight_of_the_whole_batch(
    builder: GroupBuilder, limits: ModelLimits, shapes: list[tuple[int, ...]], num_ranks: int
) -> None:
    groups = [group(builder, limits, seed, zooms) for seed, zooms in enumerate(shapes)]
    weighed = weigh(groups, Loss.GRPO, 1)
    assert total_weight(weighed) == pytest.approx(1.0)
    dealt = deal(weighed, num_ranks)
    assert len(dealt) == num_ranks
    given_out = [s for rank in dealt for part in rank for s in part]
    num_trajectories = sum(map(len, groups))
    assert {s.trajectory_id for s in given_out} == {s.trajectory_id for g in groups for s in g}
    assert len(given_out) == num_trajectories
    for sample in given_out:
        expected = 1.0 / (num_trajectories * sample.num_trained_tokens)
        assert sample.token_weight == pytest.approx(expected)


def test_loads_differ_by_no_more_than_one_part(builder: GroupBuilder, limits: ModelLimits) -> None:
    groups = [group(builder, limits, s, (s % 3,) * (1 + s % 4)) for s in range(12)]
    dealt = deal(groups, 3)
    loads = [sum(cost(part) for part in rank) for rank in dealt]
    assert max(loads) - min(loads) <= max(cost(part) for rank in dealt for part in rank)
    assert max(loads) <= 1.34 * sum(loads) / 3  # longest first: at most 4/3 of the best there is


def test_a_group_stays_whole_unless_it_is_more_than_a_fair_share(
    builder: GroupBuilder, limits: ModelLimits
) -> None:
    small = [group(builder, limits, s, (1, 1)) for s in range(4)]
    assert sorted(len(part) for rank in deal(small, 2) for part in rank) == [2, 2, 2, 2]
    (first, second) = deal([group(builder, limits, 9, (1,) * 8)], 2)
    num_first, num_second = (sum(map(len, rank)) for rank in (first, second))
    assert (num_first + num_second, abs(num_first - num_second) <= 2) == (8, True)
