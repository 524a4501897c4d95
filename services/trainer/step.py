# pyright: basic
"""One optimizer batch: the gradient of METHOD.md's loss over all its trajectories, then the update.

The batch is cut into micro-batches only for memory; the weights 1/(B · T_i) were counted before,
so the sum of the micro-batches' gradients is the gradient of the whole. A stop request is honoured
between micro-batches until the first update was applied: the step is then abandoned and the
weights are as before.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from services.trainer.batch import MicroBatch, collate, cut_batch
from services.trainer.images import ImageSource
from services.trainer.loss import ClipRange, TokenLoss, token_loss
from services.trainer.model import Policy
from services.trainer.optimizer import apply_gradient, learning_rate
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
    num_tokens_trained: int = 0
    num_trajectories: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"prepare": 0.0, "forward_backward": 0.0, "optimizer": 0.0}
    )

    def add(
        self,
        micro_batch: MicroBatch,
        terms: TokenLoss,
        old_logprobs_N: Tensor,
        num_updates: int,
    ) -> None:
        """Add a micro-batch's share of the means over all its updates."""
        difference_N = (old_logprobs_N - micro_batch.sampled_logprobs_N).abs()
        weights_N = micro_batch.weights_N / num_updates
        self.loss += float((terms.loss_N.detach() * weights_N).sum())
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
        self._clip = ClipRange(settings.clip_low, settings.clip_high)

    def take_step(
        self, samples: Sequence[TrainingSample], step: int, should_stop: Callable[[], bool]
    ) -> StepFigures:
        """`updates_per_batch` updates on these samples. Raises `StepAbandoned`."""
        settings = self._settings
        chunks = cut_batch(samples, settings.micro_batch)
        old: list[Tensor | None] = [None] * len(chunks)
        if settings.updates_per_batch > 1:
            old = [*self._old_logprobs(chunks, should_stop)]
        lr = learning_rate(
            step,
            peak=settings.lr,
            warmup_steps=settings.warmup_steps,
            max_steps=settings.max_steps,
            final_share=settings.lr_final_share,
        )
        figures = StepFigures(lr=lr, num_trajectories=len(samples))
        figures.num_tokens_trained = sum(s.num_trained_tokens for s in samples)
        for update in range(settings.updates_per_batch):
            stop = should_stop if update == 0 else lambda: False
            for chunk, old_logprobs_N in zip(chunks, old, strict=True):
                self._abandon_if(stop)
                self._accumulate(chunk, old_logprobs_N, figures)
            self._abandon_if(stop)
            started = time.perf_counter()
            grad_norm = apply_gradient(
                self.policy, self.optimizer, lr=lr, max_norm=settings.max_grad_norm
            )
            figures.grad_norm += grad_norm / settings.updates_per_batch
            figures.seconds["optimizer"] += time.perf_counter() - started
        return figures

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

    def _prepare(self, chunk: tuple[list[TrainingSample], list[float]]) -> MicroBatch:
        samples, weights = chunk
        return collate(
            samples,
            weights,
            self._images,
            image_token_id=self.policy.limits.image_token_id,
            device=next(self.policy.parameters()).device,
        )

    @torch.no_grad()
    def _old_logprobs(
        self,
        chunks: Sequence[tuple[list[TrainingSample], list[float]]],
        should_stop: Callable[[], bool],
    ) -> list[Tensor]:
        """π_old of every micro-batch, before the first update."""
        logprobs: list[Tensor] = []
        for chunk in chunks:
            self._abandon_if(should_stop)
            logprobs.append(self.policy.trained_logprobs(self._prepare(chunk)))
        return logprobs

    def _accumulate(
        self,
        chunk: tuple[list[TrainingSample], list[float]],
        old_logprobs_N: Tensor | None,
        figures: StepFigures,
    ) -> None:
        """Forward and backward of one micro-batch; the gradient adds up in the parameters."""
        started = time.perf_counter()
        micro_batch = self._prepare(chunk)
        prepared = time.perf_counter()
        figures.seconds["prepare"] += prepared - started
        ref_logprobs_N = None
        if self.reference is not None:
            with torch.no_grad():
                ref_logprobs_N = self.reference.trained_logprobs(micro_batch)
        trainer_logprobs_N = self.policy.trained_logprobs(micro_batch)
        if old_logprobs_N is None:
            old_logprobs_N = trainer_logprobs_N.detach()
        terms = token_loss(
            trainer_logprobs_N,
            old_logprobs_N=old_logprobs_N,
            sampled_logprobs_N=micro_batch.sampled_logprobs_N,
            ref_logprobs_N=ref_logprobs_N,
            advantages_N=micro_batch.advantages_N,
            clip=self._clip,
            is_cap=self._settings.is_cap,
            kl_beta=self._settings.kl_beta,
        )
        (terms.loss_N * micro_batch.weights_N).sum().backward()
        figures.seconds["forward_backward"] += time.perf_counter() - prepared
        figures.add(micro_batch, terms, old_logprobs_N, self._settings.updates_per_batch)
