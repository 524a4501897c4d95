"""Is this a checkpoint? Asked before torch or vLLM are loaded, which take long and say little.

Only what every later step leans on is looked at: configuration, tokenizer, whole weight files, and
for a published version its hashes. Whether the weights fit the model is for the loader to say.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import WeightsError
from shared.weights import VERSION_MANIFEST, read_policy_manifest, verify_version

MODEL_TYPES = ("qwen2_5_vl", "qwen2_vl")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_HEADER_LENGTH_BYTES = 8


def is_hub_name(model: str) -> bool:
    """Whether `model` names a checkpoint on a hub (`owner/model`) rather than a folder."""
    return not Path(model).exists() and not model.startswith((".", "/")) and model.count("/") == 1


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """The configuration of a Qwen2.5-VL checkpoint folder. Raises `WeightsError`."""
    if not folder.is_dir():
        raise WeightsError(f"{folder} is neither a folder nor a hub name (owner/model)")
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} is no checkpoint: it has no config.json")
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise WeightsError(
            f"{folder} is a {config.get('model_type')}; accepted: {', '.join(MODEL_TYPES)}"
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise WeightsError(f"{folder} has no tokenizer ({' or '.join(_TOKENIZERS)})")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise WeightsError(f"{folder} holds no *.safetensors")
    for path in weights:
        read_tensors(path)
    index = folder / "model.safetensors.index.json"
    named = set(_read_json(index).get("weight_map", {}).values()) if index.is_file() else set()
    if missing := sorted(named - {path.name for path in weights}):
        raise WeightsError(f"{folder} lacks {', '.join(missing)}, which its index names")
    if (folder / VERSION_MANIFEST).is_file():
        verify_version(folder)
    read_policy_manifest(folder)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name → dtype, shape, offsets. Raises `WeightsError`.

    A file that is shorter or longer than its header says is refused.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        if not 2 <= length <= num_bytes - _HEADER_LENGTH_BYTES:
            raise WeightsError(f"{path} is no safetensors file, or is cut off")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise WeightsError(f"{path}: the header is damaged") from error
    expected = _HEADER_LENGTH_BYTES + length + max(ends, default=0)
    if num_bytes != expected:
        raise WeightsError(f"{path} has {num_bytes} bytes, its header says {expected}")
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
