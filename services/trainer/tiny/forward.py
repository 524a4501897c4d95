# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""Forward passes of Qwen2.5-VL on pictures of one size: transformers' weights and maths, batched.

transformers runs the vision attention image by image; for many small pictures of one size that is
most of the time. Here they are one batch. The tests hold both ways equal.
"""

import torch
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids

from services.trainer.tiny.sequences import Batch


def image_features(
    visual: Qwen2_5_VisionTransformerPretrainedModel,
    patches_NPD: torch.Tensor,
    grid_hw: tuple[int, int],
) -> torch.Tensor:
    """Features of N pictures of one patch grid: T merged tokens of H numbers each.

    Every block attends to the whole picture (the tiny policy has no windowed block).
    """
    num, patches, _ = patches_NPD.shape
    grid = torch.tensor([[1, *grid_hw]])
    x = visual.patch_embed(patches_NPD.reshape(num * patches, -1)).view(num, patches, -1)
    cos, sin = visual.rotary_pos_emb(x[0], get_vision_position_ids(grid, 2))
    for block in visual.blocks:
        attention = block.attn
        heads = attention.qkv(block.norm1(x)).view(num, patches, 3, attention.num_heads, -1)
        query, key, value = heads.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        x = x + attention.proj(mixed.transpose(1, 2).reshape(num, patches, -1))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.reshape(num * patches, -1)).view(num, patches // 4, -1)


def hidden_states(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    image_pad_id: int,
    features: torch.Tensor,
) -> torch.Tensor:
    """Last hidden states; `features` [.., H] are the images' tokens in the order of the batch."""
    embedded = model.model.language_model.embed_tokens(batch.ids_BL)
    slots = (batch.ids_BL == image_pad_id).unsqueeze(-1)
    embedded = embedded.masked_scatter(slots, features)
    return model.model.language_model(
        inputs_embeds=embedded,
        position_ids=batch.positions_3BL,
        attention_mask=batch.mask_BL,
        use_cache=False,
    ).last_hidden_state


def trained_loss(
    model: Qwen2_5_VLForConditionalGeneration, hidden_BLH: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean loss, losses, targets) over the trained tokens; logits are made only for them."""
    targets_BL = batch.labels_BL[:, 1:]
    trained = targets_BL >= 0
    targets = targets_BL[trained]
    losses = functional.cross_entropy(
        model.lm_head(hidden_BLH[:, :-1][trained]), targets, reduction="none"
    )
    return losses.mean(), losses, targets


def letter_logits(
    model: Qwen2_5_VLForConditionalGeneration,
    hidden_BLH: torch.Tensor,
    batch: Batch,
    letters: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, V], [B]): logits where each row's answer is about to be written, and the answers.

    `letters` are the ids of all possible answers; a row trains exactly one of them.
    """
    targets_BL = batch.labels_BL[:, 1:]
    is_letter = torch.isin(targets_BL, letters)
    return model.lm_head(hidden_BLH[:, :-1][is_letter]), targets_BL[is_letter]
