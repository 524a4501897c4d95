"""JSON lines on stderr, each with the request id of the call it belongs to.

Log events, never contents: no question, answer, image or patient identifier may be in a line.
"""

import contextvars
import json
import logging
import sys
import time
import uuid

REQUEST_ID_HEADER = "x-request-id"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Id of the request being served; clients pass it on."""

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    "color_message",  # uvicorn's own message once more, with escape codes
}


def new_request_id() -> str:
    """A fresh id."""
    return uuid.uuid4().hex


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
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(service: str, level: str = "INFO") -> None:
    """Send everything through one JSON handler; noisy libraries only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    quiet = ("httpx", "httpcore", "uvicorn.access", "fsspec", "asyncio", "PIL", "matplotlib")
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
