"""What every request and response of the clinic passes through: size limit, security headers."""

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FORM_ALLOWANCE_BYTES = 1024 * 1024
"""Of a request body, beside the image: the other fields and the multipart framing."""

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class SecurityHeaders:
    """Pure ASGI middleware: nothing remote, no framing, nothing kept by caches unless asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BodyLimit:
    """Pure ASGI middleware: a body over the limit is answered 413 and never kept.

    What is over the limit is read and thrown away, up to as much again, so that the caller reads
    the answer instead of a broken connection.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, others: Mapping[str, int] = {}) -> None:
        """`others` are paths that have a limit of their own."""
        self._app = app
        self._max_bytes = max_bytes
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        num_bytes = 0
        max_bytes = self._others.get(scope.get("path", ""), self._max_bytes)

        async def limited_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                while message.get("more_body", False) and num_bytes <= 2 * max_bytes:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                raise HTTPException(
                    413, f"the request has more than the {max_bytes} bytes that are accepted"
                )
            return message

        await self._app(scope, limited_receive, send)
