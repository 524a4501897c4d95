"""The HTTP face of the scorer: stateless, so any replica answers alike.

Scoring a group takes about a millisecond and is done in a worker thread, since a request may also
be as large as its limits allow.
"""

import asyncio

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter

from services.cca.scoring import agree, score
from services.cca.settings import CcaSettings
from shared.api.cca import ConsensusRequest, ConsensusResponse, ScoreRequest, ScoreResponse
from shared.service.app import create_service_app
from shared.service.bodies import json_body, model_response, parse_body, read_body


def create_app(settings: CcaSettings, registry: CollectorRegistry | None = None) -> FastAPI:
    """A fresh scorer app."""
    registry = registry or CollectorRegistry()
    app = create_service_app(
        "cca",
        description="Rewards of a group, consensus at inference. Research use only.",
        registry=registry,
    )
    attempts = Counter(
        "medvr_cca_attempts", "Attempts scored, by accuracy.", ["is_correct"], registry=registry
    )
    outcomes = Counter(
        "medvr_cca_consensus", "Consensus requests, by outcome.", ["outcome"], registry=registry
    )

    async def score_group(request: Request) -> Response:
        group = parse_body(await read_body(request, settings.max_body_bytes), ScoreRequest)
        response = await asyncio.to_thread(score, group, settings.max_grid_cells)
        num_correct = sum(reward.accuracy > 0 for reward in response.rewards)
        attempts.labels("true").inc(num_correct)
        attempts.labels("false").inc(len(response.rewards) - num_correct)
        return model_response(response)

    async def find_agreement(request: Request) -> Response:
        case = parse_body(await read_body(request, settings.max_body_bytes), ConsensusRequest)
        response = await asyncio.to_thread(agree, case, settings.max_grid_cells)
        outcomes.labels(response.outcome.value).inc()
        return model_response(response)

    app.post(
        "/v1/score",
        summary="Rewards of a whole group",
        responses={200: {"model": ScoreResponse}},
        openapi_extra=json_body(ScoreRequest),
    )(score_group)
    app.post(
        "/v1/consensus",
        summary="Modal answer of K trajectories and the region behind it",
        responses={200: {"model": ConsensusResponse}},
        openapi_extra=json_body(ConsensusRequest),
    )(find_agreement)
    return app
