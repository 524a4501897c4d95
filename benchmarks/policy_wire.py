"""When the policy was at work: a wire between its callers and its server that keeps the times.

It runs in a process of its own and parses nothing: on one connection requests and answers take
turns, so a call lasts from the first byte of a request to the last byte of its answer. What the
wire adds to a call comes on top of these times. `perf_counter` is one clock for all processes.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

GENERATE = b"POST /medvr/v1/generate"

Interval = tuple[float, float]
"""Begin and end, in seconds of `perf_counter`."""


class _Call:
    def __init__(self, is_generation: bool) -> None:
        self.is_generation = is_generation
        self.started = time.perf_counter()
        self.ended: float | None = None


class _Wire:
    def __init__(self, port: int) -> None:
        self._port = port
        self._open: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self.calls: list[_Call] = []

    async def connect(self, asking: asyncio.StreamReader, caller: asyncio.StreamWriter) -> None:
        answering, server = await asyncio.open_connection("127.0.0.1", self._port)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = caller, server
        call: _Call | None = None

        async def requests() -> None:
            nonlocal call
            while said := await asking.read(1 << 16):
                if call is None or call.ended is not None:
                    call = _Call(said.startswith(GENERATE))
                    self.calls.append(call)
                server.write(said)
                await server.drain()
            server.close()

        async def answers() -> None:
            while said := await answering.read(1 << 16):
                if call is not None:
                    call.ended = time.perf_counter()
                caller.write(said)
                await caller.drain()
            caller.close()

        await asyncio.gather(requests(), answers(), return_exceptions=True)
        del self._open[task]

    async def close(self) -> None:
        """End all connections."""
        for writers in self._open.values():
            for writer in writers:
                writer.close()
        await asyncio.gather(*self._open)

    def taken(self) -> list[Interval]:
        """The turns that were sampled, since it was asked last."""
        calls, self.calls = self.calls, []
        return [(c.started, c.ended) for c in calls if c.is_generation and c.ended is not None]


async def _serve(port: int, pipe: Connection) -> None:
    wire = _Wire(port)
    server = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    is_over = asyncio.Event()

    def on_message() -> None:
        if pipe.recv():
            pipe.send(wire.taken())
        else:
            is_over.set()

    asyncio.get_running_loop().add_reader(pipe.fileno(), on_message)
    pipe.send(server.sockets[0].getsockname()[1])
    await is_over.wait()
    server.close()
    await wire.close()


def _main(port: int, pipe: Connection) -> None:
    asyncio.run(_serve(port, pipe))


class PolicyWire:
    """The wire, as seen from outside."""

    def __init__(self, pipe: Connection, port: int) -> None:
        self._pipe = pipe
        self.port = port
        """Of the wire's near end."""

    def taken(self) -> list[Interval]:
        """The turns that were sampled, since it was asked last."""
        self._pipe.send(True)
        return self._pipe.recv()


@contextmanager
def policy_wire(port: int) -> Generator[PolicyWire]:
    """A wire to the policy on a loopback port."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_main, args=(port, far), daemon=True)
    process.start()
    far.close()  # a wire that did not come up is noticed
    try:
        yield PolicyWire(near, near.recv())
    finally:
        near.send(False)
        process.join(timeout=10)


def covered_s(intervals: Sequence[Interval]) -> float:
    """Seconds that lie in at least one of them."""
    total = 0.0
    reached = float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
