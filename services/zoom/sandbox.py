"""The decoder child: one process per file, with limited memory, processor time and wall time.

Children are forked from a fork server that has the decoding libraries loaded, so one costs some
milliseconds. A child reads the file from a pipe, answers on it and exits; `decode_isolated` kills
it when its time is up and frees it in every case. The fork server ends with this process.
"""

import logging
import math
import multiprocessing
import os
import resource
import warnings
from http import HTTPStatus
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import msgspec

from services.zoom.formats import (
    CanonicalOriginal,
    DecodeLimits,
    SourceFormat,
    unreadable,
)
from shared.errors import ApiProblem

_EXIT_TIMEOUT_S = 1.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["services.zoom.decode", "pylibjpeg"])


class _Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """An `ApiProblem` on its way out of the child."""

    status: int
    title: str
    detail: str


class _Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What the child made of the file."""

    original: CanonicalOriginal


_decoder = msgspec.msgpack.Decoder(_Answer | _Refusal)


def decode_isolated(
    data: bytes, source_format: SourceFormat, limits: DecodeLimits
) -> CanonicalOriginal:
    """Decode in a child; blocks the calling thread. Raises `ApiProblem`, whatever happens there."""
    ours, theirs = _context.Pipe()
    child = _context.Process(target=_decode_in_child, args=(theirs, source_format, limits))
    with ours:
        child.start()
        theirs.close()
        try:
            answer = _ask(ours, data, limits.timeout_s)
        finally:
            _end(child)
    if isinstance(answer, _Refusal):
        raise ApiProblem(HTTPStatus(answer.status), answer.title, answer.detail)
    return answer.original


def _ask(connection: Connection, data: bytes, timeout_s: float) -> _Answer | _Refusal:
    try:
        connection.send_bytes(data)
        if not connection.poll(timeout_s):
            raise unreadable(f"decoding took longer than {timeout_s:g} s")
        return _decoder.decode(connection.recv_bytes())
    except (EOFError, OSError) as error:
        raise unreadable("the decoder gave up on this file") from error


def _end(child: ForkServerProcess) -> None:
    """Free the process, whether or not it is done."""
    child.join(_EXIT_TIMEOUT_S)
    if child.is_alive():
        child.kill()
        child.join()
    child.close()


def _decode_in_child(
    connection: Connection, source_format: SourceFormat, limits: DecodeLimits
) -> None:
    from services.zoom.decode import decode_original

    _quieten()
    _limit(limits)
    with connection:
        answer: _Answer | _Refusal
        try:
            data = connection.recv_bytes()
            answer = _Answer(decode_original(data, source_format, limits.max_pixels))
        except ApiProblem as problem:
            answer = _Refusal(int(problem.status), problem.title, problem.detail)
        connection.send_bytes(msgspec.msgpack.encode(answer))


def _quieten() -> None:
    """Decoding libraries warn with what the file says, and a file may name a patient."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _limit(limits: DecodeLimits) -> None:
    """Memory beyond what is mapped already, processor time, no core dumps, no files written."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped_bytes = num_pages * resource.getpagesize()
    seconds = math.ceil(limits.timeout_s)
    wanted = {
        resource.RLIMIT_AS: mapped_bytes + limits.memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))
