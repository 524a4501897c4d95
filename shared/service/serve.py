"""Running an app: in the foreground for a service, in a thread beside a loop that is no server.

uvicorn turns SIGTERM and SIGINT into a clean stop: it closes the listener, lets running requests
finish for `GRACE_S` and runs the app's lifespan exit.
"""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from shared.service.app import ReadyCheck, create_service_app

GRACE_S = 10


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal; logs go through the root logger."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )


@contextmanager
def probe_server(
    service: str,
    host: str,
    port: int,
    registry: CollectorRegistry,
    ready_checks: Mapping[str, ReadyCheck],
) -> Generator[None]:
    """`/health`, `/ready`, `/metrics` of a process whose main thread is busy with its own loop."""
    app = create_service_app(
        service, description="Probes.", registry=registry, ready_checks=ready_checks
    )
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name=f"{service}-probes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=GRACE_S)
