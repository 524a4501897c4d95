# pyright: basic
"""A pack of trees as the tensors of one forward pass.

`_L` is the pack's distinct tokens, `_U` those of them that are trained, `_N` the trained tokens of
all its trajectories, `_S` its image placeholders, `_F` the features of the bundle's images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.trainer.attention import TreeLayout, make_layout
from services.trainer.images import ImageSource
from services.trainer.packing import Bundle, Pack
from services.trainer.tree import Node


@dataclass(frozen=True, slots=True)
class PackTensors:
    """What one forward pass needs."""

    input_ids_L: Tensor
    positions_3L: Tensor
    layout: TreeLayout
    image_tokens_S: Tensor
    """Where an image feature replaces the placeholder's embedding."""
    features_S: Tensor
    """Which of the bundle's features, of F."""
    tokens_U: Tensor
    """Where each distinct trained token lies."""
    before_U: Tensor
    """Where the token before it on its path lies: its distribution is computed there."""
    distinct_N: Tensor
    """Which of U each trajectory's trained token is."""
    trajectory_N: Tensor
    """Which of the pack's trajectories it belongs to."""
    sampled_logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    """Normalisers, counted over the whole optimizer batch."""


@dataclass(frozen=True, slots=True)
class BundleImages:
    """The distinct images of a bundle."""

    pixel_values: Tensor
    """Patches, (patches, values per patch)."""
    grid_thw: Tensor
    """(images, 3): frames, rows and columns of patches."""
    rows_by_name: Mapping[str, range]
    """Where the features of each lie among F."""


def collect_images(bundle: Bundle, images: ImageSource, device: torch.device) -> BundleImages:
    """Each image of a bundle once."""
    spans = {span.image: span for pack in bundle for tree in pack for span in tree.images}
    ends = list(accumulate(span.size.num_image_tokens for span in spans.values()))
    pixel_values, grid_thw = images.patches(list(spans))
    return BundleImages(
        pixel_values=pixel_values.to(device),
        grid_thw=grid_thw.to(device),
        rows_by_name={
            name: range(end - span.size.num_image_tokens, end)
            for (name, span), end in zip(spans.items(), ends, strict=True)
        },
    )


def collate(
    pack: Pack,
    rows_by_name: Mapping[str, range],
    *,
    image_token_id: int,
    device: torch.device,
) -> PackTensors:
    """A pack's tensors; `rows_by_name` says where its images' features lie."""
    input_ids_L = torch.tensor([i for tree in pack for i in tree.input_ids])
    starts = [0, *accumulate(tree.num_tokens for tree in pack)]
    ends = [end + at for at, tree in zip(starts, pack, strict=False) for end in tree.subtree_end]
    layout = make_layout(_nodes(pack, starts), torch.tensor(ends, device=device))
    samples = [sample for tree in pack for sample in tree.samples]
    tokens_N, before_N = _trained(pack, starts)
    tokens_U, distinct_N = np.unique(tokens_N, return_inverse=True)
    before_U = np.empty_like(tokens_U)
    before_U[distinct_N] = before_N
    counts = torch.tensor([sample.num_trained_tokens for sample in samples])
    rows_S = [row for tree in pack for span in tree.images for row in rows_by_name[span.image]]
    tensors = PackTensors(
        input_ids_L=input_ids_L,
        positions_3L=torch.from_numpy(np.concatenate([t.positions_3L for t in pack], axis=1)),
        layout=layout,
        image_tokens_S=(input_ids_L == image_token_id).nonzero()[:, 0],
        features_S=torch.tensor(rows_S, dtype=torch.long),
        tokens_U=torch.from_numpy(tokens_U),
        before_U=torch.from_numpy(before_U),
        distinct_N=torch.from_numpy(distinct_N),
        trajectory_N=torch.arange(len(samples)).repeat_interleave(counts),
        sampled_logprobs_N=torch.tensor([x for s in samples for x in s.sampled_logprobs]),
        advantages_N=torch.tensor([s.advantage for s in samples]).repeat_interleave(counts),
        weights_N=torch.tensor([s.token_weight for s in samples]).repeat_interleave(counts),
    )
    return _to(tensors, device)


def _nodes(pack: Pack, starts: Sequence[int]) -> list[Node]:
    """The nodes of all trees, one tree after the other."""
    nodes: list[Node] = []
    for start, tree in zip(starts, pack, strict=False):
        num_before = len(nodes)
        nodes += [
            Node(
                node.start + start,
                node.end + start,
                None if node.parent is None else node.parent + num_before,
            )
            for node in tree.nodes
        ]
    return nodes


def _trained(pack: Pack, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where every trajectory's trained tokens, and the tokens before them, lie."""
    tokens: list[np.ndarray] = []
    before: list[np.ndarray] = []
    for start, tree in zip(starts, pack, strict=False):
        for sample, path in zip(tree.samples, tree.paths, strict=True):
            trained = np.flatnonzero(sample.loss_mask)
            tokens.append(path[trained] + start)
            before.append(path[trained - 1] + start)
    return np.concatenate(tokens), np.concatenate(before)


def _to(tensors: PackTensors, device: torch.device) -> PackTensors:
    if device.type == "cpu":
        return tensors
    held: dict[str, Any] = {f.name: getattr(tensors, f.name) for f in fields(PackTensors)}
    moved: dict[str, Any] = {
        n: v.to(device) if isinstance(v, Tensor) else v for n, v in held.items()
    }
    return PackTensors(**moved)
