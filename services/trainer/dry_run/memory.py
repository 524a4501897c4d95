"""Memory of one process, in bytes, at the fullest moment of a step.

N parameters, P of them trained, W processes under full sharding, s bytes a number in the forward
pass (4, or 2 in bfloat16), L tokens and V patches computed at once; D, F, Q, K, H of `BlockShape`.

Always held, each divided by W, and in host memory with cpu_offload:

    weights     4·N         float32; with LoRA  s·N + 4·P,  because frozen weights have no small
                            updates to lose in bfloat16
    gradients   4·P         P = N; without a frozen tower's; with LoRA r · Σ (in + out) over the
                            linear layers of the text blocks
    AdamW       8·P         two moments (its step counters, 4 bytes a tensor, are left out)
    reference   4·N         if β > 0; none with LoRA, whose base is the reference

Activations, what autograd keeps until the backward pass; measured on the CPU, tensor by tensor.
Of a text block per token, and of a vision block per patch:

    float32     4 · (6D + 2Q + 2K + 4F + H)              4 · (13D + 4F + H)
    bfloat16    16D + 2 · (5D + 2Q + 2K + 4F) + 4H       8D + 2 · (12D + 4F) + 4H

(norms keep their input in float32; attention keeps queries, keys, values, output and one number a
head, not its scores; autocast casts an input once for every layer that reads it). Beside the
blocks: 12D per token (float32; else 10D) for embeddings and the last norm, (4 + s) · values of a
patch (the s only as a copy in bfloat16), and 5·s·D per patch in the merger. With gradient
checkpointing a block keeps its input alone: 4D per token, s·D per patch. A frozen vision
tower (LoRA, freeze_vision) keeps nothing but its pixels.

Copies: autocast keeps a bfloat16 copy of every multiplied weight, 2 bytes each, until the backward
pass (W = 1, no LoRA). Under full sharding instead the root (embedding, head, merger) and two text
blocks are gathered in s, with gradients of the root and one block. Then, whichever is largest:

    logits      16 · trained tokens · vocabulary      at most `LOGITS_AT_ONCE` of them
    head        4 · the same + (4, or 6 in bfloat16) · parameters of the embedding
    block       with checkpointing: a block's activations and 2·s·F per token or patch

Left out: CUDA's context and fragmentation (allow 2 GiB and a tenth), images that wait as 8-bit
pixels, masks and gathered paths of attention on CPU, and longer trajectories than the mean.
"""

from dataclasses import dataclass

from services.trainer.dry_run.shape import BlockShape, ModelShape
from services.trainer.dry_run.tokens import AtOnce

FLOAT32_BYTES = 4
BFLOAT16_BYTES = 2
LOGIT_BYTES = 16
"""Logits, masked logits, and two gradients of them."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """How it is computed."""

    number_bytes: int
    """s."""
    gradient_checkpointing: bool
    has_reference: bool
    world_size: int
    """W."""
    lora_rank: int
    """r; 0 trains all parameters."""
    freeze_vision: bool
    """Without LoRA; with it the tower is frozen anyway."""
    logits_at_once: int
    """Bound on the logits that exist together."""

    @property
    def is_vision_frozen(self) -> bool:
        """Whether the vision tower keeps nothing for a backward pass."""
        return self.freeze_vision or self.lora_rank > 0


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of one process."""

    weights: int
    gradients: int
    moments: int
    reference: int
    activations: int
    copies: int
    """bfloat16 copies of the weights, or gathered shards."""
    logits: int
    """Of one piece; part of `working`."""
    working: int
    """The largest of what is held only for a moment."""

    @property
    def held(self) -> int:
        """From step to step."""
        return self.weights + self.gradients + self.moments + self.reference

    @property
    def peak(self) -> int:
        """At the fullest moment."""
        return self.held + self.activations + self.copies + self.working


def trained_parameters(shape: ModelShape, how: MemorySettings) -> int:
    """P."""
    if how.lora_rank:
        return how.lora_rank * shape.adapted_widths
    return shape.parameters - how.freeze_vision * shape.vision_parameters


