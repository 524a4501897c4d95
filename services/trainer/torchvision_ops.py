"""Makes `import torchvision` work beside a CPU torch.

PyPI's torchvision is the CUDA build; beside CPU torch its C++ library does not load and its import
stops at «operator torchvision::nms does not exist» (PLATFORM.md). Qwen's image processor needs only
the pure-python part, so the two operators torchvision registers fakes for are declared here. Must
run before anything imports transformers' models.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries: list[torch.library.Library] = []
"""Kept for the life of the process: a library that is collected takes its operators with it."""


def declare_missing_operators() -> None:
    """Declare `torchvision::nms` and `qnms` where torchvision's own library cannot; idempotent."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library = torch.library.Library("torchvision", "FRAGMENT")
                library.define(name + _SCHEMA)
                _libraries.append(library)
