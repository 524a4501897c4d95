"""The decoder host: a process that forks one child per file, so that each is decoded alone.

It answers `frames` on stdin and stdout. The libraries are loaded once, so a child costs
milliseconds; those of de-identification with the first DICOM file, for they take half a second. A
child has limited memory and processor time, cannot write files, and may crash as it likes: the
host then says so. The host ends when stdin does.
"""

import contextlib
import logging
import math
import os
import resource
import warnings
from functools import cache
from pathlib import Path

import msgspec

from services.zoom.decode import decode_original
from services.zoom.formats import DecodeLimits
from services.zoom.frames import Answer, DecodeRequest, Refusal, read_frame, write_frame
from shared.errors import ApiProblem

_GAVE_UP = Refusal(422, "Image cannot be used", "the decoder gave up on this file")


def serve_frames(requests: int, answers: int) -> None:
    """Answer until the pipe ends."""
    with contextlib.suppress(EOFError):
        while True:
            request = msgspec.msgpack.decode(read_frame(requests), type=DecodeRequest)
            if request.source_format == "dicom":
                _load_deidentification()
            answer = decode_in_child(request, read_frame(requests))
            write_frame(answers, answer or msgspec.msgpack.encode(_GAVE_UP))


@cache
def _load_deidentification() -> None:
    """Its libraries, and what they compile when they are first used: the children inherit it."""
    from services.zoom.deidentify import warm_up

    warm_up()


def decode_in_child(request: DecodeRequest, data: bytes) -> bytes:
    """The child's encoded answer; empty if it died before it gave one."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(readable)
            answer = _answer(request, data)
            with open(writable, "wb") as pipe:
                pipe.write(answer)
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    with open(readable, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    return answer if status == 0 else b""


def _answer(request: DecodeRequest, data: bytes) -> bytes:
    _quieten()
    _limit(request.limits)
    answer: Answer | Refusal
    try:
        original = decode_original(
            data,
            request.source_format,
            request.rendering,
            request.limits.max_pixels,
            with_identity=request.with_identity,
        )
        answer = Answer(original)
    except ApiProblem as problem:
        answer = Refusal(int(problem.status), problem.title, problem.detail)
    return msgspec.msgpack.encode(answer)


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
    wanted = {
        resource.RLIMIT_AS: mapped_bytes + limits.memory_bytes,
        resource.RLIMIT_CPU: math.ceil(limits.timeout_s),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def main() -> None:
    """Keep stdout for frames: whatever a library prints goes nowhere."""
    answers = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    serve_frames(0, answers)


if __name__ == "__main__":
    main()
