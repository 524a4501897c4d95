"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a repeated POST is done once.

The first request with a key does the work, and its answer is kept in the clinic's database until
the key expires; a repetition is sent that answer. While the first is at work a repetition is
answered 409, also by the next process if this one ends: the case goes on there, and once it is
final the repetition is answered with it. A key with another request is answered 422. A request
that was refused or failed leaves no trace, so that it may be corrected or tried again.

Only digests of key and request are stored: a key may be anything.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from hashlib import sha256
from http import HTTPStatus

import msgspec

from services.clinic.metrics import ClinicMetrics
from services.clinic.showing import shown
from services.clinic.store import Answer, CaseStore, Kept, Repeatable
from shared.api.clinic import KEY_OUTSTANDING, Case, CaseStatus
from shared.errors import ApiProblem

MAX_KEY_CHARS = 255
KEY_PATTERN = rf'^("[ !#-\[\]-~]{{1,{MAX_KEY_CHARS}}}"|[A-Za-z0-9._~:/+=-]{{1,{MAX_KEY_CHARS}}})$'
"""A string of RFC 9651 without escapes; clients that leave out its quotes are understood."""

_KEY = re.compile(KEY_PATTERN)

Work = Callable[[Repeatable | None], Awaitable[Answer]]


def fingerprint_of(*parts: object) -> str:
    """Digest of what was asked, from its parts."""
    return sha256(msgspec.json.encode(parts)).hexdigest()


def key_of(headers: Sequence[str]) -> str | None:
    """The key among the lines of `Idempotency-Key`; None if there are none. Raises `ApiProblem`."""
    if not headers:
        return None
    if len(headers) > 1 or not _KEY.fullmatch(headers[0]):
        raise ApiProblem(
            HTTPStatus.BAD_REQUEST,
            "Idempotency-Key is malformed",
            f"accepted: one string of 1 to {MAX_KEY_CHARS} printable ASCII characters in double "
            "quotes, without backslash; quotes may be left out around letters, digits and ._~:/+=-",
        )
    return headers[0].strip('"')


def made(case: Case, **headers: str) -> Answer:
    """The answer to a request that made a case: 201 once it is final, 202 before."""
    is_final = case.status is not CaseStatus.RUNNING
    return Answer(
        status=HTTPStatus.CREATED if is_final else HTTPStatus.ACCEPTED,
        headers={"location": f"/v1/cases/{case.case_id}", **headers},
        body=shown(case).model_dump_json(),
    )


class Repetitions:
    """The keyed requests of one clinic process."""

    def __init__(
        self,
        store: CaseStore,
        metrics: ClinicMetrics,
        keep_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._keep_s = keep_s
        self._now = now
        self._at_work: dict[str, str] = {}
        """Key digest → fingerprint, of the requests being worked on."""
        self._looking = asyncio.Lock()
        """Held from looking a key up to taking it, or two requests could both be the first."""

    async def once(self, key: str | None, fingerprint: str, work: Work) -> Answer:
        """The answer to a request, worked out at most once per key. Raises `ApiProblem`."""
        if key is None:
            return await work(None)
        asked_at_s = self._now().timestamp()
        request = Repeatable(sha256(key.encode()).hexdigest(), fingerprint, asked_at_s)
        async with self._looking:
            self._check(self._at_work.get(request.key_sha256), fingerprint)
            kept = await asyncio.to_thread(
                self._store.kept, request.key_sha256, asked_at_s - self._keep_s
            )
            if kept is None:
                self._at_work[request.key_sha256] = fingerprint
        if kept is not None:
            return await self._replayed(kept, fingerprint)
        try:
            self._count("first")
            answer = await work(request)
            await asyncio.to_thread(self._store.keep, request, answer)
            return answer
        finally:
            del self._at_work[request.key_sha256]

    def _check(self, at_work: str | None, fingerprint: str) -> None:
        if at_work is not None:
            self._same(at_work, fingerprint)
            raise self._still_running()

    def _same(self, first: str, fingerprint: str) -> None:
        if first != fingerprint:
            self._count("mismatched")
            raise ApiProblem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "Idempotency-Key is already used",
                "this key belongs to another request; a new request needs a new key",
            )

    def _still_running(self) -> ApiProblem:
        self._count("running")
        return ApiProblem(
            HTTPStatus.CONFLICT,
            KEY_OUTSTANDING,
            "the first request with this key is still being worked on; repeat it later",
        )

    async def _replayed(self, kept: Kept, fingerprint: str) -> Answer:
        self._same(kept.fingerprint, fingerprint)
        if kept.answer is not None:
            self._count("replayed")
            return kept.answer
        assert kept.case_id is not None, "a key is written with its answer or with its case"
        case = await asyncio.to_thread(self._store.get, kept.case_id)
        if case.status is CaseStatus.RUNNING:
            raise self._still_running()
        self._count("replayed")
        return made(case)

    def _count(self, outcome: str) -> None:
        self._metrics.keyed_requests.labels(outcome).inc()
