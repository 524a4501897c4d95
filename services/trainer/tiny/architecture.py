# pyright: reportPrivateUsage=false
"""The model and processor of the tiny policy: ordinary Qwen2.5-VL classes with small numbers.

Nothing here is a variant of the architecture: patch embedding, vision blocks, merger, mRoPE and
text blocks are transformers' own, so vLLM serves the checkpoint unchanged. Every vision block
attends to the whole image (an image has 144 patches; windows would only add padding).
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from shared.geometry import PATCH_FACTOR_PX, PixelLimits

MIN_PIXELS = PATCH_FACTOR_PX**2
MAX_PIXELS = 448 * 448
"""The processor's own limits: wide, because zoom already renders every image at its final size.
Not wider, because vLLM warms up with the largest image they allow."""

VIEW_LIMITS = PixelLimits(min_pixels=168 * 168, max_pixels=168 * 168)
"""A 336-px original is shown at 168 px: 36 image tokens."""

CROP_LIMITS = PixelLimits(min_pixels=168 * 168, max_pixels=168 * 168)
"""A crop of 84 original px is enlarged twofold; a larger crop is seen no finer for its size."""

PATCH_PX = 14
_HEAD_DIM = 32
_ROPE_THETA = 8.0
"""Of the text model. mRoPE gives image columns the lowest of its frequencies: with the usual
10,000 one column of our 6x6 grids would turn the phase by 0.003, and no place could be told from
another; much less than 8 and the spelling of numbers suffers."""


def build_config(tokenizer: PreTrainedTokenizerFast, hidden: int = 128) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL with about two million parameters."""

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))  # pyright: ignore[reportArgumentType]

    vision_depth = 3
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": 4,
            "num_attention_heads": hidden // _HEAD_DIM,
            "num_key_value_heads": hidden // _HEAD_DIM // 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": _ROPE_THETA,
                "mrope_section": [2, 6, 8],
            },
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_heads": hidden // _HEAD_DIM,
            "patch_size": PATCH_PX,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 8 * PATCH_PX,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": list(range(vision_depth)),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model in fp32.

    Linear layers start at one over the root of their inputs: transformers' 0.02 suits widths of
    thousands, and at 128 it silences every gated product, which is what reads a fine pattern.
    """
    torch.manual_seed(seed)
    config._attn_implementation = "sdpa"
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                module.weight.normal_(0.0, module.in_features**-0.5)
        patches = model.model.visual.patch_embed.proj.weight
        patches.copy_(wave_filters(patches.shape[0], seed))
    return model


def wave_filters(num_filters: int, seed: int) -> torch.Tensor:
    """First patch filters: windowed waves in pairs of sine and cosine, [F, 3, 2, 14, 14].

    Frequencies are spread evenly over the plane up to a third of a cycle per pixel; the finer, the
    stronger, because the spectra of pictures fall as one over frequency. From noise the same
    filters are found too, but a thousand steps later.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:PATCH_PX, 0:PATCH_PX] - (PATCH_PX - 1) / 2
    edge = np.sqrt(np.hanning(PATCH_PX + 2)[1:-1])
    filters = np.zeros((num_filters, 3, 2, PATCH_PX, PATCH_PX))
    for pair in range(num_filters // 2):
        frequency = 0.33 * np.sqrt(rng.random())
        angle = np.pi * rng.random()
        tint = np.ones(3) if rng.random() < 0.8 else rng.normal(size=3)
        along = 2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle))
        for offset, wave in enumerate((np.cos(along), np.sin(along))):
            shaped = np.outer(edge, edge) * wave
            if frequency > 1 / PATCH_PX:
                shaped -= shaped.mean()
            strength = 2.33 * frequency + 0.05
            shaped *= strength / np.sqrt((shaped**2).sum() * 6)
            filters[2 * pair + offset] = tint[:, None, None, None] * shaped
    return torch.from_numpy(filters).float()


def save_processor(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Tokenizer, chat template and image processor files, as `AutoProcessor` expects them."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    limits = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    image_processor = Qwen2VLImageProcessor(
        size=limits, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, patch_size=PATCH_PX
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=limits, patch_size=PATCH_PX),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    image_processor.save_pretrained(folder)
