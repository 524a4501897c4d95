"""The clinic's app: case API, viewer, and the desk behind them.

Lifecycle: the lifespan opens the database and the clients, begins left-over cases again and looks
after jobs, and on exit stops the desks before it closes what they work with.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry

from services.clinic.asking import acting
from services.clinic.casework import Standing
from services.clinic.confidence import load_calibration
from services.clinic.desk import CaseDesk, utc_now
from services.clinic.feedback import reviewing
from services.clinic.feedback_store import FeedbackStore
from services.clinic.follow_ups import follow_ups
from services.clinic.following import Bells
from services.clinic.idempotency import Repetitions
from services.clinic.job_desk import JobDesk
from services.clinic.job_queue import ItemSender
from services.clinic.job_routes import jobs_router
from services.clinic.job_store import JobStore
from services.clinic.metrics import ClinicMetrics
from services.clinic.provenance import code_version
from services.clinic.pseudonyms import Pseudonyms
from services.clinic.rounds import Neighbours
from services.clinic.routes import router
from services.clinic.settings import ClinicSettings
from services.clinic.state import ClinicState, attach
from services.clinic.store import CaseStore
from services.clinic.transport import FORM_ALLOWANCE_BYTES, BodyLimit, SecurityHeaders
from shared.api.clinic import RESEARCH_NOTICE
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.http import open_client
from shared.clients.policy import PolicyClient
from shared.clients.ready import some_replica_answers
from shared.clients.zoom import ZoomClient
from shared.service.app import create_service_app

STATIC = Path(__file__).parent / "static"


def _add_viewer(app: FastAPI) -> None:
    """The pages: static files that read the API like any other client."""

    @app.get("/", include_in_schema=False)
    def ask_page() -> FileResponse:  # pyright: ignore[reportUnusedFunction]
        return FileResponse(STATIC / "ask.html")

    @app.get("/cases/{case_id}", include_in_schema=False)
    def case_page(case_id: str) -> FileResponse:  # noqa: ARG001  # pyright: ignore[reportUnusedFunction]
        return FileResponse(STATIC / "case.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def create_app(settings: ClinicSettings, http: httpx.AsyncClient | None = None) -> FastAPI:
    """A fresh clinic; `http` is how it reaches policy, zoom and cca (its own client by default).

    Raises `CalibrationError` if the settings name a calibration that cannot be used.
    """
    registry = CollectorRegistry()
    metrics = ClinicMetrics(registry)
    timeout = httpx.Timeout(settings.case_timeout_s, connect=5.0)
    client = http or open_client(timeout)
    blobs = BlobStore(settings.blob_url)
    path = settings.calibration
    standing = Standing(
        None if path is None else load_calibration(path), code_version(settings.revision)
    )
    neighbours = Neighbours(
        policy=PolicyClient(settings.policy_url, client),
        zoom=ZoomClient(settings.zoom_url, client),
        cca=CcaClient(settings.cca_url, client),
        blobs=blobs,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        store = CaseStore(settings.database)
        bells = Bells(metrics)
        pseudonyms = Pseudonyms(settings.pseudonyms)
        desk = CaseDesk(settings, store, pseudonyms, neighbours, standing, metrics, bells)
        sender = None if settings.redis_url is None else ItemSender(settings.redis_url)
        jobs = JobDesk(JobStore(store.transactions), desk, sender, metrics, utc_now)
        state = ClinicState(
            settings=settings,
            store=store,
            feedback=FeedbackStore(store),
            blobs=blobs,
            desk=desk,
            jobs=jobs,
            bells=bells,
            repetitions=Repetitions(store, metrics, settings.idempotency_key_s, utc_now),
            metrics=metrics,
        )
        attach(app, state)
        await desk.recover()
        sweeping = asyncio.create_task(jobs.keep_sweeping(settings.job_sweep_s))
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait([sweeping])
            if sender is not None:
                sender.close()
            await desk.stop()
            store.close()
            pseudonyms.close()
            if http is None:
                await client.aclose()

    async def database_answers() -> None:
        await asyncio.to_thread(app.state.clinic.store.ping)

    async def pseudonyms_answer() -> None:
        await asyncio.to_thread(app.state.clinic.desk.pseudonyms.ping)

    app = create_service_app(
        "clinic",
        description=f"A question about a medical image, answered with evidence. {RESEARCH_NOTICE}",
        registry=registry,
        lifespan=lifespan,
        ready_checks={
            "database": database_answers,
            "pseudonyms": pseudonyms_answer,
            "policy": some_replica_answers(settings.policy_url, "/medvr/v1/policy", client),
            "zoom": some_replica_answers(settings.zoom_url, "/health", client),
            "cca": some_replica_answers(settings.cca_url, "/health", client),
        },
        interactive_docs=False,
    )
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_upload_bytes + FORM_ALLOWANCE_BYTES,
        others={"/v1/jobs": settings.max_job_bytes + FORM_ALLOWANCE_BYTES},
    )
    app.add_middleware(SecurityHeaders)
    app.include_router(acting)
    app.include_router(follow_ups)
    app.include_router(jobs_router)
    app.include_router(router)
    app.include_router(reviewing)
    _add_viewer(app)
    return app
