# pyright: basic
"""One optimizer batch: the gradient of METHOD.md's loss over all its trajectories, then the update.

The batch is dealt to the ranks and there cut into packs only for memory; the weights 1/(B · T_i)
were counted before, so the sum of all packs' gradients is the gradient of the whole. Packs that
show the same images are a bundle: its images are encoded once, every pack's gradient with respect
to their features is added up, and goes back through the vision tower once. Where weights are
sharded all ranks go through as many bundles and packs; who has fewer fills up with idle ones. A
stop request is honoured between packs until the first update was applied: the step is then
abandoned and the weights are as before.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from services.trainer.batch import BundleImages, PackTensors, collate, collect_images
from services.trainer.checkpoint import read_state, write_state
from services.trainer.dealing import Share, deal, total_weight, weigh
from services.trainer.figures import StepFigures
from services.trainer.idle import PIXELS as IDLE_PIXELS
from services.trainer.idle import idle_pack
from services.trainer.images import ImageSource
from services.trainer.loss import ClipRange, Loss, Objective, token_loss
from services.trainer.model import Policy
from services.trainer.optimizer import apply_gradient, learning_rate
from services.trainer.packing import Bundle, pack_groups
from services.trainer.sample import TrainingSample
from services.trainer.settings import TrainerSettings
from services.trainer.world import Order, World

_TRAINED = StateDictOptions(ignore_frozen_params=True)


class StepAbandoned(Exception):
    """A stop was requested before the first update of the batch; nothing has changed."""


def never() -> bool:
    """No stop is requested."""
    return False


class Learner:
    """Policy, frozen reference and optimizer: turns samples into updates.

    What is called on the leader is done by all ranks; `services.trainer.follow` calls it there.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        optimizer: torch.optim.Optimizer,
        images: ImageSource,
        settings: TrainerSettings,
        world: World,
    ) -> None:
        self.policy = policy
        self.reference = reference
        """With adapters it is the policy itself, which is then asked without them."""
        self.optimizer = optimizer
        self._images = images
        self._settings = settings
        self._world = world
        self._objective = Objective(
            loss=Loss(settings.loss),
            clip=ClipRange(*settings.clip_bounds),
            is_cap=settings.is_cap,
            is_mask_beyond=settings.is_mask_beyond,
            kl_beta=settings.kl_beta,
        )
        self._idle = idle_pack(policy.limits)

    # -- a step ---------------------------------------------------------------------------------

    def take_step(
        self,
        groups: Sequence[Sequence[TrainingSample]] = (),
        step: int = 0,
        should_stop: Callable[[], bool] = never,
    ) -> StepFigures:
        """`updates_per_batch` updates on the samples of these groups; a follower brings none.

        `step` counts the steps before it. Raises `StepAbandoned`.
        """
        self._world.lead(Order.TAKE_STEP)
        num_updates = self._settings.updates_per_batch
        figures = StepFigures()
        with figures.timed("prepare"):
            share = self._deal(groups, step)
            figures.lr = self._rate(share.step)
            figures.total_weight = share.total_weight
            bundles = self._bundles(share, figures)
        old: list[list[Tensor | None]] = [[None] * len(bundle) for bundle in bundles]
        if num_updates > 1:
            with figures.timed("forward_backward"):
                old = [self._old_logprobs(bundle, should_stop) for bundle in bundles]
        for update in range(num_updates):
            stop = should_stop if update == 0 else None
            figures.next_update()
            with figures.timed("forward_backward"):
                for bundle, old_logprobs in zip(bundles, old, strict=True):
                    self._accumulate(bundle, old_logprobs, figures, stop)
            self._abandon_if(stop)
            with figures.timed("optimizer"):
                grad_norm = apply_gradient(
                    self.policy,
                    self.optimizer,
                    lr=figures.lr,
                    max_norm=self._settings.max_grad_norm,
                )
            figures.grad_norm += grad_norm / num_updates
        figures.gather(self._world)
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

    def _deal(self, groups: Sequence[Sequence[TrainingSample]], step: int) -> Share:
        """This rank's part of the batch, its images held."""
        shares: list[Share] = []
        if self._world.leads:
            weighed = weigh(groups, self._objective.loss, self._settings.dr_grpo_tokens)
            whole = total_weight(weighed)
            shares = [
                Share(step, whole, part, self._images.pixels(_shown(part)))
                for part in deal(weighed, self._world.size)
            ]
        else:
            self._images.forget()
        share = self._world.deal(shares)
        self._images.keep({**share.pixels, **IDLE_PIXELS})
        return share

    def _bundles(self, share: Share, figures: StepFigures) -> list[Bundle]:
        """Trees, packs, bundles; as many on every rank."""
        limits, settings = self.policy.limits, self._settings
        bundles = pack_groups(share.groups, limits.image_token_id, settings.pack_tokens)
        samples = [s for samples in share.groups for s in samples]
        figures.num_trajectories = len(samples)
        figures.num_tokens_trained = sum(s.num_trained_tokens for s in samples)
        figures.num_tokens = sum(len(s.input_ids) for s in samples)
        figures.num_tokens_computed = sum(
            tree.num_tokens for bundle in bundles for pack in bundle for tree in pack
        )
        bundles.sort(key=len, reverse=True)
        most_packs = self._world.longest([len(bundle) for bundle in bundles])
        bundles += [[] for _ in most_packs[len(bundles) :]]
        return [
            [*bundle, *[self._idle] * (most - len(bundle))]
            for bundle, most in zip(bundles, most_packs, strict=True)
        ]

    def _abandon_if(self, stop: Callable[[], bool] | None) -> None:
        """All ranks abandon, or none."""
        if stop is not None and self._world.any(stop()):
            self.optimizer.zero_grad(set_to_none=True)
            raise StepAbandoned

    @torch.no_grad()
    def _old_logprobs(self, bundle: Bundle, should_stop: Callable[[], bool]) -> list[Tensor | None]:
        """π_old of every pack, before the first update."""
        images = self._collect(bundle)
        features_FD = self.policy.image_features(images)
        logprobs: list[Tensor | None] = []
        for pack in bundle:
            self._abandon_if(should_stop)
            logprobs.append(self.policy.trained_logprobs(self._collate(pack, images), features_FD))
        return logprobs

    def _accumulate(
        self,
        bundle: Bundle,
        old_logprobs: Sequence[Tensor | None],
        figures: StepFigures,
        stop: Callable[[], bool] | None,
    ) -> None:
        """Forward and backward of a bundle; the gradient adds up in the parameters."""
        with figures.timed("prepare"):
            images = self._collect(bundle)
        features_FD = self.policy.image_features(images)
        shown_FD = _detached(features_FD)
        ref_features_FD = self._reference_features(images, shown_FD)
        for pack, old_logprobs_N in zip(bundle, old_logprobs, strict=True):
            self._abandon_if(stop)
            with figures.timed("prepare"):
                tensors = self._collate(pack, images)
            ref_logprobs_N = self._reference_logprobs(tensors, ref_features_FD)
            trainer_logprobs_N = self.policy.trained_logprobs(tensors, shown_FD)
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
            if pack is not self._idle:
                figures.add(tensors, terms, old_logprobs_N, self._settings.updates_per_batch)
        if features_FD is not None and shown_FD is not None and shown_FD.grad is not None:
            features_FD.backward(shown_FD.grad)

    @torch.no_grad()
    def _reference_features(self, images: BundleImages, shown_FD: Tensor | None) -> Tensor | None:
        """π_ref's view of the images: a vision tower that is not trained has the same."""
        if self.reference is None or not self.policy.trains_vision:
            return shown_FD
        return self.reference.image_features(images)

    @torch.no_grad()
    def _reference_logprobs(
        self, tensors: PackTensors, features_FD: Tensor | None
    ) -> Tensor | None:
        if self.reference is None:
            return None
        with self.reference.without_adapters():
            return self.reference.trained_logprobs(tensors, features_FD)

    def _collect(self, bundle: Bundle) -> BundleImages:
        """The images of a bundle; where weights are sharded never none."""
        shown = bundle if self._world.mesh is None else [*bundle, self._idle]
        return collect_images(shown, self._images, self._world.device)

    def _collate(self, pack: Any, images: BundleImages) -> PackTensors:
        return collate(
            pack,
            images.rows_by_name,
            image_token_id=self.policy.limits.image_token_id,
            device=self._world.device,
        )

    # -- what lasts -----------------------------------------------------------------------------

    def save(self, folder: Path | None = None) -> "Future[Any]":
        """Copy weights and optimizer now, write them to the leader's `folder` behind the rest."""
        self._world.lead(Order.SAVE)
        return write_state(self._world.told(folder), self._state(), self._world)

    def restore(self, folder: Path) -> None:
        """The inverse of `save`, by as many ranks as there are now. Raises `WeightsError`."""
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        state = self._state()
        read_state(folder, state, self._world)
        set_model_state_dict(self.policy, state["policy"], options=StateDictOptions(strict=False))
        set_optimizer_state_dict(self.policy, self.optimizer, state["optimizer"], options=_TRAINED)
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # a setting, like the learning rate

    def export(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The policy's whole weights in host memory, adapters merged; on followers nothing."""
        self._world.lead(Order.EXPORT)
        dtype = self._world.told(dtype)
        whole = self.policy.exported(dtype)
        if self._world.leads:
            return {name: tensor.to("cpu", copy=True) for name, tensor in whole}
        for _ in whole:  # its part in gathering them
            pass
        return {}

    def _state(self) -> dict[str, Any]:
        """What is trained, and AdamW's view of it."""
        weights = get_model_state_dict(self.policy, options=_TRAINED)
        trained = {name for name, p in self.policy.named_parameters() if p.requires_grad}
        return {
            "policy": {n: w for n, w in weights.items() if n in trained},  # a tied head once
            "optimizer": get_optimizer_state_dict(self.policy, self.optimizer, options=_TRAINED),
        }


def _shown(groups: Sequence[Sequence[TrainingSample]]) -> Iterator[str]:
    return (span.image for samples in groups for sample in samples for span in sample.images)


def _detached(features_FD: Tensor | None) -> Tensor | None:
    """A leaf that collects the gradient of all packs, if there is one to go on."""
    if features_FD is None:
        return None
    return features_FD.detach().requires_grad_(features_FD.requires_grad)
