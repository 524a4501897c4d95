"""Typed client of the clinic API to await; what its methods do is said at those of `clinic`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Self, TypeVar, Unpack, cast

import httpx
from httpx_sse import EventSource, SSEError

from shared.api.clinic import Case, CasePage, ClinicDescription, FollowUp
from shared.api.feedback import Feedback, FeedbackHistory, FeedbackRequest
from shared.api.jobs import Job, JobItem, JobSummary
from shared.clients import clinic_calls as calls
from shared.clients import clinic_job_calls as job_calls
from shared.clients.clinic_calls import (
    RETRIES,
    TIMEOUT,
    AskForm,
    Call,
    ImageSource,
    Pause,
    Steps,
    case_path,
)
from shared.clients.clinic_following import PATIENCE_S, Failure, FollowedEvent, Following
from shared.clients.http import Retries, open_client
from shared.errors import ClinicError

T = TypeVar("T")


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

    async def follow_up(
        self,
        case_id: str,
        question: str,
        *,
        choices: Sequence[str] = (),
        k: int | None = None,
        seed: int | None = None,
        wait_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Case:
        """Ask a further question about the image of an answered case, and wait as `ask` does."""
        asked = FollowUp(question=question, choices=list(choices), k=k, seed=seed)
        return await self._run(
            calls.follow_up(
                case_id, asked, wait_s=wait_s, key=idempotency_key, retries=self._retries
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

    async def start_job(
        self,
        images: Sequence[ImageSource],
        question: str | None = None,
        *,
        questions: ImageSource | None = None,
        idempotency_key: str | None = None,
        **form: Unpack[AskForm],
    ) -> Job:
        """Ask one question of every image, or the `questions` of a CSV file; do not wait."""
        files = await asyncio.to_thread(job_calls.job_files, images, questions)
        return await self._run(
            job_calls.start(files, question, form, key=idempotency_key, retries=self._retries)
        )

    async def job(self, job_id: str) -> Job:
        """The job as it stands, with the first page of its items."""
        return await self._run(job_calls.job(job_id, self._retries))

    async def jobs(self, limit: int = 20) -> AsyncGenerator[JobSummary, None]:
        """The jobs, newest first, read `limit` at a time."""
        next_url = None
        while True:
            page = await self._run(job_calls.page(next_url, limit, self._retries))
            for one in page.jobs:
                yield one
            next_url = page.next_url
            if next_url is None:
                return

    async def job_items(self, job_id: str, limit: int = 100) -> AsyncGenerator[JobItem, None]:
        """The items of a job in order of their numbers, read `limit` at a time."""
        next_url = None
        while True:
            page = await self._run(job_calls.items(job_id, next_url, limit, self._retries))
            for one in page.items:
                yield one
            next_url = page.next_url
            if next_url is None:
                return

    async def wait_for_job(self, job_id: str, wait_s: float | None = None) -> Job:
        """The job once it has ended, or as it stands after `wait_s`; looked at ever more rarely."""
        return await self._run(job_calls.wait(job_id, wait_s, self._retries))

    async def cancel_job(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """End a running job: cases that have ended stay; of a cancelled one, nothing changes."""
        return await self._run(job_calls.cancel(job_id, idempotency_key, self._retries))

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
