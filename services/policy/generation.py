"""One turn: from a validated request to tokens, texts, log-probabilities, entropies and versions.

A request that vLLM gives back unstarted (its image fell out of one half of the processor cache)
is sent again; a caller never sees that.
"""

import logging
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from services.policy.fetch import EntropyFetcher
from services.policy.metrics import PolicyMetrics
from services.policy.prompts import Prompt, PromptBuilder, refuse
from services.policy.tokens import TextStream, Vocabulary
from services.policy.vllm_adapter import (
    Engine,
    EngineDead,
    EngineOutput,
    RejectedByEngine,
    measured_params,
    plain_params,
)
from shared.api.policy import GenerateDelta, GenerateRequest, GenerateResponse, WireVersionSpan
from shared.errors import ApiProblem

logger = logging.getLogger(__name__)

_ATTEMPTS = 3


class EngineFailed(ApiProblem):
    """The engine stopped a request that was in order; asking again may help (503)."""

    def __init__(self, detail: str) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, "Engine failed", detail)


@contextmanager
def engine_failures() -> Generator[None]:
    """An engine that has ended is a failure of the moment (503): another one starts."""
    try:
        yield
    except EngineDead as error:
        raise EngineFailed("the engine has ended; a new one starts") from error


@dataclass(slots=True)
class _Turn:
    """What has been sampled so far; lists have one entry per token."""

    token_ids: list[int] = field(default_factory=list[int])
    token_texts: list[str] = field(default_factory=list[str])
    sampled_logprobs: list[float] = field(default_factory=list[float])
    entropies_nats: list[float] = field(default_factory=list[float])


class TurnGenerator:
    """Continues prompts by one turn."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        builder: PromptBuilder,
        fetcher: EntropyFetcher,
        metrics: PolicyMetrics,
        *,
        measures_entropies: bool = True,
    ) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._builder = builder
        self._fetcher = fetcher
        self._metrics = metrics
        self._measures = measures_entropies

    async def prepare(self, request: GenerateRequest) -> Prompt:
        """Check a request and build its prompt. Raises `ApiProblem`."""
        if request.temperature not in (0.0, 1.0):
            raise refuse(
                f"temperature {request.temperature:g}: only 0 (greedy) and 1 (the raw "
                "distribution) are served, because log-probabilities and entropies are its"
            )
        if any(not stop for stop in request.stop):
            raise refuse("stop: an empty stop string")
        prompt = await self._builder.build(request.segments)
        check_context(len(prompt.token_ids), request.max_tokens, self._engine.max_model_len)
        return prompt

    async def generate(
        self, request: GenerateRequest, prompt: Prompt, request_id: str
    ) -> GenerateResponse:
        """The whole turn."""
        response: GenerateResponse | None = None
        async for line in self._lines(request, prompt, request_id, stream=False):
            if isinstance(line, GenerateResponse):
                response = line
        assert response is not None
        return response

    async def stream(
        self, request: GenerateRequest, prompt: Prompt, request_id: str
    ) -> AsyncGenerator[GenerateDelta | GenerateResponse, None]:
        """Deltas as they are sampled, then the whole turn."""
        async for line in self._lines(request, prompt, request_id, stream=True):
            yield line

    async def _lines(
        self, request: GenerateRequest, prompt: Prompt, request_id: str, *, stream: bool
    ) -> AsyncGenerator[GenerateDelta | GenerateResponse, None]:
        key = uuid.uuid4().hex
        turn, texts = _Turn(), TextStream(self._vocabulary)
        taken = False
        try:
            with engine_failures():
                async for output in self._outputs(request, prompt, key, request_id, stream):
                    taken = output.finish is not None
                    delta = await self._delta(key, turn, texts, output)
                    if stream and delta.token_ids:
                        yield delta
                    if output.finish is not None:
                        self._metrics.sampled_tokens.inc(len(turn.token_ids))
                        yield _response(prompt, turn, output)
        finally:
            if not taken and self._measures:
                self._fetcher.discard(key)

    async def _outputs(
        self, request: GenerateRequest, prompt: Prompt, key: str, request_id: str, stream: bool
    ) -> AsyncGenerator[EngineOutput, None]:
        """The engine's outputs; a request given back unstarted is sent again."""
        stop_token_ids = self._vocabulary.end_ids
        if self._measures:
            params = measured_params(
                key=key,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.seed,
                stop=request.stop,
                stop_token_ids=stop_token_ids,
                stream=stream,
            )
        else:
            params = plain_params(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                stop=request.stop,
                stop_token_ids=stop_token_ids,
                stream=stream,
            )
        for attempt in range(_ATTEMPTS):
            rendered = await render(self._engine, prompt)
            async for output in self._engine.generate(rendered, params, request_id):
                if output.finish == "error" and not output.token_ids:
                    break
                if output.finish in ("error", "abort"):
                    raise EngineFailed(f"the engine ended the request with {output.finish}")
                yield output
            else:
                return
            logger.info("the engine gave a request back unstarted, attempt %d", attempt + 1)
        raise EngineFailed("the engine gave the request back unstarted three times")

    async def _delta(
        self, key: str, turn: _Turn, texts: TextStream, output: EngineOutput
    ) -> GenerateDelta:
        final = output.finish is not None
        num_tokens = len(output.token_ids)
        entropies, logprobs = [0.0] * num_tokens, output.logprobs
        if self._measures and (num_tokens or final):
            start = len(turn.token_ids)
            entropies, logprobs = await self._fetcher.fetch(key, start, final=final)
        if min(len(entropies), len(logprobs)) < num_tokens:
            raise EngineFailed(
                f"{num_tokens} tokens came with {len(entropies)} entropies and "
                f"{len(logprobs)} log-probabilities"
            )
        delta = GenerateDelta.model_construct(
            token_ids=output.token_ids,
            token_texts=texts.push(output.token_ids, final=final),
            sampled_logprobs=logprobs[:num_tokens],
            entropies_nats=entropies[:num_tokens],
        )
        turn.token_ids += delta.token_ids
        turn.token_texts += delta.token_texts
        turn.sampled_logprobs += delta.sampled_logprobs
        turn.entropies_nats += delta.entropies_nats
        return delta


