"""HTTP details of zoom: problem documents of what no policy should ask for, validators of blobs."""

from fastapi import Request
from fastapi.responses import JSONResponse

from shared.api.zoom import NO_GREY_LEVELS
from shared.errors import NoGreyLevels
from shared.geometry import BadBox

_IMMUTABLE = "public, max-age=31536000, immutable"
"""A blob never changes under its name."""


def bad_box_response(error: BadBox) -> JSONResponse:
    """422 with the member `reason`, by which a client tells a bad box from a bad request."""
    return _refused("Box cannot be cropped", str(error), error.reason.value)


def no_grey_levels_response(error: NoGreyLevels) -> JSONResponse:
    """The same of a window that cannot be set."""
    return _refused("Window cannot be set", str(error), NO_GREY_LEVELS)


def _refused(title: str, detail: str, reason: str) -> JSONResponse:
    return JSONResponse(
        {
            "type": "about:blank",
            "title": title,
            "status": 422,
            "detail": detail,
            "reason": reason,
        },
        status_code=422,
        media_type="application/problem+json",
    )


def is_unmodified(request: Request, name: str) -> bool:
    """Whether `If-None-Match` names the blob (RFC 9110: weak comparison)."""
    header = request.headers.get("if-none-match", "")
    given = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in given or f'"{name}"' in given


def blob_headers(name: str) -> dict[str, str]:
    """Strong validator and endless freshness of a content-addressed blob."""
    return {"etag": f'"{name}"', "cache-control": _IMMUTABLE}
