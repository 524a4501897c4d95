"""Typed clients of the clinic API, blocking and asynchronous: a question, its course, its evidence.

Both do the same by construction: what is asked and when it is repeated is in `clinic_calls`, here
are only the connections. Every method raises `ClinicError` (with `is_transient` saying whether
asking again may help), `ClinicProblem` where the clinic said what was wrong. Research use only.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Self, TypeVar, Unpack, cast

import httpx
from httpx_sse import EventSource, SSEError

from shared.api.clinic import Case, CasePage, ClinicDescription
from shared.api.feedback import Feedback, FeedbackHistory, FeedbackRequest
from shared.clients import clinic_calls as calls
from shared.clients.clinic_calls import AskForm, Call, ImageSource, Pause, Steps, case_path
from shared.clients.clinic_following import Failure, FollowedEvent, Following
from shared.clients.http import Retries, open_client
from shared.errors import ClinicError

T = TypeVar("T")

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
"""Of a read: longer than the clinic's heartbeat and than what a request asks it to wait."""
RETRIES = Retries(max_attempts=6)
"""Nine seconds in all: a clinic that is being restarted is back by then."""
PATIENCE_S = 120.0
"""How long a follower looks for a clinic that is away."""


class ClinicClient:
    """Blocking calls to a clinic; a context manager."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        client: httpx.Client | None = None,
        *,
        retries: Retries = RETRIES,
    ) -> None:
        """`client` is how the clinic is reached, e.g. through a gateway that wants a login."""
        self._url = url.rstrip("/")
        self._owns_client = client is None
        self._client = client or httpx.Client(timeout=TIMEOUT, trust_env=False)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections this client opened."""
        if self._owns_client:
            self._client.close()

    def ask(
        self,
        image: ImageSource,
        question: str,
        *,
        wait_s: float | None = None,
        idempotency_key: str | None = None,
        **form: Unpack[AskForm],
    ) -> Case:
        """Ask, and wait for the end of the case: None for as long as it takes, 0 not at all.

        A case that did not end in time is returned running. Repetitions carry the same key, also
        those that a caller makes with a key of its own, and lead to the same case.
        """
        data = calls.image_bytes(image)
        return self._run(
            calls.ask(
                data, question, form, wait_s=wait_s, key=idempotency_key, retries=self._retries
            )
        )

    def get(self, case_id: str, *, show_withheld: bool = False) -> Case:
        """The case as it stands, with an answer that it withholds only if that is asked for."""
        path = calls.shown(case_path(case_id), show_withheld=show_withheld)
        return self._run(calls.read(path, Case, self._retries))

    def wait(self, case_id: str, wait_s: float | None = None) -> Case:
        """The case once it has ended, or as it stands after `wait_s`."""
        return self._run(calls.wait(case_id, wait_s, self._retries))

    def cancel(self, case_id: str, *, idempotency_key: str | None = None) -> Case:
        """End a running case; of a cancelled one, nothing changes."""
        return self._run(calls.cancel(case_id, idempotency_key, self._retries))

    def pages(self, limit: int = 20) -> Generator[CasePage, None, None]:
        """The cases, newest first, `limit` at a time."""
        next_url = None
        while True:
            page = self._run(calls.page(next_url, limit, self._retries))
            yield page
            next_url = page.next_url
            if next_url is None:
                return

    def follow(
        self,
        case_id: str,
        *,
        after: int = 0,
        show_withheld: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> Generator[FollowedEvent, None, None]:
        """The events of a case after event `after`, each once, until it is done.

        A connection that ends or breaks is opened again. A case that is begun again tells
        `started` again; what it told before is then void.
        """
        following = Following(case_id, after, patience_s, show_withheld=show_withheld)
        while not following.is_done:
            failure: Failure | None = None
            try:
                response = self._client.send(self._request(following.call()), stream=True)
                try:
                    if response.is_error:
                        response.read()
                    if following.opened(response):
                        for sent in EventSource(response).iter_sse():
                            told = following.read(sent)
                            if told is not None:
                                yield told
                finally:
                    response.close()
            except (httpx.TransportError, SSEError, ClinicError) as error:
                failure = error
            if not following.is_done:
                time.sleep(following.pause_s(failure))

    def image(self, case_id: str) -> bytes:
        """The original that the case is about, as PNG."""
        return self._run(calls.picture(case_path(case_id, "image"), self._retries))

    def crop(self, case_id: str, crop: str) -> bytes:
        """A crop that the case's evidence or one of its events names, as PNG."""
        return self._run(calls.picture(case_path(case_id, "crops", crop), self._retries))

    def heatmap(self, case_id: str) -> bytes:
        """How many agreeing trajectories looked where, as PNG of greys."""
        return self._run(calls.picture(case_path(case_id, "heatmap"), self._retries))

    def give_feedback(
        self, case_id: str, said: FeedbackRequest, *, idempotency_key: str | None = None
    ) -> Feedback:
        """Say whether a case is right; the version that was added."""
        return self._run(calls.give_feedback(case_id, said, idempotency_key, self._retries))

    def feedback(self, case_id: str) -> FeedbackHistory:
        """All feedback on a case; the last version counts."""
        return self._run(calls.read(case_path(case_id, "feedback"), FeedbackHistory, self._retries))

    def describe(self) -> ClinicDescription:
        """What the clinic accepts."""
        return self._run(calls.read("/v1/clinic", ClinicDescription, self._retries))

    def _request(self, call: Call) -> httpx.Request:
        return self._client.build_request(
            call.method, self._url + call.path, content=call.content, headers=call.headers
        )

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(steps)
                    continue
                try:
                    response = self._client.send(self._request(step))
                except httpx.TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            return cast(T, end.value)


class AsyncClinicClient:
    """Asynchronous calls to a clinic; an async context manager. Methods as of `ClinicClient`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        client: httpx.AsyncClient | None = None,
        *,
        retries: Retries = RETRIES,
    ) -> None:
        self._url = url.rstrip("/")
        self._owns_client = client is None
        has_tls = self._url.startswith("https:")
        self._client = client or open_client(TIMEOUT, has_tls=has_tls)
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections this client opened."""
        if self._owns_client:
            await self._client.aclose()

    async def ask(
        self,
        image: ImageSource,
        question: str,
        *,
        wait_s: float | None = None,
        idempotency_key: str | None = None,
        **form: Unpack[AskForm],
    ) -> Case:
        """Ask, and wait for the end of the case: None for as long as it takes, 0 not at all."""
        data = await asyncio.to_thread(calls.image_bytes, image)
        return await self._run(
            calls.ask(
                data, question, form, wait_s=wait_s, key=idempotency_key, retries=self._retries
            )
        )

    async def get(self, case_id: str, *, show_withheld: bool = False) -> Case:
        """The case as it stands, with an answer that it withholds only if that is asked for."""
        path = calls.shown(case_path(case_id), show_withheld=show_withheld)
        return await self._run(calls.read(path, Case, self._retries))

    async def wait(self, case_id: str, wait_s: float | None = None) -> Case:
        """The case once it has ended, or as it stands after `wait_s`."""
        return await self._run(calls.wait(case_id, wait_s, self._retries))

    async def cancel(self, case_id: str, *, idempotency_key: str | None = None) -> Case:
        """End a running case; of a cancelled one, nothing changes."""
        return await self._run(calls.cancel(case_id, idempotency_key, self._retries))

    async def pages(self, limit: int = 20) -> AsyncGenerator[CasePage, None]:
        """The cases, newest first, `limit` at a time."""
        next_url = None
        while True:
            page = await self._run(calls.page(next_url, limit, self._retries))
            yield page
            next_url = page.next_url
            if next_url is None:
                return

    async def follow(
        self,
        case_id: str,
        *,
        after: int = 0,
        show_withheld: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> AsyncGenerator[FollowedEvent, None]:
        """The events of a case after event `after`, each once, until it is done."""
        following = Following(case_id, after, patience_s, show_withheld=show_withheld)
        while not following.is_done:
            failure: Failure | None = None
            try:
                response = await self._client.send(self._request(following.call()), stream=True)
                try:
                    if response.is_error:
                        await response.aread()
                    if following.opened(response):
                        async with aclosing(EventSource(response).aiter_sse()) as stream:
                            async for sent in stream:
                                told = following.read(sent)
                                if told is not None:
                                    yield told
                finally:
                    await response.aclose()
            except (httpx.TransportError, SSEError, ClinicError) as error:
                failure = error
            if not following.is_done:
                await asyncio.sleep(following.pause_s(failure))

    async def image(self, case_id: str) -> bytes:
        """The original that the case is about, as PNG."""
        return await self._run(calls.picture(case_path(case_id, "image"), self._retries))

    async def crop(self, case_id: str, crop: str) -> bytes:
        """A crop that the case's evidence or one of its events names, as PNG."""
        return await self._run(calls.picture(case_path(case_id, "crops", crop), self._retries))

    async def heatmap(self, case_id: str) -> bytes:
        """How many agreeing trajectories looked where, as PNG of greys."""
        return await self._run(calls.picture(case_path(case_id, "heatmap"), self._retries))

    async def give_feedback(
        self, case_id: str, said: FeedbackRequest, *, idempotency_key: str | None = None
    ) -> Feedback:
        """Say whether a case is right; the version that was added."""
        return await self._run(calls.give_feedback(case_id, said, idempotency_key, self._retries))

    async def feedback(self, case_id: str) -> FeedbackHistory:
        """All feedback on a case; the last version counts."""
        return await self._run(
            calls.read(case_path(case_id, "feedback"), FeedbackHistory, self._retries)
        )

    async def describe(self) -> ClinicDescription:
        """What the clinic accepts."""
        return await self._run(calls.read("/v1/clinic", ClinicDescription, self._retries))

    def _request(self, call: Call) -> httpx.Request:
        return self._client.build_request(
            call.method, self._url + call.path, content=call.content, headers=call.headers
        )

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(steps)
                    continue
                try:
                    response = await self._client.send(self._request(step))
                except httpx.TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            return cast(T, end.value)
