"""What the serving process and a decoder host say to each other over a pipe.

A frame is 8 bytes of length (little-endian) and that many bytes. A request is two frames, a
`DecodeRequest` and the file; the reply is one frame, an `Answer` or a `Refusal`.
"""

import os
import select
import time

import msgspec

from services.zoom.formats import CanonicalOriginal, DecodedFormat, DecodeLimits, Rendering

_LENGTH_BYTES = 8
_CHUNK_BYTES = 2**20


class DecodeRequest(msgspec.Struct, frozen=True):
    """What kind of file follows, what is asked of it, and what decoding it may cost."""

    source_format: DecodedFormat
    rendering: Rendering
    limits: DecodeLimits
    with_identity: bool
    """Whether the answer may say whom a DICOM file shows."""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What was made of the file."""

    original: CanonicalOriginal


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """An `ApiProblem` on its way out of the decoder."""

    status: int
    title: str
    detail: str


def write_frame(fd: int, payload: bytes) -> None:
    """Send one frame; blocks until it is taken. Raises `BrokenPipeError`."""
    os.write(fd, len(payload).to_bytes(_LENGTH_BYTES, "little"))
    rest = memoryview(payload)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_frame(fd: int, timeout_s: float | None = None) -> bytes:
    """Receive one frame. Raises `EOFError` at the end of the pipe, `TimeoutError`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    num_bytes = int.from_bytes(_read(fd, _LENGTH_BYTES, deadline), "little")
    return _read(fd, num_bytes, deadline)


def _read(fd: int, num_bytes: int, deadline: float | None) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    chunks: list[bytes] = []
    missing = num_bytes
    while missing > 0:
        if deadline is not None:
            left_ms = max(0.0, deadline - time.monotonic()) * 1000
            if not poll.poll(left_ms):
                raise TimeoutError
        chunk = os.read(fd, min(missing, _CHUNK_BYTES))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)
