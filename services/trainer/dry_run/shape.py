# pyright: basic
"""The architecture behind a `config.json`: built on torch's meta device, which holds no numbers.

Of a checkpoint nothing but the configuration is read, so a folder with a `config.json` will do. A
hub name is looked up in the local cache; nothing is fetched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError as StrictError
from torch import nn

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers import (  # noqa: E402 - the operators must be declared first
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from shared.checkpoint import MODEL_TYPES, is_hub_name  # noqa: E402
from shared.errors import WeightsError  # noqa: E402


@dataclass(frozen=True, slots=True)
class BlockShape:
    """The blocks of one tower. Widths are of one token (text) or one patch (vision)."""

    num_blocks: int
    parameters: int
    """Of one block."""
    hidden: int
    """D."""
    intermediate: int
    """F, of the MLP."""
    query: int
    """Q: heads · width of a head."""
    key: int
    """K: key heads · width of a head; values are as wide."""
    heads: int
    """H."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory and time depend on."""

    parameters: int
    """N, shared ones once."""
    text: BlockShape
    vision: BlockShape
    embedding: int
    """Parameters of the token embedding, V·D."""
    head: int
    """Parameters that lm_head has for itself: 0 where it is the embedding."""
    merger: int
    """Parameters of the patch merger."""
    patch_embed: int
    """Parameters of the patch embedding."""
    multiplied: int
    """Weights of all linear layers and convolutions, lm_head's included."""
    adapted_widths: int
    """Σ (in + out) over the linear layers of the text blocks: rank-1 LoRA parameters."""
    vocabulary: int
    """V."""
    max_tokens: int
    """Longest sequence its positions cover."""
    patch_values: int
    """Numbers in a patch: colours · frames · side²."""
    window_patches: int | None
    """Patches that see each other in a windowed vision block; None: all of an image."""
    num_whole_blocks: int
    """Vision blocks that attend to the whole image."""

    @property
    def vision_parameters(self) -> int:
        """Of the vision tower, merger included."""
        blocks = self.vision.num_blocks * self.vision.parameters
        return blocks + self.patch_embed + self.merger


def find_checkpoint(model: str) -> Path:
    """The folder that holds the `config.json`. Raises `WeightsError` if there is none here."""
    folder = Path(model)
    if is_hub_name(model):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json")
        if not isinstance(cached, str):
            raise WeightsError(
                f"{model} is neither a folder nor in the hub's cache, and a dry run downloads "
                f"nothing; `hf download {model} config.json` fetches what it needs"
            )
        folder = Path(cached).parent
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} is no checkpoint: it has no config.json")
    return folder


def read_shape(checkpoint: Path) -> ModelShape:
    """The shape of a checkpoint. Raises `WeightsError` if it is no Qwen2.5-VL."""
    try:
        return shape_of(AutoConfig.from_pretrained(checkpoint, local_files_only=True))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, StrictError) as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise WeightsError(f"{checkpoint}/config.json is not usable: {reason}") from error


def shape_of(config: PretrainedConfig) -> ModelShape:
    """The shape of a configuration. Raises `WeightsError` if it is no Qwen2.5-VL."""
    if config.model_type not in MODEL_TYPES:
        raise WeightsError(
            f"the checkpoint is a {config.model_type}; accepted: {', '.join(MODEL_TYPES)}"
        )
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    text, vision = model.model.language_model, model.model.visual
    config_text = config.get_text_config()
    whole = getattr(config.vision_config, "fullatt_block_indexes", None)
    side = getattr(config.vision_config, "window_size", 0) // config.vision_config.patch_size
    is_tied = model.lm_head.weight is text.embed_tokens.weight
    return ModelShape(
        parameters=_count(model),
        text=_text_blocks(text.layers, config_text),
        vision=_vision_blocks(vision.blocks),
        embedding=text.embed_tokens.weight.numel(),
        head=0 if is_tied else model.lm_head.weight.numel(),
        merger=_count(vision.merger),
        patch_embed=_count(vision.patch_embed),
        multiplied=_multiplied(model),
        adapted_widths=sum(
            linear.in_features + linear.out_features for linear in _linears(text.layers)
        ),
        vocabulary=config_text.vocab_size,
        max_tokens=config_text.max_position_embeddings,
        patch_values=vision.patch_embed.proj.weight[0].numel(),
        window_patches=side**2 if whole is not None else None,
        num_whole_blocks=len(vision.blocks) if whole is None else len(whole),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _multiplied(model: nn.Module) -> int:
    kinds = (nn.Linear, nn.Conv3d)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, kinds))


def _text_blocks(layers: Any, config: PretrainedConfig) -> BlockShape:
    attention, mlp = layers[0].self_attn, layers[0].mlp
    return BlockShape(
        num_blocks=len(layers),
        parameters=_count(layers[0]),
        hidden=attention.q_proj.in_features,
        intermediate=mlp.down_proj.in_features,
        query=attention.q_proj.out_features,
        key=attention.k_proj.out_features,
        heads=config.num_attention_heads,
    )


def _vision_blocks(blocks: Any) -> BlockShape:
    attention = blocks[0].attn
    hidden = attention.qkv.in_features
    return BlockShape(
        num_blocks=len(blocks),
        parameters=_count(blocks[0]),
        hidden=hidden,
        intermediate=max(linear.out_features for linear in _linears(blocks[0].mlp)),
        query=hidden,
        key=hidden,
        heads=attention.num_heads,
    )
