"""What is asked of a clinic, when it is asked again, and how its answers are read: no connection.

Each operation is a generator of steps. It yields a `Call` to be sent and is given the response or
the transport's error, or yields a `Pause` to be slept; what it returns is the result. The clients
(`clinic`, `clinic_async`) only carry the steps out, one blocking and one not, so both ask, repeat
and fail alike. Jobs are in `clinic_job_calls`.

Every call may be repeated: a POST carries an idempotency key, and repetitions carry the same one.
So a lost connection, also one that broke while the answer was on its way, is asked again, and what
was done once stays done once.
"""

import time
import uuid
from collections.abc import Callable, Generator, Sequence
from os import PathLike
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from pydantic import BaseModel, ValidationError

from shared.api.clinic import KEY_OUTSTANDING, Case, CasePage, CaseStatus, FollowUp
from shared.api.feedback import Feedback, FeedbackRequest
from shared.api.zoom import Axis, WindowPreset
from shared.clients.http import TRANSIENT_STATUSES, Retries, encode, misfit_of, read_problem
from shared.errors import ClinicError, ClinicProblem

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

ImageSource = str | PathLike[str] | bytes | BinaryIO
"""A path, the bytes of a file, or an open file, which is read to its end."""

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
"""Of a read: longer than the clinic's heartbeat and than what a request asks it to wait."""
RETRIES = Retries(max_attempts=6)
"""Nine seconds in all: a clinic that is being restarted is back by then."""

_LONGEST_PREFERENCE_S = 20
"""What a request asks the clinic to wait; for longer the case is looked at again and again."""
_LEAST_OUTSTANDING_S = 30.0
"""A case whose answer was lost is looked for at least so long, or it could not be named."""
_POLLS = Retries(first_pause_s=0.2, factor=1.5, longest_pause_s=2.0)


class AskForm(TypedDict, total=False):
    """What may be said beside image and question; left out, the clinic decides."""

    choices: Sequence[str]
    """Two or more, or none for an open question."""
    k: int | None
    """Number of trajectories."""
    seed: int | None
    """Makes the case repeatable."""
    frame: int | None
    """Of a file that holds several, from 1."""
    axis: Axis | None
    """NIfTI: which way to slice."""
    index: int | None
    """NIfTI: the slice, from 0."""
    window: WindowPreset | Literal["ct_rgb"] | None
    """A usual window of CT, or three of them as colours."""
    window_center: float | None
    """With `window_width`, instead of `window`."""
    window_width: float | None
    verify: bool | None
    """Whether to ask again without the evidence."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request to send."""

    method: str
    path: str
    """With its query, from the clinic's root on."""
    headers: dict[str, str] = {}
    content: bytes | None = None


class Pause(msgspec.Struct, frozen=True):
    """Time to let pass."""

    seconds: float


Steps = Generator[Call | Pause, httpx.Response | None, T]


