"""JSON lines on stderr, each with the request id of the call it belongs to.

Log events, never contents: no question, answer, image or patient identifier may be in a line.
"""

import contextvars
import json
import logging
import sys
import time
import traceback
import uuid

REQUEST_ID_HEADER = "x-request-id"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Id of the request being served; clients pass it on."""

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    "color_message",  # uvicorn's own message once more, with escape codes
}

_FRAMEWORKS = frozenset({"uvicorn", "asyncio", "celery", "kombu"})
"""Loggers of whoever runs our code: what they catch is ours, and its words may be a caller's."""


def new_request_id() -> str:
    """A fresh id."""
    return uuid.uuid4().hex


def places_of(error: BaseException) -> str:
    """A traceback without the exceptions' own words, which may quote what was worked on.

    For errors that nobody foresaw; those of ours (`MedvrError`) quote nothing.
    """
    lines: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        behind = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        frames = "".join(traceback.format_tb(seen.__traceback__))
        lines.insert(0, f"Traceback (most recent call last):\n{frames}{type(seen).__qualname__}")
        seen = behind
    return "\n\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `extra={...}` becomes fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        for key, value in vars(record).items():
            if key not in _RESERVED:
                line[key] = value
        if record.exc_info:
            error, is_foreign = record.exc_info[1], record.name.split(".")[0] in _FRAMEWORKS
            quiet = places_of(error) if is_foreign and error is not None else None
            line["exception"] = quiet or self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(service: str, level: str = "INFO") -> None:
    """Send everything through one JSON handler; noisy libraries only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    quiet = (
        "alembic",
        "httpx",
        "httpcore",
        "uvicorn.access",
        "fsspec",
        "asyncio",
        "PIL",
        "matplotlib",
    )
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
