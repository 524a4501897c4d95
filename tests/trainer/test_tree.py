"""Trees of tokens: how they lie, what they save, and that the gradient is that of one by one."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.trainer.batch import collate, collect_images
from services.trainer.dealing import weigh
from services.trainer.images import ImageSource
from services.trainer.loss import ClipRange, Loss, Objective, token_loss
from services.trainer.model import Policy
from services.trainer.packing import Bundle, fill, pack_groups, split
from services.trainer.sample import TrainingSample, build_samples
from services.trainer.tree import build_tree, num_new_tokens, rope_positions
from shared.errors import PayloadError
from shared.trajectory import Trajectory, TrajectoryGroup
from tests.trainer import oracle
from tests.trainer.groups import GroupBuilder

CPU = torch.device("cpu")
CLIP = ClipRange(0.2, 0.28)


@dataclass(frozen=True)
class Origin:
    """Where a trajectory comes from, and how often it zooms from there on."""

    zooms: int
    parent: int | None = None
    turn: int = 0
    token: int = 0


@st.composite
def origins(draw: st.DrawFn) -> list[Origin]:
    """A group's trajectories: bases, and branches cut anywhere within what a parent wrote."""
    drawn = [Origin(draw(st.integers(0, 2)))]
    num_turns = [drawn[0].zooms + 1]
    for index in range(1, draw(st.integers(1, 6))):
        zooms = draw(st.integers(0, 2))
        parent = draw(st.none() | st.integers(0, index - 1))
        if parent is None:
            drawn.append(Origin(zooms))
            num_turns.append(zooms + 1)
        else:
            turn = draw(st.integers(0, num_turns[parent] - 1))
            drawn.append(Origin(zooms, parent, turn, draw(st.integers(0, 12))))
            num_turns.append(turn + zooms + 1)
    return drawn


def group_of(builder: GroupBuilder, seed: int, drawn: list[Origin]) -> TrajectoryGroup:
    plain = builder.group(seed, totals=(0.0,), zooms=(0,))
    trajectories: list[Trajectory] = []
    for index, origin in enumerate(drawn):
        total = (1.5, 0.0, 1.0, -0.2)[index % 4]
        if origin.parent is None:
            made = builder.trajectory(seed, index, total=total, zooms=origin.zooms, version=0)
        else:
            parent = trajectories[origin.parent]
            num_written = len(parent.turns[origin.turn].generation.token_ids)
            made = builder.branch(
                parent,
                f"{seed}-{index}",
                turn=origin.turn,
                token=min(origin.token, num_written),
                total=total,
                zooms=origin.zooms,
            )
        trajectories.append(made)
    return msgspec.structs.replace(plain, trajectories=trajectories)


class Both:
    """A policy and its two ways of computing the same."""

    def __init__(self, policy: Policy, builder: GroupBuilder, images: ImageSource) -> None:
        self.policy, self.builder, self.images = policy, builder, images
        self.image_token_id = policy.limits.image_token_id
        self.loss_name = Loss.GRPO

    def samples(self, seed: int, drawn: list[Origin]) -> list[TrainingSample]:
        advantages = np.random.default_rng(seed).normal(size=len(drawn)).tolist()
        built = build_samples(group_of(self.builder, seed, drawn), advantages, self.policy.limits)
        self.images.hold(span for sample in built for span in sample.images)
        return [replace(s, token_weight=1 / (7 * s.num_trained_tokens)) for s in built]

    def loss(self, logprobs_N: torch.Tensor, batch: object) -> torch.Tensor:
        now_N = logprobs_N.detach()
        terms = token_loss(
            logprobs_N,
            old_logprobs_N=now_N + 0.1 * torch.sin(7 * now_N),  # a policy that has moved
            sampled_logprobs_N=batch.sampled_logprobs_N,
            ref_logprobs_N=now_N - 0.2,
            advantages_N=batch.advantages_N,
            trajectory_N=batch.trajectory_N,
            objective=Objective(
                self.loss_name, CLIP, is_cap=2.0, is_mask_beyond=math.inf, kl_beta=0.1
            ),
        )
        return (terms.loss_N * batch.weights_N).sum()

    def by_trees(self, bundles: list[Bundle]) -> None:
        for bundle in bundles:
            shown = collect_images(bundle, self.images, CPU)
            features = self.policy.image_features(shown)
            leaf = features.detach().requires_grad_()
            for pack in bundle:
                tensors = collate(
                    pack, shown.rows_by_name, image_token_id=self.image_token_id, device=CPU
                )
                self.loss(self.policy.trained_logprobs(tensors, leaf), tensors).backward()
            features.backward(leaf.grad)

    def one_by_one(self, samples: list[TrainingSample]) -> None:
        for sample in samples:
            batch = oracle.collate(
                [sample],
                [sample.token_weight],
                self.images,
                image_token_id=self.image_token_id,
                device=CPU,
            )
            self.loss(oracle.padded_logprobs(self.policy, batch), batch).backward()

    def gradient(self, compute: Callable[[], None]) -> torch.Tensor:
        self.policy.zero_grad()
        compute()
        grads = [p.grad for p in self.policy.parameters()]
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    def difference(self, groups: list[list[TrainingSample]], max_tokens: int) -> float:
        """‖Δg‖/‖g‖ over the whole gradient."""
        bundles = pack_groups(groups, self.image_token_id, max_tokens)
        trees = self.gradient(lambda: self.by_trees(bundles))
        plain = self.gradient(lambda: self.one_by_one([s for group in groups for s in group]))
        return float((trees - plain).norm() / plain.norm())