def estimate_memory(shape: ModelShape, at_once: AtOnce, how: MemorySettings) -> MemoryEstimate:
    """What one process holds."""
    trained = trained_parameters(shape, how)
    weights = FLOAT32_BYTES * shape.parameters
    if how.lora_rank:
        weights = how.number_bytes * shape.parameters + FLOAT32_BYTES * trained
    has_own_reference = how.has_reference and not how.lora_rank
    copies, cast = _copies(shape, how)
    logits = min(at_once.sampled_tokens * shape.vocabulary, how.logits_at_once)
    working = [LOGIT_BYTES * logits, cast, _block(shape, at_once, how)]
    if not how.lora_rank:
        in_flight = FLOAT32_BYTES + _half(how) * BFLOAT16_BYTES
        working.append(FLOAT32_BYTES * logits + in_flight * shape.embedding)
    return MemoryEstimate(
        weights=_ceil(weights / how.world_size),
        gradients=_ceil(FLOAT32_BYTES * trained / how.world_size),
        moments=_ceil(2 * FLOAT32_BYTES * trained / how.world_size),
        reference=_ceil(has_own_reference * FLOAT32_BYTES * shape.parameters / how.world_size),
        activations=_ceil(
            at_once.tokens * text_activation_bytes(shape, how)
            + at_once.patches * vision_activation_bytes(shape, how)
        ),
        copies=copies,
        logits=_ceil(LOGIT_BYTES * logits),
        working=_ceil(max(working)),
    )


def text_activation_bytes(shape: ModelShape, how: MemorySettings) -> float:
    """Per token, all text blocks."""
    blocks, text = how.number_bytes, shape.text
    per_block = FLOAT32_BYTES * text.hidden
    if not how.gradient_checkpointing:
        per_block = text_block_bytes(text, blocks)
    return text.num_blocks * per_block + (10 if _half(how) else 12) * text.hidden


def vision_activation_bytes(shape: ModelShape, how: MemorySettings) -> float:
    """Per patch, all vision blocks, patch embedding and merger."""
    vision, number = shape.vision, how.number_bytes
    if how.is_vision_frozen:
        return FLOAT32_BYTES * shape.patch_values
    per_block = number * vision.hidden
    if not how.gradient_checkpointing:
        per_block = vision_block_bytes(vision, number)
    patch = shape.patch_values * (FLOAT32_BYTES + _half(how) * number)
    return vision.num_blocks * per_block + patch + 5 * number * vision.hidden


def text_block_bytes(block: BlockShape, number_bytes: int) -> int:
    """Per token, one text block, without checkpointing."""
    inner = 2 * block.query + 2 * block.key + 4 * block.intermediate
    if number_bytes == FLOAT32_BYTES:
        return 4 * (6 * block.hidden + inner + block.heads)
    return 16 * block.hidden + 2 * (5 * block.hidden + inner) + 4 * block.heads


def vision_block_bytes(block: BlockShape, number_bytes: int) -> int:
    """Per patch, one vision block, without checkpointing."""
    if number_bytes == FLOAT32_BYTES:
        return 4 * (13 * block.hidden + 4 * block.intermediate + block.heads)
    inner = 12 * block.hidden + 4 * block.intermediate
    return 8 * block.hidden + 2 * inner + 4 * block.heads


def _block(shape: ModelShape, at_once: AtOnce, how: MemorySettings) -> float:
    """The block that is recomputed in the backward pass."""
    if not how.gradient_checkpointing:
        return 0.0
    number, text, vision = how.number_bytes, shape.text, shape.vision
    of_text = text_block_bytes(text, number) + 2 * number * text.intermediate
    of_vision = vision_block_bytes(vision, number) + 2 * number * vision.intermediate
    return max(at_once.tokens * of_text, 0 if how.is_vision_frozen else at_once.patches * of_vision)


def _copies(shape: ModelShape, how: MemorySettings) -> tuple[int, int]:
    """Copies of weights until the backward pass, and those of the forward pass alone."""
    if how.world_size > 1:
        block = shape.text.parameters
        of_blocks = (
            shape.text.num_blocks * block + shape.vision.num_blocks * shape.vision.parameters
        )
        root = shape.parameters - of_blocks
        gradients = 0 if how.lora_rank else root + block
        return how.number_bytes * (root + 2 * block + gradients), 0
    if not _half(how) or how.lora_rank:
        return 0, 0
    copied = BFLOAT16_BYTES * shape.multiplied
    return (0, copied) if how.gradient_checkpointing else (copied, 0)


def _half(how: MemorySettings) -> bool:
    return how.number_bytes == BFLOAT16_BYTES


def _ceil(num_bytes: float) -> int:
    return int(-(-num_bytes // 1))
