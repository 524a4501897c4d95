"""One optimizer batch: what may not change its gradient, and what it reports."""

from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.assembly import build_learner
from services.trainer.images import ImageSource
from services.trainer.optimizer import GradientError, apply_gradient, learning_rate
from services.trainer.sample import TrainingSample, build_group
from services.trainer.step import Learner, StepAbandoned
from services.trainer.world import World
from shared.blobs import BlobStore
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import run_settings
from tests.trainer.trees import tree_logprobs

CPU = torch.device("cpu")


class Bench:
    """Learners with chosen settings on the same two groups."""

    def __init__(
        self, folder: Path, checkpoint: Path, blob_url: str, builder: GroupBuilder
    ) -> None:
        self._folder, self._checkpoint, self._blob_url = folder, checkpoint, blob_url
        self._builder = builder
        self.images = ImageSource(BlobStore(blob_url), checkpoint)

    def learner(self, **settings: object) -> tuple[Learner, list[list[TrainingSample]]]:
        images = self.images
        chosen = run_settings(
            self._folder,
            checkpoint=self._checkpoint,
            blob_url=self._blob_url,
            redis_url="redis://unused",
            **settings,
        )
        learner = build_learner(chosen, self._checkpoint, images, World(CPU))
        groups = [
            build_group(self._builder.group(s), learner.policy.limits, divide=True).samples
            for s in (1, 2)
        ]
        images.hold(span for samples in groups for sample in samples for span in sample.images)
        return learner, groups


@pytest.fixture
def bench(tmp_path: Path, checkpoint: Path, blob_url: str, builder: GroupBuilder) -> Bench:
    return Bench(tmp_path, checkpoint, blob_url, builder)


def weights_of(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])


def never() -> bool:
    return False


def test_the_split_into_packs_changes_nothing(bench: Bench) -> None:
    figures, gradients = [], []
    for pack_tokens in (1, 300, 10_000):
        learner, groups = bench.learner(pack_tokens=pack_tokens, max_grad_norm=1e9, lr=1e-12)
        figures.append(learner.take_step(groups, 0, never))
        # Adam's first moment after one step is 0.1 · gradient
        moments = [
            learner.optimizer.state[p]["exp_avg"].flatten() for p in learner.policy.parameters()
        ]
        gradients.append(torch.cat(moments))
    for figure, gradient in zip(figures[1:], gradients[1:], strict=True):
        assert figure.grad_norm == pytest.approx(figures[0].grad_norm, rel=1e-4)
        assert figure.loss == pytest.approx(figures[0].loss, abs=1e-5)
        assert figure.mismatch_kl == pytest.approx(figures[0].mismatch_kl, rel=1e-4)
        assert (gradient - gradients[0]).norm() < 1e-4 * gradients[0].norm()


def test_the_figures_are_means_over_tokens_then_trajectories(bench: Bench) -> None:
    learner, groups = bench.learner()
    figures = learner.take_step(groups, 0, never)
    assert figures.num_trajectories == 8
    samples = [sample for group in groups for sample in group]
    assert figures.num_tokens_trained == sum(s.num_trained_tokens for s in samples)
    fresh, _ = bench.learner()
    differences, losses = [], []
    for sample in samples:
        with torch.no_grad():
            logprobs = tree_logprobs(fresh.policy, [[sample]], bench.images).numpy()
        log_ratio = logprobs - np.array(sample.sampled_logprobs)
        differences.append(np.abs(log_ratio).mean())
        losses.append((-np.minimum(np.exp(log_ratio), 2.0) * sample.advantage).mean())
    assert figures.logprob_difference == pytest.approx(np.mean(differences), rel=1e-4)
    assert figures.loss == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_step_makes_good_trajectories_likelier_and_bad_ones_less_likely(bench: Bench) -> None:
    learner, groups = bench.learner(lr=1e-3)

    # as if the engine were the trainer: sampled logprobs are those of the initial weights
    def logprobs() -> list[float]:
        with torch.no_grad():
            return [
                float(tree_logprobs(learner.policy, [[s]], bench.images).mean())
                for group in groups
                for s in group
            ]

    before = logprobs()
    for step in range(3):
        learner.take_step(groups, step, never)
    gains = np.array(logprobs()) - np.array(before)
    advantages = np.array([s.advantage for group in groups for s in group])
    assert np.corrcoef(gains, advantages)[0, 1] > 0.5


def test_with_one_update_nothing_is_clipped_and_with_several_it_is(bench: Bench) -> None:
    once, groups = bench.learner(lr=0.01)
    assert once.take_step(groups, 0, never).clip_fraction == 0.0
    often, groups = bench.learner(lr=0.01, updates_per_batch=4)
    assert often.take_step(groups, 0, never).clip_fraction > 0.0


