# pyright: basic
"""One optimizer batch: the gradient of METHOD.md's loss over all its trajectories, then the update.

The batch is cut into packs only for memory; the weights 1/(B · T_i) were counted before, so the sum
of the packs' gradients is the gradient of the whole. Packs that show the same images are a bundle:
its images are encoded once, every pack's gradient with respect to their features is added up, and
goes back through the vision tower once. A stop request is honoured between packs until the first
update was applied: the step is then abandoned and the weights are as before.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from services.trainer.batch import PackTensors, collate, collect_images
from services.trainer.images import ImageSource
from services.trainer.loss import (
    ClipRange,
    Loss,
    Objective,
    TokenLoss,
    token_loss,
    token_weights,
)
from services.trainer.model import Policy
from services.trainer.optimizer import apply_gradient, learning_rate
from services.trainer.packing import Bundle, Pack, pack_groups
from services.trainer.sample import TrainingSample
from services.trainer.settings import TrainerSettings


class StepAbandoned(Exception):
    """A stop was requested before the first update of the batch; nothing has changed."""


@dataclass
class StepFigures:
    """What an optimizer batch was like; means weigh tokens as the loss does.

    With several updates on the batch they are means over the updates too.
    """

    loss: float = 0.0
    kl_reference: float = 0.0
    mismatch_kl: float = 0.0
    logprob_difference: float = 0.0
    """Mean |ln π_old − ln μ|."""
    clip_fraction: float = 0.0
    is_cap_fraction: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0
    total_weight: float = 1.0
    """Sum of the batch's token weights."""
    num_tokens_trained: int = 0
    num_tokens: int = 0
    """Of all trajectories, each counted whole: what computing them one by one would take."""
    num_tokens_computed: int = 0
    """Of the trees."""
    num_trajectories: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"prepare": 0.0, "forward_backward": 0.0, "optimizer": 0.0}
    )

    def add(
        self,
        pack: PackTensors,
        terms: TokenLoss,
        old_logprobs_N: Tensor,
        num_updates: int,
    ) -> None:
        """Add a pack's share of the means over all its updates."""
        difference_N = (old_logprobs_N - pack.sampled_logprobs_N).abs()
        weights_N = pack.weights_N / num_updates
        self.loss += float((terms.loss_N.detach() * weights_N).sum())
        weights_N = weights_N / self.total_weight  # Dr. GRPO's do not add up to 1
        self.kl_reference += float((terms.kl_reference_N * weights_N).sum())
        self.mismatch_kl += float((terms.mismatch_kl_N * weights_N).sum())
        self.logprob_difference += float((difference_N * weights_N).sum())
        self.clip_fraction += float((terms.is_clipped_N * weights_N).sum())
        self.is_cap_fraction += float((terms.is_capped_N * weights_N).sum())


