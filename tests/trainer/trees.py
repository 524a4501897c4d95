"""Log-probabilities as the trainer computes them: all trees in one pack."""

from collections.abc import Sequence

import torch

from services.trainer.batch import PackTensors, collate, collect_images
from services.trainer.images import ImageSource
from services.trainer.model import Policy
from services.trainer.sample import TrainingSample
from services.trainer.tree import build_tree


def one_pack(
    policy: Policy, groups: Sequence[Sequence[TrainingSample]], images: ImageSource
) -> tuple[PackTensors, torch.Tensor | None]:
    """The trees of these groups in a row, and the features of their images."""
    image_token_id, device = policy.limits.image_token_id, next(policy.parameters()).device
    pack = [build_tree(samples, image_token_id) for samples in groups]
    shown = collect_images([pack], images, device)
    tensors = collate(pack, shown.rows_by_name, image_token_id=image_token_id, device=device)
    return tensors, policy.image_features(shown)


def tree_logprobs(
    policy: Policy, groups: Sequence[Sequence[TrainingSample]], images: ImageSource
) -> torch.Tensor:
    """ln π of the trained tokens of all trajectories, in their order."""
    return policy.trained_logprobs(*one_pack(policy, groups, images))
