"""A checkpoint with Qwen2.5-VL-7B's configuration, shrunk only in width and depth.

What stays: 152,064 rows of embedding and of an untied head, rope theta, the proportions of the
mRoPE sections, grouped queries, patches, merging, windowed vision blocks with every last one of a
stretch attending to the whole image, epsilon, context. Random weights from a seed, then a few
hundred supervised steps on the conversation's form (warmup.py): a random policy never calls a
tool. It has learnt nothing about images.
"""

from pathlib import Path

import msgspec
import torch

from shared.agent.tools import ZOOM_IN
from shared.geometry import PATCH_FACTOR_PX, PixelLimits
from shared.weights import POLICY_MANIFEST, PolicyManifest
from tests.realvocab.vocabulary import CHAT_TEMPLATE, NUM_ROWS, TOKEN_IDS, build_tokenizer

from transformers import (  # isort: skip - the vocabulary has declared torchvision's operators
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

HEAD_DIM = 32
HIDDEN = 64
VIEW_LIMITS = PixelLimits(min_pixels=112 * 112, max_pixels=168 * 168)
CROP_LIMITS = PixelLimits(min_pixels=84 * 84, max_pixels=112 * 112)
PROCESSOR_LIMITS = PixelLimits(min_pixels=4 * PATCH_FACTOR_PX**2, max_pixels=448 * 448)
"""4 tokens are Qwen's least. Its most, 16,384, is not kept: vLLM warms up with such an image."""


def build_config() -> Qwen2_5_VLConfig:
    """The configuration of Qwen2.5-VL-7B with small widths and few layers."""
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={
            "vocab_size": NUM_ROWS,
            "hidden_size": HIDDEN,
            "intermediate_size": 320,
            "num_hidden_layers": 2,
            "num_attention_heads": HIDDEN // HEAD_DIM,
            "num_key_value_heads": 1,
            "hidden_act": "silu",
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [n * HEAD_DIM // 128 for n in (16, 24, 24)],
            },
            "use_sliding_window": False,
            "max_window_layers": 28,
            "tie_word_embeddings": False,
            "bos_token_id": TOKEN_IDS["<|endoftext|>"],
            "eos_token_id": TOKEN_IDS["<|im_end|>"],
            "pad_token_id": TOKEN_IDS["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": HIDDEN,
            "intermediate_size": 168,
            "num_heads": HIDDEN // HEAD_DIM,
            "hidden_act": "silu",
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [3],
            "out_hidden_size": HIDDEN,
        },
        image_token_id=TOKEN_IDS["<|image_pad|>"],
        video_token_id=TOKEN_IDS["<|video_pad|>"],
        vision_start_token_id=TOKEN_IDS["<|vision_start|>"],
        vision_end_token_id=TOKEN_IDS["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, spread so that every part of so narrow a model is heard."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config()).float()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                module.weight.normal_(0.0, module.in_features**-0.5)
        model.get_input_embeddings().weight.normal_(0.0, 0.5)
        model.lm_head.weight.normal_(0.0, 0.02)
    return model


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """An ordinary HF folder with `medvr.json`."""
    model.save_pretrained(folder)
    limits = PROCESSOR_LIMITS
    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    images = Qwen2VLImageProcessor(size=size)
    Qwen2_5_VLProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    images.save_pretrained(folder)
    manifest = PolicyManifest(
        format=1,
        name="qwen-vocabulary",
        tools=[ZOOM_IN.name],
        view=VIEW_LIMITS,
        crop=CROP_LIMITS,
        min_side_px=28,
        max_turns=5,
    )
    (folder / POLICY_MANIFEST).write_bytes(msgspec.json.encode(manifest))
