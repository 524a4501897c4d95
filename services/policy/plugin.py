"""Entry points that vLLM loads (pyproject.toml); both must be named in `VLLM_PLUGINS`.

`medvr` in `vllm.general_plugins` runs in every process of vLLM; `medvr` in
`vllm.endpoint_plugins` adds routes and state to the API server.
"""

import functools
from argparse import Namespace
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import State

from services.policy.version import is_cpu_build, require_tested_vllm

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

NAME = "medvr"


def register() -> None:
    """Refuse an untested vLLM, whoever started it; name what is ours. May run several times."""
    require_tested_vllm()
    _register_transfer()
    if is_cpu_build():
        from services.policy.vllm_adapter import register_models

        register_models()


@functools.cache
def _register_transfer() -> None:
    from services.policy.transfer_engine import register_transfer_engine

    register_transfer_engine(NAME)


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