@pytest.fixture
def images(checkpoint: Path, builder: GroupBuilder) -> ImageSource:
    return ImageSource(builder.blobs, checkpoint)


@pytest.fixture
def both(checkpoint: Path, builder: GroupBuilder, images: ImageSource) -> Both:
    return Both(Policy.load(checkpoint, CPU), builder, images)


@pytest.fixture
def both_exact(checkpoint: Path, builder: GroupBuilder, images: ImageSource) -> Iterator[Both]:
    with pytest.MonkeyPatch.context() as patched:
        policy = oracle.wholly_in_float64(Policy.load(checkpoint, CPU), patched)
        yield Both(policy, builder, images)


BUDGETS = st.sampled_from([1, 150, 400, 100_000])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=origins(),
    second=origins(),
    max_tokens=BUDGETS,
    loss_name=st.sampled_from(Loss),
)
def test_the_gradient_in_float64_is_that_of_one_by_one(
    both_exact: Both,
    first: list[Origin],
    second: list[Origin],
    max_tokens: int,
    loss_name: Loss,
) -> None:
    both_exact.loss_name = loss_name
    groups = weigh([both_exact.samples(1, first), both_exact.samples(2, second)], loss_name, 64)
    assert both_exact.difference(groups, max_tokens) < 1e-9


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=origins(), max_tokens=BUDGETS)
def test_the_gradient_in_float32_is_nearly_that_of_one_by_one(
    both: Both, drawn: list[Origin], max_tokens: int
) -> None:
    assert both.difference([both.samples(1, drawn)], max_tokens) < 1e-4


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=origins())
def test_every_trajectory_lies_along_its_path_and_each_token_sees_its_own_past(
    both: Both, drawn: list[Origin]
) -> None:
    samples = both.samples(1, drawn)
    tree = build_tree(samples, both.image_token_id)
    input_ids, ends = np.array(tree.input_ids), np.array(tree.subtree_end)
    assert tree.num_tokens == sum(num_new_tokens(samples))
    for sample, path in zip(samples, tree.paths, strict=True):
        assert input_ids[path].tolist() == sample.input_ids
        positions = rope_positions(sample, both.image_token_id)
        np.testing.assert_array_equal(tree.positions_3L[:, path], positions)
        last = path[-1]
        seen = np.flatnonzero((np.arange(len(ends)) <= last) & (last < ends))
        np.testing.assert_array_equal(seen, path)


def test_what_is_shared_is_counted_once(both: Both) -> None:
    drawn = [Origin(1), Origin(0), Origin(1, parent=0, turn=1, token=3)]
    samples = both.samples(1, drawn)
    num_prompt = samples[0].lineage[""]
    shared = samples[2].lineage["1-0"]
    assert samples[2].lineage == {"": num_prompt, "1-0": shared, "1-2": len(samples[2].input_ids)}
    assert shared > num_prompt + 40, "a zoom, its crop and three tokens"
    lengths = [len(s.input_ids) for s in samples]
    assert num_new_tokens(samples) == [
        lengths[0],
        lengths[1] - num_prompt,
        lengths[2] - shared,
    ]


