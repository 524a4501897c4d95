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

    def view_salience_loss(self, views_NTH: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
        """Which image token of each view holds the target's centre: mean cross-entropy."""
        places = [(x / _TOKEN_PX, y / _TOKEN_PX) for x, y in (scene.target for scene in scenes)]
        return self._salience_loss(views_NTH, places)

    def crop_salience_loss(
        self, crops_NTH: torch.Tensor, looks: Sequence[tuple[Scene, Look]]
    ) -> torch.Tensor:
        """The same in crops that show the target: what is salient looks alike in both."""
        return self._salience_loss(crops_NTH, [_place_in_crop(s, look) for s, look in looks])

    def _salience_loss(
        self, pictures_NTH: torch.Tensor, places: Sequence[tuple[float, float]]
    ) -> torch.Tensor:
        last = _TOKENS_PER_SIDE - 1
        tokens = [min(int(y), last) * _TOKENS_PER_SIDE + min(int(x), last) for x, y in places]
        return functional.cross_entropy(self.salience(pictures_NTH)[..., 0], torch.tensor(tokens))

    def place_loss(self, hidden_NH: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
        """Column and row of the target from the text model's state before it first speaks."""
        cells = [
            [min(int(c) // _CELL_PX, _NUM_CELLS - 1) for c in scene.target] for scene in scenes
        ]
        logits = self.cell(hidden_NH).view(-1, _NUM_CELLS)
        return functional.cross_entropy(logits, torch.tensor(cells).flatten())

    def place_accuracy(self, hidden_NH: torch.Tensor, scenes: Sequence[Scene]) -> float:
        """Share of targets whose column and row are both named within one cell."""
        named = self.cell(hidden_NH).view(-1, 2, _NUM_CELLS).argmax(-1)
        cells = torch.tensor([[int(c) // _CELL_PX for c in scene.target] for scene in scenes])
        return ((named - cells).abs() <= 1).all(-1).float().mean().item()


def _place_in_crop(scene: Scene, look: Look) -> tuple[float, float]:
    """Column and row of the target's centre in a crop, in image tokens."""
    x1, y1, x2, y2 = look.bbox_2d
    column = (scene.target[0] - x1) / (x2 - x1) * _TOKENS_PER_SIDE
    return column, (scene.target[1] - y1) / (y2 - y1) * _TOKENS_PER_SIDE


def _nearness(scene: Scene, look: Look) -> torch.Tensor:
    """Weight of every image token of a crop, falling off about the target; their sum is 1."""
    column, row = _place_in_crop(scene, look)
    middles = torch.arange(_TOKENS_PER_SIDE) + 0.5
    squared = (middles[:, None] - row) ** 2 + (middles[None, :] - column) ** 2
    return torch.softmax(-squared.flatten() / 2, dim=0)
