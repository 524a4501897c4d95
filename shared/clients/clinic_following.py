"""Where a follower of a case stands: what it has, when it comes back, when it gives up.

An event is yielded once, whatever happens to the connection: the follower comes back with the
number of the last event it has, and the clinic goes on after that one, also a restarted clinic.
"""

import time
from collections.abc import Callable

import httpx
import msgspec
from httpx_sse import ServerSentEvent, SSEError
from pydantic import TypeAdapter, ValidationError

from shared.api.case_events import CaseEvent, DoneEvent
from shared.clients.clinic_calls import Call, case_path, problem_of, shown, unreachable
from shared.clients.http import Retries, misfit_of
from shared.errors import ClinicError

PATIENCE_S = 120.0
"""How long a follower looks for a clinic that is away."""

Failure = httpx.TransportError | SSEError | ClinicError

_EVENT: TypeAdapter[CaseEvent] = TypeAdapter(CaseEvent)
_PAUSES = Retries(first_pause_s=0.2, factor=2.0)


class FollowedEvent(msgspec.Struct, frozen=True):
    """An event of a case."""

    number: int
    """From 1; `follow(…, after=number)` goes on behind it."""
    event: CaseEvent


class Following:
    """One follower of one case."""

    def __init__(
        self,
        case_id: str,
        after: int,
        patience_s: float,
        *,
        show_withheld: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = shown(case_path(case_id, "events"), show_withheld=show_withheld)
        self._after = after
        self._patience_s = patience_s
        self._clock = clock
        self._failing_since: float | None = None
        self._num_failures = 0
        self._retry_s = 0.0
        self.is_done = False
        """Nothing can follow."""

    def call(self) -> Call:
        """The request for what comes after the last event."""
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._after:
            headers["last-event-id"] = str(self._after)
        return Call(method="GET", path=self._path, headers=headers)

    def opened(self, response: httpx.Response) -> bool:
        """Whether there is a stream to read. Raises `ClinicProblem`; an error must be read."""
        if response.status_code >= 400:
            raise problem_of(response)
        self.is_done = response.status_code == 204
        return not self.is_done

    def read(self, sent: ServerSentEvent) -> FollowedEvent | None:
        """The event that was sent; None for what only says when to come back."""
        self._failing_since, self._num_failures = None, 0
        if sent.retry is not None:
            self._retry_s = sent.retry / 1000
        if not sent.data:
            return None
        try:
            event = _EVENT.validate_json(sent.data)
            self._after = int(sent.id)
        except (ValidationError, ValueError) as error:
            what = misfit_of(error) if isinstance(error, ValidationError) else "its id is no number"
            raise ClinicError(f"an event cannot be read ({what})", is_transient=False) from error
        self.is_done = isinstance(event, DoneEvent)
        return FollowedEvent(self._after, event)

    def pause_s(self, failure: Failure | None) -> float:
        """How long to stay away after a stream that ended or failed.

        Raises `ClinicError` if coming back does not help, or has not helped for too long.
        """
        if failure is None:
            return self._retry_s
        if isinstance(failure, SSEError):
            raise ClinicError(f"not an event stream ({failure})", is_transient=False) from failure
        error = unreachable(failure) if isinstance(failure, httpx.TransportError) else failure
        now = self._clock()
        if self._failing_since is None:  # a stream may be silent for as long as it likes
            self._failing_since = now
        if not error.is_transient or now - self._failing_since > self._patience_s:
            raise error from (None if error is failure else failure)
        self._num_failures += 1
        return _PAUSES.pause_s(self._num_failures - 1)
