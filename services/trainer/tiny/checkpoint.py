"""Writes and describes the base checkpoint: an ordinary HF folder plus `medvr.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.architecture import CROP_LIMITS, VIEW_LIMITS, save_processor
from shared.agent.tools import Tool
from shared.weights import PolicyManifest

MANIFEST = "medvr.json"
MAX_TURNS = 5


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    made_by: dict[str, Any],
    folder: Path,
    tools: Sequence[Tool],
) -> None:
    """Weights, configuration, tokenizer, processor and manifest; the manifest comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_processor(tokenizer, folder)
    manifest = PolicyManifest(
        format=1,
        name="tiny",
        tools=[tool.name for tool in tools],
        view=VIEW_LIMITS,
        crop=CROP_LIMITS,
        min_side_px=28,
        max_turns=MAX_TURNS,
        made_by=made_by,
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest))
    (folder / MANIFEST).write_bytes(encoded + b"\n")


def start_from(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, Any]:
    """Load an earlier checkpoint's weights into the model; what its manifest says of its making.

    The vocabularies may differ, as they do when there is a tool more to speak of: a token that is
    new keeps the embedding it was initialised with.
    """
    earlier = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float()
    known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    weights = earlier.state_dict()
    own = model.state_dict()
    vocabulary = tokenizer.get_vocab()
    shared = [token for token in vocabulary if token in known]
    new_ids, old_ids = ([v[token] for token in shared] for v in (vocabulary, known))
    for name, tensor in own.items():
        if tensor.shape[0] == len(tokenizer) and weights[name].shape[0] == len(known):
            tensor[new_ids] = weights[name][old_ids]
        else:
            tensor.copy_(weights[name])
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=PolicyManifest)
    return manifest.made_by
