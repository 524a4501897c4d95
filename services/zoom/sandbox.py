"""The serving process's side of decoding: hosts that decode, kept for the next file.

A host (`decoder`) is started when a file comes and none is idle. `decode` blocks the calling
thread, so as many hosts run as threads decode. A host that fails or takes too long is killed with
its child and not used again; idle ones end with `close`, or with this object.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from http import HTTPStatus
from typing import IO, cast

import msgspec

from services.zoom.formats import (
    AS_STORED,
    CanonicalOriginal,
    DecodedFormat,
    DecodeLimits,
    Rendering,
    unreadable,
)
from services.zoom.frames import Answer, DecodeRequest, Refusal, read_frame, write_frame
from shared.errors import ApiProblem

_HOST_COMMAND = (sys.executable, "-m", "services.zoom.decoder")
_START_TIMEOUT_S = 30.0
"""Given to a file on top of its own limit: its host may have to load the libraries first."""

_replies = msgspec.msgpack.Decoder(Answer | Refusal)


class Sandbox:
    """Decodes untrusted files, each in a process of its own; thread-safe."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def close(self) -> None:
        """End the idle hosts; call it when nothing decodes any more."""
        self._finalizer()

    def decode(
        self,
        data: bytes,
        source_format: DecodedFormat,
        rendering: Rendering = AS_STORED,
        *,
        with_identity: bool = False,
    ) -> CanonicalOriginal:
        """The picture asked for. Raises `ApiProblem`, whatever happens to the decoder."""
        with self._lock:
            host = self._idle.pop() if self._idle else None
        host = host or _start()
        try:
            request = DecodeRequest(source_format, rendering, self._limits, with_identity)
            reply = self._ask(host, request, data)
        except (EOFError, OSError, msgspec.MsgspecError) as error:
            _end(host)
            is_late = isinstance(error, TimeoutError)
            raise unreadable(
                f"decoding took longer than {self._limits.timeout_s:g} s"
                if is_late
                else "the decoder gave up on this file"
            ) from error
        with self._lock:
            self._idle.append(host)
        if isinstance(reply, Refusal):
            raise ApiProblem(HTTPStatus(reply.status), reply.title, reply.detail)
        return reply.original

    def _ask(
        self, host: "subprocess.Popen[bytes]", request: DecodeRequest, data: bytes
    ) -> Answer | Refusal:
        into, out_of = cast(IO[bytes], host.stdin).fileno(), cast(IO[bytes], host.stdout).fileno()
        write_frame(into, msgspec.msgpack.encode(request))
        write_frame(into, data)
        return _replies.decode(read_frame(out_of, self._limits.timeout_s + _START_TIMEOUT_S))


def _start() -> "subprocess.Popen[bytes]":
    """A session of its own: a Ctrl-C is ours to handle, and killing it kills its child."""
    return subprocess.Popen(
        _HOST_COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )


def _end(host: "subprocess.Popen[bytes]") -> None:
    """Kill a host and its child, and free what they held."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(host.pid, signal.SIGKILL)
    host.wait()
    for pipe in (host.stdin, host.stdout):
        if pipe is not None:
            pipe.close()


def _end_all(hosts: "list[subprocess.Popen[bytes]]") -> None:
    while hosts:
        _end(hosts.pop())
