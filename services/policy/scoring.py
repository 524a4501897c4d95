"""Entropies of a given continuation: the engine takes its tokens one by one, measuring each.

A forced token is drawn from the same masked distribution by the same logits processor that
measures sampled ones, so the two kinds of entropy are the same number.
"""

import uuid
from collections.abc import Callable, Sequence

from services.policy.fetch import EntropyFetcher
from services.policy.generation import EngineFailed, check_context, engine_failures, render
from services.policy.metrics import PolicyMetrics
from services.policy.prompts import PromptBuilder, check_token_ids, refuse
from services.policy.tokens import TextStream, Vocabulary
from services.policy.vllm_adapter import Engine, forcing_params
from shared.agent.entropy import baseline_entropy_nats, tool_entropy_nats
from shared.agent.parser import parse_turn
from shared.agent.tools import Tool
from shared.api.policy import MAX_ENTROPY_TOKENS, EntropyRequest, EntropyResponse

_ATTEMPTS = 3


class Scorer:
    """Measures continuations under the served policy."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        builder: PromptBuilder,
        fetcher: EntropyFetcher,
        metrics: PolicyMetrics,
        tools: Callable[[], Sequence[Tool]],
    ) -> None:
        """`tools` are those of the policy that is served now."""
        self._engine = engine
        self._vocabulary = vocabulary
        self._builder = builder
        self._fetcher = fetcher
        self._metrics = metrics
        self._tools = tools

    async def score(self, request: EntropyRequest, request_id: str) -> EntropyResponse:
        """H_t, ln p and EVR's figures of a continuation. Raises `ApiProblem`."""
        ids = self._continuation_ids(request.continuation)
        prompt = await self._builder.build(request.segments)
        check_context(len(prompt.token_ids), len(ids), self._engine.max_model_len)
        for _ in range(_ATTEMPTS):
            key = uuid.uuid4().hex
            rendered = await render(self._engine, prompt)
            params = forcing_params(key=key, token_ids=ids)
            spans: list[tuple[int, int]] = []
            taken: list[int] = []
            with engine_failures():
                async for output in self._engine.generate(rendered, params, request_id):
                    spans, taken = output.version_spans, output.token_ids
                entropies, logprobs = await self._fetcher.fetch(key, 0, final=True)
            if taken == ids and len(spans) == 1 and len(entropies) >= len(ids) <= len(logprobs):
                self._metrics.scored_tokens.inc(len(ids))
                num_tokens = len(ids)
                return self._answer(ids, logprobs[:num_tokens], entropies[:num_tokens], spans[0][0])
        raise EngineFailed("the continuation could not be scored under a single policy version")

    def _continuation_ids(self, continuation: str | list[int]) -> list[int]:
        if isinstance(continuation, str):
            continuation = list(self._vocabulary.encode(continuation))
        check_token_ids(continuation, self._vocabulary, "continuation")
        if len(continuation) > MAX_ENTROPY_TOKENS:
            raise refuse(
                f"the continuation has {len(continuation)} tokens; at most "
                f"{MAX_ENTROPY_TOKENS} are scored"
            )
        return continuation

    def _answer(
        self, ids: list[int], logprobs: list[float], entropies: list[float], version: int
    ) -> EntropyResponse:
        texts = TextStream(self._vocabulary).push(ids, final=True)
        turn = parse_turn(texts, self._tools())
        first, end = turn.first_coordinate_token, turn.end_token
        baseline = baseline_entropy_nats(entropies, len(ids) if first is None else first)
        tool = None if first is None else tool_entropy_nats(entropies[first:end])
        return EntropyResponse(
            token_ids=ids,
            token_texts=texts,
            logprobs=logprobs,
            entropies_nats=entropies,
            baseline_entropy_nats=baseline,
            tool_entropy_nats=tool,
            entropy_increase_nats=None if tool is None else tool - baseline,
            version=version,
        )