def test_the_figures_of_several_updates_are_their_means_and_their_times_add_up(
    bench: Bench,
) -> None:
    """With a rate of nothing every update is the first one again."""
    once, groups = bench.learner(lr=1e-12)
    one = once.take_step(groups, 0, never)
    often, groups = bench.learner(lr=1e-12, updates_per_batch=3)
    three = often.take_step(groups, 0, never)
    for name in ("loss", "mismatch_kl", "logprob_difference", "is_cap_fraction", "grad_norm"):
        assert getattr(three, name) == pytest.approx(getattr(one, name), rel=1e-3, abs=1e-6), name
    assert three.num_tokens_trained == one.num_tokens_trained

    moved, groups = bench.learner(lr=0.01, updates_per_batch=2, kl_beta=0.01)
    first, same = bench.learner(lr=0.01, kl_beta=0.01)
    assert first.take_step(same, 0, never).kl_reference == pytest.approx(0.0, abs=1e-6)
    second = first.take_step(same, 0, never).kl_reference
    assert second > 1e-3
    mean = moved.take_step(groups, 0, never).kl_reference
    assert mean < 0.9 * second, "the first update had none of it"


def test_the_reference_is_the_initial_policy_and_absent_without_beta(bench: Bench) -> None:
    without, _ = bench.learner(kl_beta=0.0)
    assert without.reference is None
    learner, groups = bench.learner(kl_beta=0.01, lr=1e-3)
    assert learner.reference is not None
    initial = learner.reference.model.get_input_embeddings().weight.clone()
    assert learner.take_step(groups, 0, never).kl_reference == pytest.approx(0.0, abs=1e-6)
    assert learner.take_step(groups, 1, never).kl_reference > 1e-4
    assert torch.equal(learner.reference.model.get_input_embeddings().weight, initial)


def test_a_frozen_vision_tower_stays_as_it_was_and_the_text_model_learns_the_same(
    bench: Bench,
) -> None:
    frozen, groups = bench.learner(freeze_vision=True, max_grad_norm=1e9)
    whole, _ = bench.learner(max_grad_norm=1e9)
    before = {name: p.detach().clone() for name, p in frozen.policy.named_parameters()}
    for learner in (frozen, whole):
        learner.take_step(groups, 0, never)
    for (name, ours), theirs in zip(
        frozen.policy.named_parameters(), whole.policy.parameters(), strict=True
    ):
        if "visual" in name:
            assert torch.equal(ours, before[name])
            assert not torch.equal(theirs, before[name])
        else:
            torch.testing.assert_close(ours, theirs)


def test_figures_are_means_also_where_the_losss_weights_are_none(bench: Bench) -> None:
    """Dr. GRPO's weights add up to a fraction of 1."""
    grpo, groups = bench.learner()
    dr_grpo, same = bench.learner(loss="dr_grpo", advantage_division=None)
    plain, other = grpo.take_step(groups, 0, never), dr_grpo.take_step(same, 0, never)
    for name in ("mismatch_kl", "logprob_difference", "is_cap_fraction"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=0.5), name


def test_a_stop_before_the_first_update_leaves_the_weights_as_they_were(bench: Bench) -> None:
    learner, groups = bench.learner(pack_tokens=200)
    before = weights_of(learner)
    looks = iter([False, False, True])
    with pytest.raises(StepAbandoned):
        learner.take_step(groups, 0, lambda: next(looks))
    assert torch.equal(weights_of(learner), before)
    assert all(p.grad is None for p in learner.policy.parameters())


def test_the_gradient_is_clipped_to_its_norm(bench: Bench) -> None:
    learner, groups = bench.learner(max_grad_norm=1e-3, lr=1e-12)
    assert learner.take_step(groups, 0, never).grad_norm > 1e-3
    moments = torch.cat(
        [learner.optimizer.state[p]["exp_avg"].flatten() for p in learner.policy.parameters()]
    )
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module.weight.grad = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(GradientError, match="the step was not taken"):
        apply_gradient(module, optimizer, lr=0.1, max_norm=1.0)
    assert torch.equal(module.weight, before)


def test_warm_up_is_linear_and_then_flat() -> None:
    def rate(step: int, warmup_steps: int) -> float:
        return learning_rate(
            step, peak=1.0, warmup_steps=warmup_steps, max_steps=100, final_share=1.0
        )

    assert [rate(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate(0, 0) == 1.0


def test_the_rate_falls_to_its_final_share_at_the_last_step() -> None:
    rates = [
        learning_rate(step, peak=2.0, warmup_steps=2, max_steps=10, final_share=0.1)
        for step in (0, 5, 10)
    ]
    assert rates == pytest.approx([1.0, 2.0 * 0.55, 0.2])
