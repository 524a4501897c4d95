# pyright: basic
"""The gradient of a step, computed in several ways from the same samples, model and loss.

*trees*, as the trainer does; *padded*, whole trajectories in padded micro-batches of a group;
*packed*, whole trajectories in a row without padding. All three encode each distinct image once.
*alone* is padded and encodes the images of every trajectory for itself; *trl* is TRL's own step,
which does so too, and *trl_with_old* the same with TRL's forward pass for π_old.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.arithmetic import step_flops
from benchmarks.groups import training_samples
from benchmarks.plain_loss import OBJECTIVE, plain_loss
from benchmarks.trl_step import TrlStep
from services.trainer.batch import collate, collect_images
from services.trainer.dry_run.flops import StepFlops
from services.trainer.dry_run.shape import ModelShape
from services.trainer.images import ImageSource
from services.trainer.loss import token_weights
from services.trainer.model import Policy
from services.trainer.packing import Bundle, pack_groups
from services.trainer.sample import TrainingSample
from shared.blobs import BlobStore
from shared.trajectory import TrajectoryGroup
from tests.trainer import oracle

CPU = torch.device("cpu")
PACK_TOKENS = 16_384
OTHERS = ("padded", "packed", "alone", "trl", "trl_with_old")
"""Than trees."""


class Ways:
    """One model, some groups, and ways of computing them."""

    def __init__(self, model: Path, groups: Sequence[TrajectoryGroup], blobs: BlobStore) -> None:
        self.policy = Policy.load(model, CPU)
        self._images = ImageSource(blobs, model)
        samples = [training_samples(group, self.policy.limits) for group in groups]
        weights = iter(token_weights([s.num_trained_tokens for group in samples for s in group]))
        self.groups = [[replace(s, token_weight=next(weights)) for s in g] for g in samples]
        self._images.hold(span for s in self.samples for span in s.images)
        self._trl = TrlStep(
            model,
            self.policy.limits,
            self._images,
            is_cap=OBJECTIVE.is_cap,
            group_size=len(self.groups[0]),
        )
        self._trl.prepare(self.groups)
        self.micro_batch = self._fastest_micro_batch()

    @property
    def samples(self) -> list[TrainingSample]:
        """Of all groups."""
        return [sample for group in self.groups for sample in group]

    def trees(self) -> None:
        """As the trainer does."""
        self._by_bundles(self._bundles(self.groups))

    def packed(self) -> None:
        """Whole trajectories in a row: trees of one trajectory each."""
        self._by_bundles(self._bundles([[sample] for sample in self.samples]))

    def padded(self) -> None:
        """Whole trajectories, padded to the longest of their group."""
        self._padded(share_images=True)

    def alone(self) -> None:
        """The same, each trajectory with its images."""
        self._padded(share_images=False)

    def trl(self) -> None:
        """TRL's step."""
        self._trl.step(self.groups, self.micro_batch)

    def trl_with_old(self) -> None:
        """TRL's step and its forward pass for π_old."""
        self._trl.step_with_old(self.groups, self.micro_batch)

    def gradient(self, way: str) -> torch.Tensor:
        """Of one way, all parameters in a row."""
        model = self._trl.model if way.startswith("trl") else self.policy
        model.zero_grad()
        getattr(self, way)()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in grads])

    def token_ratio(self) -> float:
        """Tokens of all trajectories over distinct ones."""
        whole = sum(len(sample.input_ids) for sample in self.samples)
        packs = [pack for bundle in self._bundles(self.groups) for pack in bundle]
        return whole / sum(tree.num_tokens for pack in packs for tree in pack)

    def flops(self, shape: ModelShape) -> dict[str, StepFlops]:
        """Of trees, of whole trajectories that share images (packed), and of such that do not.

        With a model of this shape.
        """
        whole = self._bundles([[sample] for sample in self.samples])
        return {
            "trees": step_flops(shape, self.groups, self._bundles(self.groups)),
            "packed": step_flops(shape, self.groups, whole),
            "alone": step_flops(shape, self.groups, whole, share_images=False),
        }

    def _fastest_micro_batch(self) -> int:
        """Trajectories that TRL computes at a time: a whole group, or one."""
        size = len(self.groups[0])
        took: dict[int, float] = {}
        for num in {size, 1}:
            started = time.thread_time()
            self._trl.step(self.groups[:1], num)
            took[num] = time.thread_time() - started
        return min(took, key=lambda num: took[num])

    def _padded(self, *, share_images: bool) -> None:
        for group in self.groups:
            batch = oracle.collate(
                group,
                [sample.token_weight for sample in group],
                self._images,
                image_token_id=self.policy.limits.image_token_id,
                device=CPU,
                share_images=share_images,
            )
            plain_loss(oracle.padded_logprobs(self.policy, batch), batch).backward()

    def _bundles(self, groups: list[list[TrainingSample]]) -> list[Bundle]:
        return pack_groups(groups, self.policy.limits.image_token_id, PACK_TOKENS)

    def _by_bundles(self, bundles: list[Bundle]) -> None:
        for bundle in bundles:
            shown = collect_images(bundle, self._images, CPU)
            features = self.policy.image_features(shown)
            assert features is not None
            leaf = features.detach().requires_grad_()
            for pack in bundle:
                pad = self.policy.limits.image_token_id
                tensors = collate(pack, shown.rows_by_name, image_token_id=pad, device=CPU)
                plain_loss(self.policy.trained_logprobs(tensors, leaf), tensors).backward()
            features.backward(leaf.grad)
