"""Log-probabilities and entropies are those of the masked temperature-1 distribution, exactly."""

import asyncio

import numpy as np
import pytest

from shared.agent.entropy import baseline_entropy_nats, tool_entropy_nats
from shared.api.policy import (
    EntropyRequest,
    GenerateRequest,
    ImageSegment,
    TextSegment,
    TokensSegment,
)
from shared.clients.policy import PolicyClient
from tests.policy.conftest import MakeImage, first_turn, flat
from tests.policy.reference import Reference

CALL = '<think>see</think><tool_call>{"name": "zoom_in", "arguments": {"bbox_2d": [8, 9, 50, 61]}}'
CALL += "</tool_call>"


@pytest.mark.parametrize("temperature", [1.0, 0.0])
async def test_a_second_turn_with_a_crop_matches_transformers(
    policy: PolicyClient,
    references: tuple[Reference, Reference],
    make_image: MakeImage,
    temperature: float,
) -> None:
    view, crop = make_image(1), make_image(2, 84, 56)
    first = await policy.generate(
        GenerateRequest(segments=first_turn(view), max_tokens=24, temperature=temperature, seed=5)
    )
    ids = first.segment_token_ids
    segments = [
        TokensSegment(token_ids=ids[0]),
        ImageSegment(image=view.name),
        TokensSegment(token_ids=ids[2] + first.token_ids),
        TextSegment(text="<|im_end|>\n<|im_start|>user\n<tool_response>"),
        ImageSegment(image=crop.name),
        TextSegment(text=" zoomed view</tool_response><|im_end|>\n<|im_start|>assistant\n"),
    ]
    second = await policy.generate(
        GenerateRequest(segments=segments, max_tokens=40, temperature=temperature, seed=6)
    )
    prompt = flat(second.segment_token_ids)
    logprobs, entropies = references[0].continuation(
        prompt, [view.pixels, crop.pixels], second.token_ids
    )
    assert np.abs(np.array(second.sampled_logprobs) - logprobs).mean() < 1e-3
    assert np.abs(np.array(second.entropies_nats) - entropies).max() < 1e-4
    assert second.num_cached_tokens > 0


async def test_requests_in_one_batch_keep_their_own_entropies(
    policy: PolicyClient, references: tuple[Reference, Reference], make_image: MakeImage
) -> None:
    images = [make_image(seed) for seed in range(10, 14)]

    async def check(index: int) -> None:
        image = images[index % 4]
        turn = await policy.generate(
            GenerateRequest(
                segments=first_turn(image, f"Question {index}?"),
                max_tokens=4 + 5 * (index % 7),
                temperature=float(index % 3 != 0),
                seed=index,
            )
        )
        _, entropies = references[0].continuation(
            flat(turn.segment_token_ids), [image.pixels], turn.token_ids
        )
        assert np.abs(np.array(turn.entropies_nats) - entropies).max() < 1e-4

    await asyncio.gather(*(check(index) for index in range(20)))


async def test_a_forced_continuation_is_measured_like_a_sampled_one(
    policy: PolicyClient, references: tuple[Reference, Reference], make_image: MakeImage
) -> None:
    view = make_image(3)
    scored = await policy.entropy(EntropyRequest(segments=first_turn(view), continuation=CALL))
    prompt = await policy.generate(GenerateRequest(segments=first_turn(view), max_tokens=1))
    logprobs, entropies = references[0].continuation(
        flat(prompt.segment_token_ids), [view.pixels], scored.token_ids
    )
    assert "".join(scored.token_texts) == CALL
    assert np.abs(np.array(scored.logprobs) - logprobs).max() < 1e-3
    assert np.abs(np.array(scored.entropies_nats) - entropies).max() < 1e-4
    lengths = np.cumsum([len(text) for text in scored.token_texts])
    first, last = (
        int(np.searchsorted(lengths, CALL.index(text), side="right")) for text in ("8, 9", "]}}")
    )
    assert last + 1 < len(scored.token_ids), "something follows the box"
    assert scored.baseline_entropy_nats == pytest.approx(
        baseline_entropy_nats(scored.entropies_nats, first)
    )
    assert scored.tool_entropy_nats is not None
    assert scored.tool_entropy_nats == pytest.approx(
        tool_entropy_nats(scored.entropies_nats[first : last + 1])
    )
    assert scored.entropy_increase_nats == pytest.approx(
        scored.tool_entropy_nats - scored.baseline_entropy_nats
    )


async def test_a_continuation_without_a_call_has_no_tool_entropy(policy: PolicyClient) -> None:
    request = EntropyRequest(segments=[TextSegment(text="Say")], continuation="nothing at all")
    scored = await policy.entropy(request)
    assert scored.tool_entropy_nats is None
    assert scored.baseline_entropy_nats == pytest.approx(np.mean(scored.entropies_nats[:20]))


async def test_vision_placeholders_have_no_probability(
    policy: PolicyClient, references: tuple[Reference, Reference], make_image: MakeImage
) -> None:
    """The unmasked model would take them; the sampled log-probabilities are those without them."""
    view = make_image(4)
    turns = await asyncio.gather(
        *(
            policy.generate(GenerateRequest(segments=first_turn(view), max_tokens=96, seed=seed))
            for seed in range(8)
        )
    )
    sampled = {token_id for turn in turns for token_id in turn.token_ids}
    assert not sampled & set(references[0].forbidden_ids)
    turn = turns[0]
    ids = [*flat(turn.segment_token_ids), *turn.token_ids]
    unmasked = references[0].logits_TV(ids, [view.pixels]).softmax(-1)
    assert float(unmasked[-96:, references[0].forbidden_ids].sum(-1).max()) > 1e-3
