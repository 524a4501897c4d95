"""Floating-point operations of a step.

A multiplication by N weights is 2·N per token forward, and backward 4·N: 2 for the input, 2 for
the weights. So 6·N·tokens, with N the text blocks per token, the output head per trained token,
vision blocks per patch, the merger per image token; 4·N for the patch embedding, whose input needs
no gradient. Attention is 4·Q per pair
of token and key in every block forward, twice that backward. More forward passes come with

    gradient checkpointing   one, blocks only; the head likewise when its logits come in pieces
    β > 0                    one, of the reference; not of a frozen vision tower, it is the same
    updates_per_batch u > 1  one, for π_old; all the others u times

and frozen weights need no gradient: with LoRA 4·N for text and head, and 2·N for vision, which is
not adapted, as with freeze_vision (adapters themselves are left out, they are under a hundredth).

A causal sequence of T tokens has T²/2 pairs. In a tree a branch that leaves at h has
(T² − (p + h)²)/2 of its own, and the prompt its p²/2 once a group. An image of S patches has S²
pairs in a vision block that sees it whole, S · window otherwise.
"""

from dataclasses import dataclass, replace

from services.trainer.dry_run.shape import ModelShape
from services.trainer.dry_run.tokens import PATCHES_PER_TOKEN, StepTokens


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a step computes what it holds."""

    updates: int
    gradient_checkpointing: bool
    has_reference: bool
    lora: bool
    freeze_vision: bool
    logits_in_pieces: bool

    def flops(self, *, backward: float, recomputed: bool) -> float:
        """FLOPs per weight and input, 2 being one forward pass; `backward` is 0, 2 or 4."""
        forward = 2 * (1 + recomputed + self.has_reference) + backward
        return self.updates * forward + 2 * (self.updates > 1)


@dataclass(frozen=True, slots=True)
class Work:
    """What passes through the model in a step."""

    tokens: float
    trained_tokens: float
    token_pairs: float
    """Of a token and one it sees, itself counted half."""
    view_images: float
    crop_images: float


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of a step, over all processes."""

    text: float
    text_attention: float
    head: float
    vision: float
    vision_attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.text + self.text_attention + self.head + self.vision + self.vision_attention


def work_one_by_one(step: StepTokens) -> Work:
    """Every trajectory whole, with its own images."""
    return Work(
        tokens=step.step_tokens_one_by_one,
        trained_tokens=step.step_sampled_one_by_one,
        token_pairs=step.step_trajectories * step.tokens**2 / 2,
        view_images=step.step_trajectories,
        crop_images=step.step_images_one_by_one - step.step_trajectories,
    )


def work_tree(step: StepTokens) -> Work:
    """Every distinct token and image once."""
    prompt, whole = step.prompt_tokens, step.tokens
    base = step.group_size - step.branches_per_group
    forked = prompt + step.inherited_tokens
    pairs = prompt**2 + base * (whole**2 - prompt**2)
    pairs += step.branches_per_group * (whole**2 - forked**2)
    return Work(
        tokens=step.step_tokens_tree,
        trained_tokens=step.step_sampled_tree,
        token_pairs=step.groups_per_step * pairs / 2,
        view_images=step.groups_per_step,
        crop_images=step.step_images_tree - step.groups_per_step,
    )


def count_flops(shape: ModelShape, step: StepTokens, work: Work, passes: Passes) -> StepFlops:
    """FLOPs of that work."""
    text, vision = shape.text, shape.vision
    checkpointing = passes.gradient_checkpointing
    of_text = passes.flops(backward=2 if passes.lora else 4, recomputed=checkpointing)
    of_attention = passes.flops(backward=4, recomputed=checkpointing)
    of_head = passes.flops(backward=2 if passes.lora else 4, recomputed=passes.logits_in_pieces)
    frozen = passes.lora or passes.freeze_vision
    of_images = replace(passes, has_reference=passes.has_reference and not frozen)
    of_vision = of_images.flops(
        backward=0 if frozen else 4, recomputed=checkpointing and not frozen
    )
    view, crop = (PATCHES_PER_TOKEN * n for n in (step.view_tokens, step.crop_tokens))
    patches = work.view_images * view + work.crop_images * crop
    windowed = vision.num_blocks - shape.num_whole_blocks
    pairs = shape.num_whole_blocks * (work.view_images * view**2 + work.crop_images * crop**2)
    pairs += windowed * patches * (shape.window_patches or 0)
    of_pixels = of_images.flops(backward=0 if frozen else 2, recomputed=False)
    per_patch = vision.num_blocks * vision.parameters + shape.merger / PATCHES_PER_TOKEN
    return StepFlops(
        text=of_text * text.num_blocks * text.parameters * work.tokens,
        text_attention=2 * of_attention * text.num_blocks * text.query * work.token_pairs,
        head=of_head * shape.embedding * work.trained_tokens,
        vision=(of_vision * per_patch + of_pixels * shape.patch_embed) * patches,
        vision_attention=2 * of_vision * vision.query * pairs,
    )
