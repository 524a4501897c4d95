# pyright: basic
"""Attention over trees of tokens: each token sees its path and nothing else.

On CPU by nodes: the keys of a node are seen by its own tokens, causally, and by all tokens below
it, which lie right after them. So a node takes two calls without mask or padding, and no key is
copied. What a token has seen of one node after the other is put together by the sums of its
exponentiated scores: with l = ln Σ exp(score) of each part, the whole is the mean of the parts
weighted by exp l. The backward pass of a part needs the l and the output of the whole, which are
kept, and not the scores. On CUDA it is FlexAttention with a block mask of the same rule,
k ≤ q < subtree_end[k].

Registered with transformers under `NAME`; without a layout it is transformers' own sdpa attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from services.trainer.tree import Node

NAME = "medvr_tree"

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""What `scaled_dot_product_attention` calls on CPU; it does not hand out l itself."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Which token of a pack sees which."""

    parts: list[tuple[slice, slice, bool]]
    """On CPU: queries, the keys that all of them see, and whether only causally.

    In an order in which each token comes first with the root of its tree."""
    block_mask: Any = None
    """On CUDA, FlexAttention's."""


def make_layout(nodes: Sequence[Node], subtree_end_L: Tensor) -> TreeLayout:
    """The layout of the nodes of trees in a row, on the device of `subtree_end_L`."""
    if subtree_end_L.device.type == "cuda":
        return block_layout(subtree_end_L)
    parts: list[tuple[slice, slice, bool]] = []
    for node in nodes:
        own, last = slice(node.start, node.end), int(subtree_end_L[node.start])
        parts.append((own, own, True))
        if last > node.end:
            parts.append((slice(node.end, last), own, False))
    return TreeLayout(parts)


def block_layout(subtree_end_L: Tensor) -> TreeLayout:
    """The layout for FlexAttention."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end_L[key])

    length = len(subtree_end_L)
    device = str(subtree_end_L.device)
    return TreeLayout([], create_block_mask(sees, None, None, length, length, device=device))


class _ByNodes(torch.autograd.Function):
    """Attention along the paths of a layout; query, key and value are (H, L, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float
    ) -> Tensor:
        seen_HLD, sums_HL = None, None
        for queries, keys, is_causal in layout.parts:
            part_HQD, part_HQ = (
                found[0]
                for found in _flash(
                    query[None, :, queries],
                    key[None, :, keys],
                    value[None, :, keys],
                    0.0,
                    is_causal,
                    scale=scale,
                )
            )
            if seen_HLD is None or sums_HL is None:
                seen_HLD = query.new_zeros(query.shape, dtype=part_HQ.dtype)
                sums_HL = part_HQ.new_full(query.shape[:2], float("-inf"))
            _merge(seen_HLD[:, queries], sums_HL[:, queries], part_HQD, part_HQ)
        assert seen_HLD is not None
        attended = seen_HLD.to(query.dtype)
        ctx.save_for_backward(query, key, value, attended, sums_HL)
        ctx.layout, ctx.scale = layout, scale
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, attended, sums_HL = ctx.saved_tensors
        grads = [torch.zeros_like(given) for given in (query, key, value)]
        for queries, keys, is_causal in ctx.layout.parts:
            parts = _flash_backward(
                grad[None, :, queries],
                query[None, :, queries],
                key[None, :, keys],
                value[None, :, keys],
                attended[None, :, queries],
                sums_HL[None, :, queries],
                0.0,
                is_causal,
                scale=ctx.scale,
            )
            for total, part, at in zip(grads, parts, (queries, keys, keys), strict=True):
                total[:, at] += part[0]
        return grads[0], grads[1], grads[2], None, None


def _merge(seen_HQD: Tensor, sums_HQ: Tensor, part_HQD: Tensor, part_HQ: Tensor) -> None:
    """Add what the same queries see of other keys, in place."""
    both_HQ = torch.logaddexp(sums_HQ, part_HQ)
    seen_HQD *= (sums_HQ - both_HQ).exp_()[..., None]
    seen_HQD += part_HQD * (part_HQ - both_HQ).exp_()[..., None]
    sums_HQ.copy_(both_HQ)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeLayout | Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: (1, H, L, D) in, (1, L, H, D) out."""
    if not isinstance(attention_mask, TreeLayout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if attention_mask.block_mask is not None:
        return flex_attention_forward(
            module, query, key, value, attention_mask.block_mask, scaling=scaling, **kwargs
        )
    # Under autocast the rotation leaves queries and keys wider than values.
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    query, key, value = (states[0].to(value.dtype) for states in (query, key, value))
    attended_HLD = _ByNodes.apply(query, key, value, attention_mask, scaling)
    return attended_HLD.transpose(0, 1)[None], None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
