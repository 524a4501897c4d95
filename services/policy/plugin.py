"""Entry points that vLLM loads (pyproject.toml); both must be named in `VLLM_PLUGINS`.

`medvr` in `vllm.general_plugins` runs in every process of vLLM, before it imports a processor;
`medvr` in `vllm.endpoint_plugins` adds routes and state to the API server.
"""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import State

from services.policy.version import require_tested_vllm

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

NAME = "medvr"


def register() -> None:
    """Check vLLM's version and make `import torchvision` work beside a CPU build of torch."""
    require_tested_vllm()
    _declare_torchvision_operators()


def _declare_torchvision_operators() -> None:
    """Declare the two C++ operators torchvision's import looks for, if its library lacks them.

    PyPI's torchvision is built for CUDA; beside CPU torch its library does not load and the
    import fails. transformers' image processor needs only its Python part.
    """
    import torch

    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define(
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
        _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []
"""Keeps the declarations alive: torch drops them with their `Library`."""


class PolicyEndpoints:
    """Adds MedVR's routes, request ids and metrics to vLLM's server."""

    name = NAME
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Called while vLLM builds its app."""
        from prometheus_client import REGISTRY

        from services.policy.routes import add_routes
        from shared.service.app import RequestContext

        app.add_middleware(RequestContext, registry=REGISTRY, service="policy")
        add_routes(app)

    async def init_state(
        self, engine_client: "EngineClient | None", state: State, args: Namespace
    ) -> None:
        """Called once the engine runs, before the server listens."""
        from services.policy.service import PolicyService
        from services.policy.settings import PolicySettings
        from services.policy.vllm_adapter import Engine

        del args
        assert engine_client is not None
        settings = PolicySettings.load([])
        state.medvr = PolicyService(Engine(engine_client), settings)
        state.medvr.start()
