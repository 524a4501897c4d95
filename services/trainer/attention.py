# pyright: basic
"""Attention over trees of tokens: each token sees its path and nothing else.

On CPU by nodes: the tokens of a node attend to the nodes before them on their path and, causally,
to themselves. A mask over a whole tree would be computed whole, sixteen trajectories times sixteen;
this costs what the trajectories alone cost, and a shared node only once. Nodes of about the same
size are computed together. The backward pass attends again instead of keeping scores. On CUDA it
is FlexAttention with a block mask of the same rule, k ≤ q < subtree_end[k].

Registered with transformers under `NAME`; without a layout it is transformers' own sdpa attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from services.trainer.tree import Node

NAME = "medvr_tree"

_MOST_PADDING = 1.25
"""Scores of padded nodes over scores of the nodes alone, at most."""
_FREE_SCORES = 4096
"""And so many more, because a call costs something too."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes that are computed together, padded to the longest of them."""

    queries_BQ: Tensor
    """Tokens of each node; padding repeats its last."""
    keys_BK: Tensor
    """Tokens of its path up to its own last; padding repeats that."""
    sees_B1QK: Tensor
    """Which query sees which key; a padded query as much as the one it repeats."""
    is_query_BQ: Tensor
    """False where padded."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Which token of a pack sees which."""

    nodes: list[Nodes]
    """On CPU; each token is a query once."""
    block_mask: Any = None
    """On CUDA, FlexAttention's."""


def make_layout(nodes: Sequence[Node], subtree_end_L: Tensor) -> TreeLayout:
    """The layout of the nodes of trees in a row, on the device of `subtree_end_L`."""
    if subtree_end_L.device.type == "cuda":
        return TreeLayout([], _block_mask(subtree_end_L))
    paths: list[np.ndarray] = []
    for node in nodes:
        before = paths[node.parent] if node.parent is not None else np.empty(0, np.int64)
        paths.append(np.concatenate((before, np.arange(node.start, node.end))))
    return TreeLayout(
        [
            _padded([nodes[i] for i in chosen], [paths[i] for i in chosen])
            for chosen in alike(
                [(n.end - n.start, len(p)) for n, p in zip(nodes, paths, strict=True)]
            )
        ]
    )


def alike(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of nodes, given as (queries, keys), in groups that padding makes little larger."""
    groups: list[list[int]] = []
    largest, area = (0, 0), 0
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i][::-1], reverse=True):
        size = sizes[index]
        padded = max(largest[0], size[0]), max(largest[1], size[1])
        num = len(groups[-1]) + 1 if groups else 1
        grown = area + size[0] * size[1]
        if groups and num * padded[0] * padded[1] <= _MOST_PADDING * grown + _FREE_SCORES:
            groups[-1].append(index)
            largest, area = padded, grown
        else:
            groups.append([index])
            largest, area = size, size[0] * size[1]
    return groups


def _padded(nodes: Sequence[Node], paths: Sequence[np.ndarray]) -> Nodes:
    num_own = torch.tensor([node.end - node.start for node in nodes])
    num_keys = torch.tensor([len(path) for path in paths])
    most_own, most_keys = int(num_own.max()), int(num_keys.max())
    place_BQ = torch.arange(most_own).minimum(num_own[:, None] - 1)
    keys_BK = torch.stack(
        [torch.from_numpy(np.pad(p, (0, most_keys - len(p)), mode="edge")) for p in paths]
    )
    seen_BQ = (num_keys - num_own)[:, None] + place_BQ
    return Nodes(
        queries_BQ=torch.tensor([node.start for node in nodes])[:, None] + place_BQ,
        keys_BK=keys_BK,
        sees_B1QK=(torch.arange(most_keys) <= seen_BQ[..., None])[:, None],
        is_query_BQ=torch.arange(most_own) < num_own[:, None],
    )


def _block_mask(subtree_end_L: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end_L[key])

    length = len(subtree_end_L)
    return create_block_mask(sees, None, None, length, length, device=str(subtree_end_L.device))


def _attend(
    query_LHD: Tensor, key_LHD: Tensor, value_LHD: Tensor, nodes: Nodes, scale: float
) -> Tensor:
    """What the nodes' own tokens attend to, (tokens, H, D)."""
    query, key, value = (
        values_LHD[tokens].transpose(1, 2)
        for values_LHD, tokens in (
            (query_LHD, nodes.queries_BQ),
            (key_LHD, nodes.keys_BK),
            (value_LHD, nodes.keys_BK),
        )
    )
    attended_BHQD = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=nodes.sees_B1QK, scale=scale, enable_gqa=True
    )
    return attended_BHQD.transpose(1, 2)[nodes.is_query_BQ]


class _ByNodes(torch.autograd.Function):
    """Attention along the paths of a layout; query, key and value are (L, H, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale = layout, scale
        attended = torch.empty_like(query)
        for nodes in layout.nodes:
            own = nodes.queries_BQ[nodes.is_query_BQ]
            attended[own] = _attend(query, key, value, nodes, scale)
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        inputs = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        for nodes in ctx.layout.nodes:
            own = nodes.queries_BQ[nodes.is_query_BQ]
            with torch.enable_grad():
                attended = _attend(inputs[0], inputs[1], inputs[2], nodes, ctx.scale)
            attended.backward(grad[own])
        query, key, value = (given.grad for given in inputs)
        return query, key, value, None, None


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
    states = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    attended_LHD = _ByNodes.apply(*states, attention_mask, scaling)
    return attended_LHD[None], None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
