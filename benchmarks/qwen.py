"""Qwen2.5-VL in its published sizes, with random weights: what a step costs asks for no others.

The numbers are those of the public `config.json` files. The special tokens are the tiny
tokenizer's, whose ids any larger vocabulary has too, so nothing is downloaded.
"""

from enum import StrEnum
from typing import Any

import torch

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers import (  # noqa: E402 - the operators must be declared first
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from services.trainer.tiny.architecture import build_config  # noqa: E402


class Size(StrEnum):
    """How large."""

    TINY = "tiny"
    QWEN_3B = "3b"
    QWEN_7B = "7b"


_TEXT: dict[Size, dict[str, Any]] = {
    Size.QWEN_3B: {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    Size.QWEN_7B: {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
_ALL_TEXT = {
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1_000_000.0,
        "mrope_section": [16, 24, 24],
    },
    "use_sliding_window": False,
}
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def config_of(size: Size, tokenizer: Any) -> Qwen2_5_VLConfig:
    """The architecture of a size, for texts of the tiny tokenizer."""
    tiny = build_config(tokenizer)
    if size is Size.TINY:
        return tiny
    text = {**_TEXT[size], **_ALL_TEXT}
    return Qwen2_5_VLConfig(
        text_config={**text, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        vision_config={**_VISION, "out_hidden_size": text["hidden_size"]},
        image_token_id=tiny.image_token_id,
        video_token_id=tiny.video_token_id,
        vision_start_token_id=tiny.vision_start_token_id,
        vision_end_token_id=tiny.vision_end_token_id,
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def random_model(
    config: Qwen2_5_VLConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Qwen2_5_VLForConditionalGeneration:
    """Freshly initialised on the device itself, in this width: no copy anywhere else."""
    torch.manual_seed(seed)
    config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)
