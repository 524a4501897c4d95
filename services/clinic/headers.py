"""What the headers of a POST say: its idempotency key, and how long its caller waits."""

from typing import Annotated

from fastapi import Depends, Header, Request, Response

from services.clinic.idempotency import KEY_PATTERN, key_of, made
from services.clinic.metrics import ClinicMetrics
from services.clinic.preference import Wait, wait_preference
from services.clinic.state import State
from services.clinic.store import Answer
from shared.api.clinic import Case, CaseStatus


def _key(
    request: Request,
    idempotency_key: Annotated[  # noqa: ARG001 - for the document
        str | None,
        Header(
            description="Makes the request safe to repeat: a repetition is sent the first answer "
            "and does nothing. Of a request that was refused, nothing is kept.",
            json_schema_extra={"pattern": KEY_PATTERN},
            examples=['"8e03978e-40d5-43e8-bc93-6894a57f9324"'],
        ),
    ] = None,
) -> str | None:
    return key_of(request.headers.getlist("idempotency-key"))


def _wait(
    request: Request,
    state: State,
    prefer: Annotated[  # noqa: ARG001 - for the document
        str | None,
        Header(
            description="`wait=N`: answer within N seconds, with 202 if the case has not ended; "
            "`respond-async`: at once. N over the clinic's longest wait counts as that. What is "
            "malformed is ignored.",
            examples=["wait=10"],
        ),
    ] = None,
) -> Wait | None:
    return wait_preference(request.headers.getlist("prefer"), state.settings.max_wait_s)


Key = Annotated[str | None, Depends(_key)]
Waiting = Annotated[Wait | None, Depends(_wait)]


def waited(case: Case, wait: Wait | None, metrics: ClinicMetrics) -> Answer:
    """The answer to a request that made a case and was waited for so long."""
    if wait is None:
        return made(case)
    in_time = case.status is not CaseStatus.RUNNING
    metrics.waits.labels("finished" if in_time else "running").inc()
    return made(case, **{"preference-applied": wait.applied})


def sent(answer: Answer) -> Response:
    """An answer, on its way."""
    return Response(
        answer.body, answer.status, headers=answer.headers, media_type="application/json"
    )
