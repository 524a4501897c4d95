# pyright: basic
"""The oracle: every trajectory computed whole, in padded micro-batches.

Trajectories keep the order of their groups, so that siblings, which share the view and many crops,
land in the same micro-batch: each distinct image there is encoded once and its features are
gathered by every trajectory that shows it. Autograd sums what flows back. Padding is on the right;
attention is causal, so no real token ever sees it.

`_BL` is (trajectories of the micro-batch, longest of them), `_N` its trained tokens, flat.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from services.trainer.images import ImageSource
from services.trainer.loss import token_weights
from services.trainer.model import Policy
from services.trainer.sample import TrainingSample


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass needs."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    image_mask_BL: Tensor
    """Where an image feature replaces the placeholder's embedding."""
    pixel_values: Tensor
    """Patches of the distinct images, (patches, values per patch)."""
    grid_thw: Tensor
    """(distinct images, 3): frames, rows and columns of patches."""
    image_order: Tensor
    """Index of the distinct image behind every shown image, in reading order."""
    rows_N: Tensor
    columns_N: Tensor
    """Where each trained token stands."""
    trajectory_N: Tensor
    sampled_logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    """1 / (B · T_i), counted over the whole optimizer batch."""


def cut_batch(
    samples: Sequence[TrainingSample], size: int
) -> list[tuple[list[TrainingSample], list[float]]]:
    """Samples in runs of `size` with the token weight of each, counted before cutting."""
    weights = token_weights([sample.num_trained_tokens for sample in samples])
    return [
        (list(samples[start : start + size]), weights[start : start + size])
        for start in range(0, len(samples), size)
    ]


def collate(
    samples: Sequence[TrainingSample],
    weights: Sequence[float],
    images: ImageSource,
    *,
    image_token_id: int,
    device: torch.device,
    share_images: bool = True,
) -> MicroBatch:
    """Pad the samples to their longest and look up each distinct image once, or for each sample."""
    length = max(len(sample.input_ids) for sample in samples)
    input_ids_BL = torch.zeros(len(samples), length, dtype=torch.long)
    attention_mask_BL = torch.zeros(len(samples), length, dtype=torch.long)
    trained_BL = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, sample in enumerate(samples):
        num_tokens = len(sample.input_ids)
        input_ids_BL[row, :num_tokens] = torch.tensor(sample.input_ids)
        attention_mask_BL[row, :num_tokens] = 1
        trained_BL[row, :num_tokens] = torch.tensor(sample.loss_mask)
    shown = [span.image for sample in samples for span in sample.images]
    index_by_name = {name: index for index, name in enumerate(dict.fromkeys(shown))}
    order = [index_by_name[name] for name in shown] if share_images else range(len(shown))
    pixel_values, grid_thw = images.patches(list(index_by_name) if share_images else shown)
    rows_N, columns_N = trained_BL.nonzero(as_tuple=True)
    counts = torch.tensor([sample.num_trained_tokens for sample in samples])
    advantages = torch.tensor([sample.advantage for sample in samples])
    logprobs = [logprob for sample in samples for logprob in sample.sampled_logprobs]
    micro_batch = MicroBatch(
        input_ids_BL=input_ids_BL,
        attention_mask_BL=attention_mask_BL,
        image_mask_BL=(input_ids_BL == image_token_id) & attention_mask_BL.bool(),
        pixel_values=pixel_values,
        grid_thw=grid_thw,
        image_order=torch.tensor(order, dtype=torch.long),
        rows_N=rows_N,
        columns_N=columns_N,
        trajectory_N=torch.arange(len(samples)).repeat_interleave(counts),
        sampled_logprobs_N=torch.tensor(logprobs),
        advantages_N=advantages.repeat_interleave(counts),
        weights_N=torch.tensor(weights).repeat_interleave(counts),
    )
    return _to(micro_batch, device)


def _to(micro_batch: MicroBatch, device: torch.device) -> MicroBatch:
    if device.type == "cpu":
        return micro_batch
    return MicroBatch(
        **{name: getattr(micro_batch, name).to(device) for name in MicroBatch.__slots__}
    )


def padded_logprobs(policy: Policy, micro_batch: MicroBatch) -> Tensor:
    """ln π of every trained token given all before it, (N,)."""
    with policy._arithmetic():
        hidden_BLD = _hidden(policy, micro_batch)
    before_ND = hidden_BLD[micro_batch.rows_N, micro_batch.columns_N - 1]
    targets_N = micro_batch.input_ids_BL[micro_batch.rows_N, micro_batch.columns_N]
    return policy.token_logprobs(before_ND, targets_N)


def _hidden(policy: Policy, micro_batch: MicroBatch) -> Tensor:
    """Last hidden states (B, L, D); positions are transformers' own."""
    model = policy.model
    embeds_BLD = model.get_input_embeddings()(micro_batch.input_ids_BL)
    if len(micro_batch.image_order):
        distinct = model.model.get_image_features(
            micro_batch.pixel_values, micro_batch.grid_thw
        ).pooler_output
        shown = torch.cat([distinct[index] for index in micro_batch.image_order.tolist()])
        embeds_BLD = embeds_BLD.masked_scatter(
            micro_batch.image_mask_BL[..., None], shown.to(embeds_BLD.dtype)
        )
    position_ids, _ = model.model.get_rope_index(
        micro_batch.input_ids_BL,
        mm_token_type_ids=micro_batch.image_mask_BL.int(),
        image_grid_thw=micro_batch.grid_thw[micro_batch.image_order],
        attention_mask=micro_batch.attention_mask_BL,
    )
    return model.model.language_model(
        inputs_embeds=embeds_BLD,
        position_ids=position_ids,
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state


def wholly_in_float64(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """The policy without the float32 islands that transformers has in norms and vision rotation.

    There the sum of gradients is rounded before, and the gradients of a sum after: 1e-7 apart.
    """
    policy.double()
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm):
                norm = torch.nn.RMSNorm(len(child.weight), child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)

    def rotate(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        half = modeling_qwen2_5_vl.rotate_half
        return query * cos + half(query) * sin, key * cos + half(key) * sin

    monkeypatch.setattr(modeling_qwen2_5_vl, "apply_rotary_pos_emb_vision", rotate)
    return policy
