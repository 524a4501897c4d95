"""Client of the CCA scorer: rewards of a finished group, consensus at inference."""

import httpx

from shared.api.cca import ConsensusRequest, ConsensusResponse, ScoreRequest, ScoreResponse
from shared.clients.http import HttpBoundary, Retries
from shared.errors import CcaError


class CcaClient:
    """Typed calls to the scorer; every method raises `CcaError` when it fails.

    It keeps nothing between two requests, so its replicas take turns.
    """

    def __init__(
        self,
        urls: str,
        client: httpx.AsyncClient | None = None,
        *,
        retries: Retries | None = None,
    ) -> None:
        self._http = HttpBoundary(urls, CcaError, client, retries=retries)

    async def aclose(self) -> None:
        """Close the connections this client opened."""
        await self._http.aclose()

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """The rewards of a whole group, in the order of its attempts."""
        return await self._http.post("/v1/score", request, ScoreResponse)

    async def consensus(self, request: ConsensusRequest) -> ConsensusResponse:
        """The modal answer of K trajectories and the region behind it."""
        return await self._http.post("/v1/consensus", request, ConsensusResponse)