def test_equal_tokens_of_independent_trajectories_are_not_merged(both: Both) -> None:
    """Two bases that wrote the same: each is trained as what it sampled."""
    group = group_of(both.builder, 1, [Origin(0)])
    twin = msgspec.structs.replace(group.trajectories[0], trajectory_id="twin")
    group = msgspec.structs.replace(group, trajectories=[group.trajectories[0], twin])
    samples = build_samples(group, [1.0, -1.0], both.policy.limits)
    assert samples[0].input_ids == samples[1].input_ids
    num_own = len(samples[0].input_ids) - samples[0].lineage[""]
    assert num_new_tokens(samples) == [len(samples[0].input_ids), num_own]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forked_at_token": 2}, "does not begin as its parent does"),
        ({"forked_at_token": 999}, "forked outside of its parent or of itself"),
        ({"parent_id": "nobody"}, "its parent nobody does not come before"),
        ({"trajectory_id": "1-0"}, "two of 1-0"),
    ],
)
def test_a_fork_record_that_is_untrue_is_refused(
    both: Both, change: dict[str, object], message: str
) -> None:
    group = group_of(both.builder, 1, [Origin(1), Origin(0, parent=0, turn=0, token=0)])
    lie = msgspec.structs.replace(group.trajectories[1], **change)
    group = msgspec.structs.replace(group, trajectories=[group.trajectories[0], lie])
    with pytest.raises(PayloadError, match=message):
        build_samples(group, [1.0, -1.0], both.policy.limits)


def test_packs_keep_the_budget_and_bundles_share_no_image(both: Both) -> None:
    drawn = [Origin(2), Origin(1), Origin(0), Origin(1, parent=0, turn=1, token=2)]
    groups = [both.samples(seed, drawn) for seed in (1, 2, 3)]
    budget = 260
    bundles = pack_groups(groups, both.image_token_id, budget)
    packs = [pack for bundle in bundles for pack in bundle]
    placed = [s.trajectory_id for pack in packs for tree in pack for s in tree.samples]
    assert sorted(placed) == sorted(s.trajectory_id for group in groups for s in group)
    for pack in packs:
        num_tokens = sum(tree.num_tokens for tree in pack)
        alone = len(pack) == len(pack[0].samples) == 1
        assert num_tokens <= budget or alone
    shown = [{i.image for p in bundle for t in p for i in t.images} for bundle in bundles]
    assert sum(map(len, shown)) == len(set.union(*shown))


def test_a_tree_over_the_budget_is_split_by_trajectories(both: Both) -> None:
    samples = both.samples(1, [Origin(1)] * 4)
    new = num_new_tokens(samples)
    assert [len(part) for part in split(samples, new[0] + new[1])] == [2, 2]
    assert [len(part) for part in split(samples, 1)] == [1, 1, 1, 1]
    trees = [build_tree([s], both.image_token_id) for s in samples]
    assert [len(pack) for pack in fill(trees, 2 * trees[0].num_tokens)] == [2, 2]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(origins(), min_size=1, max_size=3))
def test_each_token_sees_each_token_of_its_past_in_one_part(
    both: Both, drawn: list[list[Origin]]
) -> None:
    pack = [
        build_tree(both.samples(seed, group), both.image_token_id)
        for seed, group in enumerate(drawn)
    ]
    rows = {span.image: range(span.size.num_image_tokens) for t in pack for span in t.images}
    layout = collate(pack, rows, image_token_id=both.image_token_id, device=CPU).layout
    starts = [0, *np.cumsum([tree.num_tokens for tree in pack])]
    ends = [e + at for at, t in zip(starts, pack, strict=False) for e in t.subtree_end]
    query, key = np.mgrid[: len(ends), : len(ends)]
    times_seen = np.zeros(query.shape, dtype=int)
    for queries, keys, is_causal in layout.parts:
        seen = times_seen[queries, keys]
        seen += np.tri(*seen.shape, dtype=int) if is_causal else 1
    np.testing.assert_array_equal(times_seen, (key <= query) & (query < np.array(ends)[key]))