def image_bytes(image: ImageSource) -> bytes:
    """The bytes of an image file. Raises `OSError`."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    return image.read()


def case_path(case_id: str, *parts: str) -> str:
    """The path of a case, or of something of it."""
    return "/".join(["/v1/cases", *(quote(part, safe="") for part in (case_id, *parts))])


def shown(path: str, *, show_withheld: bool) -> str:
    """A path of which the clinic leaves out what it withholds, unless asked to show it."""
    return f"{path}?show=withheld" if show_withheld else path


def form_call(
    path: str,
    fields: Sequence[tuple[str, str]],
    form: AskForm,
    files: Sequence[tuple[str, tuple[str, bytes]]],
) -> Call:
    """A form with files, each a field with a name and the bytes; what was not given is not sent."""
    sent: dict[str, list[str]] = {name: [value] for name, value in fields}
    for name, value in form.items():
        if isinstance(value, bool):
            sent[name] = [str(value).lower()]
        elif isinstance(value, str | int | float):
            sent[name] = [str(value)]
        elif isinstance(value, Sequence):
            sent[name] = [str(one) for one in value]
    request = httpx.Request("POST", "http://clinic/", data=sent, files=list(files))
    headers = {"content-type": request.headers["content-type"]}
    return Call(method="POST", path=path, headers=headers, content=request.read())


def json_call(path: str, body: BaseModel) -> Call:
    """A model to POST."""
    return Call(
        method="POST",
        path=path,
        headers={"content-type": "application/json"},
        content=encode(body),
    )


def keyed(call: Call, key: str | None) -> Call:
    """A call that may be repeated: with this idempotency key, or one that nobody else uses."""
    return _with_header(call, "idempotency-key", f'"{key or uuid.uuid4()}"')


def _with_header(call: Call, name: str, value: str) -> Call:
    return msgspec.structs.replace(call, headers={**call.headers, name: value})


def problem_of(response: httpx.Response) -> ClinicProblem:
    """The exception that a read error response stands for."""
    problem = read_problem(response)
    status = response.status_code
    is_outstanding = status == 409 and problem.title == KEY_OUTSTANDING
    return ClinicProblem(
        status,
        problem.title,
        problem.detail,
        is_transient=is_outstanding or status in TRANSIENT_STATUSES,
    )


def unreachable(error: httpx.TransportError) -> ClinicError:
    """The exception that a broken connection stands for."""
    what = type(error.__cause__ or error).__name__
    return ClinicError(f"no answer ({what}: {error})", is_transient=True)


def decoded(content: bytes, response_type: type[M]) -> M:
    """JSON as a model. Raises `ClinicError` naming the members that do not fit."""
    try:
        return response_type.model_validate_json(content)
    except ValidationError as error:
        message = f"response is no {response_type.__name__} ({misfit_of(error)})"
        raise ClinicError(message, is_transient=False) from error


def answered(call: Call, retries: Retries) -> Steps[httpx.Response]:
    """The response to a call, asked again where that helps. Raises `ClinicError`."""
    for attempt in range(retries.max_attempts):
        retry_after = None
        try:
            response = yield call
        except httpx.TransportError as error:
            failure = unreachable(error)
        else:
            assert response is not None, "a call is answered with a response"
            if response.status_code < 400:
                return response
            failure = problem_of(response)
            retry_after = response.headers.get("retry-after")
        if not failure.is_transient or attempt + 1 == retries.max_attempts:
            raise failure
        yield Pause(retries.pause_s(attempt, retry_after))
    raise AssertionError("max_attempts must be at least 1")


def read(path: str, response_type: type[M], retries: Retries) -> Steps[M]:
    """GET a model."""
    response = yield from answered(Call(method="GET", path=path), retries)
    return decoded(response.content, response_type)


def picture(path: str, retries: Retries) -> Steps[bytes]:
    """GET the bytes of a picture."""
    response = yield from answered(Call(method="GET", path=path), retries)
    return response.content


def ask(
    image: bytes,
    question: str,
    form: AskForm,
    *,
    wait_s: float | None,
    key: str | None,
    retries: Retries,
) -> Steps[Case]:
    """Ask, and wait for the end of the case: None for as long as it takes."""
    # neither the file's name nor its type is sent
    call = form_call("/v1/cases", [("question", question)], form, [("image", ("image", image))])
    return (yield from _new_case(keyed(call, key), wait_s, retries))


def follow_up(
    case_id: str, asked: FollowUp, *, wait_s: float | None, key: str | None, retries: Retries
) -> Steps[Case]:
    """Ask a further question about the image of a case, and wait as `ask` does."""
    call = json_call(case_path(case_id, "follow-ups"), asked)
    return (yield from _new_case(keyed(call, key), wait_s, retries))


def _new_case(call: Call, wait_s: float | None, retries: Retries) -> Steps[Case]:
    """The case that a keyed call makes, once it has ended or `wait_s` has passed."""
    started = time.monotonic()
    first_s = _LONGEST_PREFERENCE_S if wait_s is None else min(_LONGEST_PREFERENCE_S, wait_s)
    patience_s = None if wait_s is None else max(wait_s, _LEAST_OUTSTANDING_S)
    waiting = _with_header(call, "prefer", f"wait={int(first_s)}")
    response = yield from found(waiting, retries, patience_s)
    case = decoded(response.content, Case)
    left_s = None if wait_s is None else wait_s - (time.monotonic() - started)
    if case.status is not CaseStatus.RUNNING or (left_s is not None and left_s <= 0):
        return case
    return (yield from wait(case.case_id, left_s, retries))


def found(call: Call, retries: Retries, patience_s: float | None) -> Steps[httpx.Response]:
    """The answer to a keyed request, also where a former sending of it is still at work."""
    give_up_at = None if patience_s is None else time.monotonic() + patience_s
    attempt = 0
    while True:
        try:
            return (yield from answered(call, retries))
        except ClinicProblem as problem:
            is_over = give_up_at is not None and time.monotonic() > give_up_at
            if problem.title != KEY_OUTSTANDING or is_over:
                raise
        yield Pause(_POLLS.pause_s(attempt))
        attempt += 1


def wait(case_id: str, wait_s: float | None, retries: Retries) -> Steps[Case]:
    """The case once it has ended, or as it stands after `wait_s`."""
    return polled(
        lambda: read(case_path(case_id), Case, retries),
        lambda case: case.status is CaseStatus.RUNNING,
        wait_s,
        _POLLS,
    )


def polled(
    look: Callable[[], Steps[M]],
    is_running: Callable[[M], bool],
    wait_s: float | None,
    pauses: Retries,
) -> Steps[M]:
    """What is looked at again and again until it has ended, or as it stands after `wait_s`."""
    give_up_at = None if wait_s is None else time.monotonic() + wait_s
    attempt = 0
    while True:
        seen = yield from look()
        pause_s = pauses.pause_s(attempt)
        if give_up_at is not None:
            pause_s = min(pause_s, give_up_at - time.monotonic())
        if not is_running(seen) or pause_s <= 0:
            return seen
        yield Pause(pause_s)
        attempt += 1


def cancel(case_id: str, key: str | None, retries: Retries) -> Steps[Case]:
    """End a running case."""
    call = Call(method="POST", path=case_path(case_id, "cancel"))
    response = yield from answered(keyed(call, key), retries)
    return decoded(response.content, Case)


def give_feedback(
    case_id: str, said: FeedbackRequest, key: str | None, retries: Retries
) -> Steps[Feedback]:
    """Add a version to the feedback on a case."""
    call = json_call(case_path(case_id, "feedback"), said)
    response = yield from answered(keyed(call, key), retries)
    return decoded(response.content, Feedback)


def page(next_url: str | None, limit: int, retries: Retries) -> Steps[CasePage]:
    """A page of the cases: the first, or the one that another leads to."""
    return read(next_url or f"/v1/cases?limit={limit}", CasePage, retries)
