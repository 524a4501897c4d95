"""Makes `import torchvision` work beside a CPU build of torch.

PyPI's torchvision is built for CUDA; beside CPU torch its library does not load and the import
stops at «operator torchvision::nms does not exist». transformers' image processor needs only its
Python part, so the two operators it looks for are declared here.
"""

import contextlib

import torch

_LIBRARIES: list[torch.library.Library] = []
"""Keeps the declarations alive: torch drops them with their `Library`."""


def declare_torchvision_operators() -> None:
    """Declare what torchvision's import looks for, if its own library cannot; idempotent."""
    with contextlib.suppress(ImportError):
        try:
            import torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
