"""FlexAttention's block mask, which is what CUDA computes with, against attention by nodes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from services.trainer.attention import block_layout, make_layout, tree_attention
from services.trainer.model import Policy
from services.trainer.sample import build_group
from services.trainer.tree import Node, build_tree
from tests.trainer.groups import GroupBuilder

CPU = torch.device("cpu")


def test_the_block_mask_gives_what_attention_by_nodes_gives(
    checkpoint: Path, builder: GroupBuilder
) -> None:
    """Eager and forwards only: all of FlexAttention that runs without a card or a compiler."""
    limits = Policy.load(checkpoint, CPU).limits
    larger = replace(builder, shown_px=168)  # longer than a block of the mask
    trees = [
        build_tree(
            build_group(larger.group(seed, totals=(1.0, 0.0, 1.0), zooms=(2, 1, 0)), limits,
                        divide=True).samples,
            limits.image_token_id,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    second = trees[0].num_tokens
    nodes = trees[0].nodes + [
        Node(n.start + second, n.end + second, n.parent and n.parent + len(trees[0].nodes))
        for n in trees[1].nodes
    ]
    ends = torch.tensor([*trees[0].subtree_end, *(e + second for e in trees[1].subtree_end)])
    assert len(ends) > 2 * 128
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, len(ends), 16)
    by_nodes, _ = tree_attention(None, query, key, value, make_layout(nodes, ends), 0.25)
    with pytest.warns(UserWarning, match="without torch.compile"):
        by_blocks = flex_attention(
            query, key, value, block_mask=block_layout(ends).block_mask, scale=0.25
        )
    torch.testing.assert_close(by_nodes.transpose(1, 2), by_blocks, atol=1e-5, rtol=1e-5)
