"""Client of the zoom service: images in, crops out.

What is asked of an image goes to the replica that keeps it decoded: the image's hash is the key.
A box the model should not have asked for comes back as `geometry.BadBox`, with the reason and the
message the service gave: the same exception that `place_box` raises in-process, and no
`ZoomError`, because the environment answers it with an observation. So does a window asked for of
an image that was kept without grey levels, as `NoGreyLevels`. Everything else that fails is a
`ZoomError`.
"""

from urllib.parse import urlencode

import httpx

from shared.api.zoom import (
    NO_GREY_LEVELS,
    BlankRequest,
    BlankResponse,
    CropRequest,
    CropResponse,
    ImageFacts,
    IngestResponse,
    RenderingRequest,
)
from shared.clients.http import HttpBoundary, Retries, encode, read_problem
from shared.errors import NoGreyLevels, ZoomError
from shared.geometry import BadBox, BadBoxReason

_JSON = {"content-type": "application/json"}
_BAD_BOX_REASONS = frozenset(reason.value for reason in BadBoxReason)


class ZoomClient:
    """Typed calls to the zoom service; every method raises `ZoomError` when it fails."""

    def __init__(
        self,
        urls: str,
        client: httpx.AsyncClient | None = None,
        *,
        retries: Retries | None = None,
    ) -> None:
        self._http = HttpBoundary(urls, ZoomError, client, retries=retries)

    async def aclose(self) -> None:
        """Close the connections this client opened."""
        await self._http.aclose()

    async def ingest(
        self,
        data: bytes,
        media_type: str | None = None,
        rendering: RenderingRequest | None = None,
        *,
        identity: bool = False,
    ) -> IngestResponse:
        """Store a picture of a PNG, JPEG, WebP, TIFF, DICOM or NIfTI file, told by content.

        Only with `identity` the answer says whom a DICOM file shows.
        """
        headers = {"content-type": media_type or "application/octet-stream"}
        asked = rendering.model_dump(exclude_none=True) if rendering else {}
        asked |= {"identity": "true"} if identity else {}
        path = f"/v1/images?{urlencode(asked)}" if asked else "/v1/images"
        response = await self._http.send("POST", path, content=data, headers=headers)
        return self._http.decode(response, IngestResponse)

    async def facts(self, image: str) -> ImageFacts:
        """Size and colours of an ingested original."""
        return await self._http.of(image).get(f"/v1/images/{image}/facts", ImageFacts)

    async def image_bytes(self, image: str) -> bytes:
        """The PNG of an ingested original."""
        return (await self._http.send("GET", f"/v1/images/{image}")).content

    async def crop(self, request: CropRequest) -> CropResponse:
        """Render a region as the model is shown it.

        Raises `BadBox` for an impossible box, `NoGreyLevels` for a window of an image without any.
        """
        response = await self._http.of(request.image).send(
            "POST", "/v1/crops", content=encode(request), headers=_JSON, accept=(422,)
        )
        if response.status_code == 422:
            problem = read_problem(response)
            if problem.reason in _BAD_BOX_REASONS:
                raise BadBox(BadBoxReason(problem.reason), problem.detail)
            if problem.reason == NO_GREY_LEVELS:
                raise NoGreyLevels(problem.detail)
            raise self._http.error_of(response)
        return self._http.decode(response, CropResponse)

    async def blank(self, request: BlankRequest) -> BlankResponse:
        """Store an original without a region, filled from its border."""
        response = await self._http.of(request.image).send(
            "POST", "/v1/blanks", content=encode(request), headers=_JSON
        )
        return self._http.decode(response, BlankResponse)

    async def crop_bytes(self, crop: str) -> bytes:
        """The PNG of a crop."""
        return (await self._http.send("GET", f"/v1/crops/{crop}")).content