class Learner:
    """Policy, frozen reference and optimizer: turns samples into updates."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        optimizer: torch.optim.Optimizer,
        images: ImageSource,
        settings: TrainerSettings,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.optimizer = optimizer
        self._images = images
        self._settings = settings
        self._objective = Objective(
            loss=Loss(settings.loss),
            clip=ClipRange(*settings.clip_bounds),
            is_cap=settings.is_cap,
            is_mask_beyond=settings.is_mask_beyond,
            kl_beta=settings.kl_beta,
        )
        self._device = next(policy.parameters()).device

    def take_step(
        self,
        groups: Sequence[Sequence[TrainingSample]],
        step: int,
        should_stop: Callable[[], bool],
    ) -> StepFigures:
        """`updates_per_batch` updates on the samples of these groups. Raises `StepAbandoned`."""
        settings = self._settings
        figures = StepFigures(lr=self._rate(step))
        started = time.perf_counter()
        bundles = self._pack(groups, figures)
        figures.seconds["prepare"] += time.perf_counter() - started
        old: list[list[Tensor | None]] = [[None] * len(bundle) for bundle in bundles]
        if settings.updates_per_batch > 1:
            old = [self._old_logprobs(bundle, should_stop) for bundle in bundles]
        for update in range(settings.updates_per_batch):
            stop = should_stop if update == 0 else lambda: False
            for bundle, old_logprobs in zip(bundles, old, strict=True):
                self._accumulate(bundle, old_logprobs, figures, stop)
            self._abandon_if(stop)
            started = time.perf_counter()
            grad_norm = apply_gradient(
                self.policy, self.optimizer, lr=figures.lr, max_norm=settings.max_grad_norm
            )
            figures.grad_norm += grad_norm / settings.updates_per_batch
            figures.seconds["optimizer"] += time.perf_counter() - started
        return figures

    def _rate(self, step: int) -> float:
        settings = self._settings
        return learning_rate(
            step,
            peak=settings.lr,
            warmup_steps=settings.warmup_steps,
            max_steps=settings.max_steps,
            final_share=settings.lr_final_share,
        )

    def _pack(
        self, groups: Sequence[Sequence[TrainingSample]], figures: StepFigures
    ) -> list[Bundle]:
        """Weights counted over the whole batch; then trees, packs, bundles."""
        samples = [sample for group in groups for sample in group]
        weights = iter(
            token_weights(
                [sample.num_trained_tokens for sample in samples],
                self._objective.loss,
                constant=self._settings.dr_grpo_tokens,
            )
        )
        weighted = [[replace(s, token_weight=next(weights)) for s in group] for group in groups]
        bundles = pack_groups(
            weighted, self.policy.limits.image_token_id, self._settings.pack_tokens
        )
        figures.num_trajectories = len(samples)
        figures.total_weight = sum(
            s.token_weight * s.num_trained_tokens for group in weighted for s in group
        )
        figures.num_tokens_trained = sum(s.num_trained_tokens for s in samples)
        figures.num_tokens = sum(len(s.input_ids) for s in samples)
        figures.num_tokens_computed = sum(
            tree.num_tokens for bundle in bundles for pack in bundle for tree in pack
        )
        return bundles

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: weights, optimizer, generator."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])

    def _abandon_if(self, stop: Callable[[], bool]) -> None:
        if stop():
            self.optimizer.zero_grad(set_to_none=True)
            raise StepAbandoned

    @torch.no_grad()
    def _old_logprobs(self, bundle: Bundle, should_stop: Callable[[], bool]) -> list[Tensor | None]:
        """π_old of every pack, before the first update."""
        images = collect_images(bundle, self._images, self._device)
        features_FD = self.policy.image_features(images)
        logprobs: list[Tensor | None] = []
        for pack in bundle:
            self._abandon_if(should_stop)
            tensors = self._collate(pack, images.rows_by_name)
            logprobs.append(self.policy.trained_logprobs(tensors, features_FD))
        return logprobs

    def _accumulate(
        self,
        bundle: Bundle,
        old_logprobs: Sequence[Tensor | None],
        figures: StepFigures,
        should_stop: Callable[[], bool],
    ) -> None:
        """Forward and backward of a bundle; the gradient adds up in the parameters."""
        started = time.perf_counter()
        images = collect_images(bundle, self._images, self._device)
        figures.seconds["prepare"] += time.perf_counter() - started
        started = time.perf_counter()
        features_FD = self.policy.image_features(images)
        shown_FD = _detached(features_FD)
        ref_features_FD = None
        if self.reference is not None:
            with torch.no_grad():
                ref_features_FD = self.reference.image_features(images)
        for pack, old_logprobs_N in zip(bundle, old_logprobs, strict=True):
            self._abandon_if(should_stop)
            started_pack = time.perf_counter()
            tensors = self._collate(pack, images.rows_by_name)
            figures.seconds["prepare"] += time.perf_counter() - started_pack
            started += time.perf_counter() - started_pack
            self._backward(tensors, shown_FD, ref_features_FD, old_logprobs_N, figures)
        if features_FD is not None and shown_FD is not None and shown_FD.grad is not None:
            features_FD.backward(shown_FD.grad)
        figures.seconds["forward_backward"] += time.perf_counter() - started

    def _backward(
        self,
        tensors: PackTensors,
        features_FD: Tensor | None,
        ref_features_FD: Tensor | None,
        old_logprobs_N: Tensor | None,
        figures: StepFigures,
    ) -> None:
        """Forward and backward of one pack, up to the features of its images."""
        ref_logprobs_N = None
        if self.reference is not None:
            with torch.no_grad():
                ref_logprobs_N = self.reference.trained_logprobs(tensors, ref_features_FD)
        trainer_logprobs_N = self.policy.trained_logprobs(tensors, features_FD)
        if old_logprobs_N is None:
            old_logprobs_N = trainer_logprobs_N.detach()
        terms = token_loss(
            trainer_logprobs_N,
            old_logprobs_N=old_logprobs_N,
            sampled_logprobs_N=tensors.sampled_logprobs_N,
            ref_logprobs_N=ref_logprobs_N,
            advantages_N=tensors.advantages_N,
            trajectory_N=tensors.trajectory_N,
            objective=self._objective,
        )
        (terms.loss_N * tensors.weights_N).sum().backward()
        figures.add(tensors, terms, old_logprobs_N, self._settings.updates_per_batch)

    def _collate(self, pack: Pack, rows_by_name: Mapping[str, range]) -> PackTensors:
        return collate(
            pack,
            rows_by_name,
            image_token_id=self.policy.limits.image_token_id,
            device=self._device,
        )


def _detached(features_FD: Tensor | None) -> Tensor | None:
    """A leaf that collects the gradient of all packs, if there is one to go on."""
    if features_FD is None:
        return None
    return features_FD.detach().requires_grad_(features_FD.requires_grad)
