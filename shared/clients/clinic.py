"""Typed client of the clinic API that blocks: a question, its course, its evidence, many at once.

`clinic_async` has the same methods to await. Both do the same by construction: what is asked and
when it is repeated is in `clinic_calls` and `clinic_job_calls`, here are only the connections.
Every method raises `ClinicError` (with `is_transient` saying whether asking again may help),
`ClinicProblem` where the clinic said what was wrong. Research use only.
"""

import time
from collections.abc import Generator, Sequence
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
from shared.clients.http import Retries
from shared.errors import ClinicError

T = TypeVar("T")


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

    def follow_up(
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
        """Ask a further question about the image of an answered case, and wait as `ask` does.

        A new case, whose `context` says how much of the conversation the policy was shown.
        """
        asked = FollowUp(question=question, choices=list(choices), k=k, seed=seed)
        return self._run(
            calls.follow_up(
                case_id, asked, wait_s=wait_s, key=idempotency_key, retries=self._retries
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

    def start_job(
        self,
        images: Sequence[ImageSource],
        question: str | None = None,
        *,
        questions: ImageSource | None = None,
        idempotency_key: str | None = None,
        **form: Unpack[AskForm],
    ) -> Job:
        """Ask one question of every image, or the `questions` of a CSV file; do not wait.

        All files are held in memory while they are sent. Rows name an image by the name of its
        path or the SHA-256 of its bytes; what a row leaves out is the form's.
        """
        files = job_calls.job_files(images, questions)
        return self._run(
            job_calls.start(files, question, form, key=idempotency_key, retries=self._retries)
        )

    def job(self, job_id: str) -> Job:
        """The job as it stands, with the first page of its items."""
        return self._run(job_calls.job(job_id, self._retries))

    def jobs(self, limit: int = 20) -> Generator[JobSummary, None, None]:
        """The jobs, newest first, read `limit` at a time."""
        next_url = None
        while True:
            page = self._run(job_calls.page(next_url, limit, self._retries))
            yield from page.jobs
            next_url = page.next_url
            if next_url is None:
                return

    def job_items(self, job_id: str, limit: int = 100) -> Generator[JobItem, None, None]:
        """The items of a job in order of their numbers, read `limit` at a time."""
        next_url = None
        while True:
            page = self._run(job_calls.items(job_id, next_url, limit, self._retries))
            yield from page.items
            next_url = page.next_url
            if next_url is None:
                return

    def wait_for_job(self, job_id: str, wait_s: float | None = None) -> Job:
        """The job once it has ended, or as it stands after `wait_s`; looked at ever more rarely."""
        return self._run(job_calls.wait(job_id, wait_s, self._retries))

    def cancel_job(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """End a running job: cases that have ended stay; of a cancelled one, nothing changes."""
        return self._run(job_calls.cancel(job_id, idempotency_key, self._retries))

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
