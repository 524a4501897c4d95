"""What the clinic's routes work with, made in the app's lifespan."""

from http import HTTPStatus
from typing import Annotated, Literal, cast

import msgspec
from fastapi import Depends, FastAPI, Query, Request
from fastapi import Path as PathParameter

from services.clinic.desk import CaseDesk
from services.clinic.examples import EXAMPLE_ID
from services.clinic.feedback_store import FeedbackStore
from services.clinic.following import Bells
from services.clinic.idempotency import Repetitions
from services.clinic.job_desk import JobDesk
from services.clinic.metrics import ClinicMetrics
from services.clinic.settings import ClinicSettings
from services.clinic.store import CaseStore, UnknownCase
from shared.api.clinic import Case
from shared.blobs import BlobStore
from shared.errors import ApiProblem

CaseId = Annotated[str, PathParameter(examples=[EXAMPLE_ID])]
Show = Annotated[
    Literal["withheld"] | None,
    Query(description="`withheld`: with the answer of a case that withholds it. It is counted."),
]


class ClinicState(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of one running clinic."""

    settings: ClinicSettings
    store: CaseStore
    feedback: FeedbackStore
    blobs: BlobStore
    desk: CaseDesk
    jobs: JobDesk
    bells: Bells
    repetitions: Repetitions
    metrics: ClinicMetrics


def attach(app: FastAPI, state: ClinicState) -> None:
    """Give an app its state."""
    app.state.clinic = state


def _state(request: Request) -> ClinicState:
    return cast(ClinicState, request.app.state.clinic)


State = Annotated[ClinicState, Depends(_state)]


def hang_up(app: FastAPI) -> None:
    """End the event streams of an app that stops."""
    cast(ClinicState, app.state.clinic).bells.close()


def found_case(state: ClinicState, case_id: str) -> Case:
    """The case as last written. Raises `ApiProblem` 404."""
    try:
        return state.store.get(case_id)
    except UnknownCase as error:
        raise no_such_case(error) from error


def no_such_case(error: UnknownCase) -> ApiProblem:
    """What a caller is told of a case that is not there."""
    return ApiProblem(HTTPStatus.NOT_FOUND, "No such case", str(error))
