"""What a rank computes while others still have packs: gathering weights takes all of them.

One trajectory of no weight, which shows one black image, so that text model and vision tower both
run, forwards and backwards, and every gradient of theirs is 0.
"""

import numpy as np

from services.trainer.packing import Pack
from services.trainer.sample import ModelLimits, TrainingSample
from services.trainer.tree import build_tree
from shared.geometry import PATCH_FACTOR_PX, ImageSize
from shared.trajectory import ImageSpan

_NAME = "idle"

PIXELS = {_NAME: np.zeros((3, PATCH_FACTOR_PX, PATCH_FACTOR_PX), dtype=np.uint8)}


def idle_pack(limits: ModelLimits) -> Pack:
    """An image token and two others, the last of them trained with weight 0."""
    token = next(i for i in range(limits.vocabulary_size) if i not in limits.forbidden_token_ids)
    sample = TrainingSample(
        trajectory_id=_NAME,
        input_ids=[limits.image_token_id, token, token],
        loss_mask=[False, False, True],
        sampled_logprobs=[0.0],
        images=(
            ImageSpan(
                image=_NAME,
                size=ImageSize(PATCH_FACTOR_PX, PATCH_FACTOR_PX),
                token_ids=[limits.image_token_id],
            ),
        ),
        advantage=0.0,
        token_weight=0.0,
        lineage={_NAME: 3},
    )
    return [build_tree([sample], limits.image_token_id)]
