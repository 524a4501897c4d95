# pyright: basic
"""Attention over trees of tokens: each token sees its path and nothing else.

On CPU, node by node: the tokens of a node attend to the nodes before them on their path and,
causally, to themselves. A mask over a whole tree would be computed whole, sixteen trajectories
times sixteen; this costs what the trajectories alone cost, and a shared node only once. The
backward pass attends again instead of keeping every node's scores. On CUDA it is FlexAttention
with a block mask of the same rule, k ≤ q < subtree_end[k].

Registered with transformers under `NAME`; without a layout it is transformers' own sdpa attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from services.trainer.tree import Node

NAME = "medvr_tree"

_Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Which token of a pack sees which."""

    paths: list[_Ranges]
    """For every node: the runs of tokens before it on its path, and its own as the last."""
    masks: list[Tensor | None]
    """For every node (queries, keys): true where seen; None where plain causality does."""
    block_mask: Any = None
    """FlexAttention's, on CUDA; then the others are not used."""


def make_layout(nodes: Sequence[Node], subtree_end_L: Tensor) -> TreeLayout:
    """The layout of the nodes of trees in a row, on the device of `subtree_end_L`."""
    if subtree_end_L.device.type == "cuda":
        return TreeLayout([], [], _block_mask(subtree_end_L))
    paths: list[_Ranges] = []
    masks: list[Tensor | None] = []
    for node in nodes:
        before = [] if node.parent is None else paths[node.parent]
        num_before = sum(end - start for start, end in before)
        num_own = node.end - node.start
        paths.append(_with(before, node.start, node.end))
        mask = None
        if before:
            mask = torch.ones(num_own, num_before + num_own, dtype=torch.bool).tril(num_before)
        masks.append(mask)
    return TreeLayout(paths, masks)


def _with(ranges: _Ranges, start: int, end: int) -> _Ranges:
    """One more run, joined to the last where it goes on."""
    if ranges and ranges[-1][1] == start:
        return [*ranges[:-1], (ranges[-1][0], end)]
    return [*ranges, (start, end)]


def _block_mask(subtree_end_L: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end_L[key])

    length = len(subtree_end_L)
    return create_block_mask(sees, None, None, length, length, device=str(subtree_end_L.device))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
    )


def _taken(values_HLD: Tensor, ranges: _Ranges) -> Tensor:
    """The tokens of some runs, (1, H, tokens, D)."""
    pieces = [values_HLD[:, start:end] for start, end in ranges]
    taken = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return taken[None]


class _NodeByNode(torch.autograd.Function):
    """Attention along the paths of a layout; query, key and value are (H, L, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale = layout, scale
        attended = torch.empty_like(query)
        for ranges, mask in zip(layout.paths, layout.masks, strict=True):
            own = _own(ranges, mask)
            attended[:, own] = _attend(
                query[None, :, own], _taken(key, ranges), _taken(value, ranges), mask, scale
            )[0]
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for ranges, mask in zip(ctx.layout.paths, ctx.layout.masks, strict=True):
            own = _own(ranges, mask)
            inputs = [
                t.detach().requires_grad_()
                for t in (query[None, :, own], _taken(key, ranges), _taken(value, ranges))
            ]
            with torch.enable_grad():
                attended = _attend(*inputs, mask, ctx.scale)
            of_query, *of_others = torch.autograd.grad(attended, inputs, grad[None, :, own])
            grads[0][:, own] = of_query[0]
            for total, of_other in zip(grads[1:], of_others, strict=True):
                at = 0
                for start, end in ranges:
                    total[:, start:end] += of_other[0, :, at : at + end - start]
                    at += end - start
        return *grads, None, None


def _own(ranges: _Ranges, mask: Tensor | None) -> slice:
    """A node's own tokens: the end of the last run of its path."""
    end = ranges[-1][1]
    num_own = end - ranges[-1][0] if mask is None else len(mask)
    return slice(end - num_own, end)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeLayout | Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, L, D) in, (1, L, H, D) out."""
    if not isinstance(attention_mask, TreeLayout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if attention_mask.block_mask is not None:
        return flex_attention_forward(
            module, query, key, value, attention_mask.block_mask, scaling=scaling, **kwargs
        )
    repeats = query.shape[1] // key.shape[1]
    attended = _NodeByNode.apply(
        query[0],
        key[0].repeat_interleave(repeats, dim=0),
        value[0].repeat_interleave(repeats, dim=0),
        attention_mask,
        scaling,
    )
    return attended.transpose(0, 1)[None], None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
