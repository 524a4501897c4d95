"""How the base is pre-trained: the numbers of the three stages (see pretrain.py)."""

from dataclasses import dataclass

PATCH_GRID_HW = (12, 12)
"""Patches of every picture a scene shows: 168 px of 14-px patches."""


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how fast."""

    num_steps: int
    scenes_per_step: int = 12
    peak_lr: float = 1.5e-3
    warmup_steps: int = 30
    vision_steps: int = 180
    """Steps before the others in which only the vision tower learns, from the hints."""
    vision_lr: float = 1e-3
    vision_crops_per_step: int = 48
    text_steps: int = 240
    """Steps after those in which only the text model learns."""
    text_looks_per_step: int = 48
    text_crops_per_step: int = 24
    num_text_scenes: int = 3000
    box_px: int = 42
    """Side of the boxes the scenes teach, in view pixels; likewise the two below."""
    grid_px: int = 7
    view_px: int = 168
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    hint_weight: float = 0.5
    """Of the vision hint's loss beside the policy's."""
    seed: int = 0
