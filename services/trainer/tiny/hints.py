"""Auxiliary heads that show the base where to find what it must learn; thrown away afterwards.

Reading a pattern and telling a place are plateaus: from the gradient of the sampled words alone the
vision tower had not left chance after 140 steps. The hints see scenes only, so what the base knows
of phantoms is what carries over.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from services.trainer.tiny.scenes import Look, Scene

_CELL_PX = 14
_NUM_CELLS = 12
_TOKEN_PX = 28
_TOKENS_PER_SIDE = 6


class Hints(nn.Module):
    """Kind from a crop's image tokens; place from a view's image tokens and from the text model."""

    def __init__(self, hidden: int, num_kinds: int) -> None:
        super().__init__()
        self.per_token = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU())
        self.kind = nn.Linear(hidden, num_kinds)
        self.salience = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.cell = nn.Linear(hidden, 2 * _NUM_CELLS)

    def kind_logits(
        self, crops_NTH: torch.Tensor, looks: Sequence[tuple[Scene, Look]]
    ) -> torch.Tensor:
        """[N, num_kinds], from the image tokens of crops about where each crop shows the target.

        A mean over all tokens drowns the few that show the pattern: the tower had then not left
        chance after 130 steps.
        """
        weights_NT = torch.stack([_nearness(scene, look) for scene, look in looks])
        pooled_NH = torch.einsum("nt,nth->nh", weights_NT, self.per_token(crops_NTH))
        return self.kind(pooled_NH)

    def salience_loss(self, views_NTH: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        """Which image token of each view holds the target's centre: mean cross-entropy."""
        tokens = [
            min(int(y) // _TOKEN_PX, _TOKENS_PER_SIDE - 1) * _TOKENS_PER_SIDE
            + min(int(x) // _TOKEN_PX, _TOKENS_PER_SIDE - 1)
            for x, y in (scene.target for scene in scenes)
        ]
        return functional.cross_entropy(self.salience(views_NTH)[..., 0], torch.tensor(tokens))

    def place_loss(self, hidden_NH: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        """Column and row of the target from the text model's state before it first speaks."""
        cells = [
            [min(int(c) // _CELL_PX, _NUM_CELLS - 1) for c in scene.target] for scene in scenes
        ]
        logits = self.cell(hidden_NH).view(-1, _NUM_CELLS)
        return functional.cross_entropy(logits, torch.tensor(cells).flatten())

    def place_accuracy(self, hidden_NH: torch.Tensor, scenes: list[Scene]) -> float:
        """Share of targets whose column and row are both named within one cell."""
        named = self.cell(hidden_NH).view(-1, 2, _NUM_CELLS).argmax(-1)
        cells = torch.tensor([[int(c) // _CELL_PX for c in scene.target] for scene in scenes])
        return ((named - cells).abs() <= 1).all(-1).float().mean().item()


def _nearness(scene: Scene, look: Look) -> torch.Tensor:
    """Weight of every image token of a crop, falling off about the target; their sum is 1."""
    x1, y1, x2, y2 = look.bbox_2d
    step_x, step_y = (x2 - x1) / _TOKENS_PER_SIDE, (y2 - y1) / _TOKENS_PER_SIDE
    middles = torch.arange(_TOKENS_PER_SIDE) + 0.5
    off_x = middles - (scene.target[0] - x1) / step_x
    off_y = middles - (scene.target[1] - y1) / step_y
    squared = off_y[:, None] ** 2 + off_x[None, :] ** 2
    return torch.softmax(-squared.flatten() / 2, dim=0)
