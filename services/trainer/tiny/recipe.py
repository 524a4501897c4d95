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
    """Of the hints' losses beside the policy's."""
    is_vision_held: bool = False
    """Whether the vision tower stays as it is in the last stage too: a step costs half."""
    looks_per_scene: int | None = None
    """How many of a scene's looks a step takes, the imitated first; None: all."""
    seed: int = 0


def further_settings(num_steps: int, seed: int) -> PretrainSettings:
    """For going on from a checkpoint that can see: only what is said is learnt."""
    return PretrainSettings(
        num_steps=num_steps,
        scenes_per_step=24,
        vision_steps=0,
        text_steps=0,
        is_vision_held=True,
        looks_per_scene=1,
        seed=seed,
    )