def check_context(num_prompt: int, num_new: int, limit: int) -> None:
    """Raise `ApiProblem` if prompt and new tokens do not fit the context."""
    if num_prompt + num_new > limit:
        raise refuse(
            f"the prompt has {num_prompt} tokens and {num_new} more are asked for; "
            f"the context holds {limit}",
            title="Context full",
        )


async def render(engine: Engine, prompt: Prompt) -> Any:
    """The engine's input, checked to hold exactly the ids that are answered."""
    try:
        rendered = await engine.render(prompt.engine_token_ids, prompt.images, prompt.names)
    except (RejectedByEngine, ValueError) as error:
        raise refuse(str(error)) from error
    if rendered["prompt_token_ids"] != prompt.token_ids:
        raise ApiProblem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "Prompt mismatch",
            "the engine expanded an image to another number of tokens than expected: its "
            "processor resizes images, so its pixel limits differ from the policy's",
        )
    return rendered


def _finish(output: EngineOutput) -> Literal["stop", "end_of_sequence", "length"]:
    if output.finish == "length":
        return "length"
    return "stop" if isinstance(output.stop, str) else "end_of_sequence"


def _response(prompt: Prompt, turn: _Turn, output: EngineOutput) -> GenerateResponse:
    return GenerateResponse.model_construct(
        segment_token_ids=prompt.segment_token_ids,
        token_ids=turn.token_ids,
        token_texts=turn.token_texts,
        sampled_logprobs=turn.sampled_logprobs,
        entropies_nats=turn.entropies_nats,
        finish=_finish(output),
        stop=output.stop if isinstance(output.stop, str) else None,
        version_spans=[
            WireVersionSpan.model_construct(version=version, num_tokens=num_tokens)
            for version, num_tokens in output.version_spans
        ],
        num_cached_tokens=output.num_cached_tokens,
    )
