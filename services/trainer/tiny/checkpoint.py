"""Writes and describes the base checkpoint: an ordinary HF folder plus `medvr.json`."""

from pathlib import Path
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.architecture import CROP_LIMITS, VIEW_LIMITS, save_processor
from shared.agent.prompt import ZOOM_TOOL_NAME
from shared.weights import PolicyManifest

MANIFEST = "medvr.json"
MAX_TURNS = 5


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    made_by: dict[str, Any],
    folder: Path,
) -> None:
    """Weights, configuration, tokenizer, processor and manifest; the manifest comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_processor(tokenizer, folder)
    manifest = PolicyManifest(
        format=1,
        name="tiny",
        tools=[ZOOM_TOOL_NAME],
        view=VIEW_LIMITS,
        crop=CROP_LIMITS,
        min_side_px=28,
        max_turns=MAX_TURNS,
        made_by=made_by,
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest))
    (folder / MANIFEST).write_bytes(encoded + b"\n")


def start_from(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> dict[str, Any]:
    """Load an earlier checkpoint's weights into the model; what its manifest says of its making."""
    earlier = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float()
    model.load_state_dict(earlier.state_dict())
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=PolicyManifest)
    return manifest.made_by
