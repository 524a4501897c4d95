"""What nobody foresaw is logged with its places, never with its words."""

import json
import logging
from collections.abc import Callable, Iterator

import httpx
import pytest

from shared.service.app import create_service_app
from shared.service.logs import JsonFormatter
from tests.rollout.company import served

SECRET = "is there a bleeding in the left lobe"


class Lines(logging.Handler):
    """Keeps the lines that a service would print."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter("test"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    yield handler.lines
    root.removeHandler(handler)


def fail(question: str) -> None:
    try:
        int(question)
    except ValueError as error:
        raise KeyError(question) from error


def test_a_service_that_fails_says_where_and_not_about_what(
    lines: list[str], free_port: Callable[[], int]
) -> None:
    app = create_service_app("test", description="fails")

    @app.get("/fail")
    async def failing(question: str) -> None:
        fail(question)

    with served(app, free_port()) as url:
        answer = httpx.get(f"{url}/fail", params={"question": SECRET}, trust_env=False)
    assert answer.status_code == 500
    assert SECRET not in answer.text
    told = [json.loads(line)["exception"] for line in lines if "exception" in json.loads(line)]
    assert len(told) == 2, "ours, and the server's own"
    for exception in told:
        assert exception.count("Traceback (most recent call last)") == 2, "and what was behind it"
        assert "in fail" in exception
        assert exception.index("ValueError") < exception.index("KeyError")
    assert SECRET not in "".join(lines)
