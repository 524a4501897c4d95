"""Running an app: in the foreground for a service, in a thread beside a loop that is no server.

uvicorn turns SIGTERM and SIGINT into a clean stop: it closes the listener, lets running requests
finish for `GRACE_S` and runs the app's lifespan exit. The port is taken before the server begins,
so that one in use ends the process with a message, probes included.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from uvicorn.config import STARTUP_FAILURE

from shared.errors import MedvrError
from shared.service.app import ReadyCheck, create_service_app

logger = logging.getLogger(__name__)

GRACE_S = 10
_BACKLOG = 2048


class ListenError(MedvrError):
    """The address cannot be listened on."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ListenError` naming the address and the reason."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        is_named = isinstance(error, socket.gaierror)
        reason = error.strerror if is_named or error.errno is None else os.strerror(error.errno)
        raise ListenError(
            f"cannot listen on {host}:{port} ({reason}); "
            "choose a free port and an address of this machine"
        ) from error


class _Server(uvicorn.Server):
    """Says that it stops before it waits for running requests, some of which may be endless."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the app end what would not end by itself, then stop."""
        self._on_stop()
        await super().shutdown(sockets)


def serve(app: FastAPI, host: str, port: int, on_stop: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal; logs go through the root logger. Raises `ListenError`.

    `on_stop` is called in the event loop, before running requests are waited for.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    server = _Server(config, on_stop)
    with listen(host, port) as listener, suppress(KeyboardInterrupt):
        logger.info("listening on http://%s:%d", host, port)
        server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(STARTUP_FAILURE)


@contextmanager
def probe_server(
    service: str,
    host: str,
    port: int,
    registry: CollectorRegistry,
    ready_checks: Mapping[str, ReadyCheck],
) -> Generator[None]:
    """`/health`, `/ready`, `/metrics` of a process whose main thread is busy with its own loop.

    Raises `ListenError`.
    """
    app = create_service_app(
        service, description="Probes.", registry=registry, ready_checks=ready_checks
    )
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    server = uvicorn.Server(config)
    with listen(host, port) as listener:
        thread = threading.Thread(
            target=server.run, args=([listener],), name=f"{service}-probes", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(timeout=GRACE_S)
