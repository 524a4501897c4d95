"""What a turn's answer holds: texts, stops, seeds, streams."""

import httpx
import pytest

from shared.api.policy import GenerateDelta, GenerateRequest, GenerateResponse, TextSegment
from shared.clients.policy import PolicyClient
from shared.service.logs import request_id
from tests.fixtures_policy import RunningPolicy
from tests.policy.conftest import MakeImage, first_turn
from tests.policy.reference import Reference


def _turn(image_segments: list, **options: object) -> GenerateRequest:
    return GenerateRequest.model_validate({"segments": image_segments, **options})


async def test_ids_of_segments_are_the_tokenizers(
    policy: PolicyClient, references: tuple[Reference, Reference], make_image: MakeImage
) -> None:
    segments = first_turn(make_image(20, 112, 84))
    turn = await policy.generate(_turn(segments, max_tokens=2))
    tokenizer = references[0].tokenizer
    vocabulary = tokenizer.get_vocab()
    pads = [vocabulary["<|image_pad|>"]] * 12
    assert turn.segment_token_ids == [
        tokenizer.encode(segments[0].text, add_special_tokens=False),
        [vocabulary["<|vision_start|>"], *pads, vocabulary["<|vision_end|>"]],
        tokenizer.encode(segments[2].text, add_special_tokens=False),
    ]


async def test_token_texts_concatenate_to_the_exact_text(
    policy: PolicyClient, references: tuple[Reference, Reference], make_image: MakeImage
) -> None:
    turn = await policy.generate(_turn(first_turn(make_image(21)), max_tokens=200, seed=1))
    decoded = references[0].tokenizer.decode(turn.token_ids, skip_special_tokens=False)
    assert "".join(turn.token_texts) == decoded
    assert len(turn.token_texts) == len(turn.token_ids) == len(turn.entropies_nats)


async def test_the_same_seed_gives_the_same_turn(
    policy: PolicyClient, make_image: MakeImage
) -> None:
    segments = first_turn(make_image(22))
    first, again, other = [
        await policy.generate(_turn(segments, max_tokens=32, seed=seed)) for seed in (7, 7, 8)
    ]
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


async def test_a_stop_string_ends_the_turn_and_stays_in_its_tokens(
    policy: PolicyClient, make_image: MakeImage
) -> None:
    segments = first_turn(make_image(23))
    free = await policy.generate(_turn(segments, max_tokens=60, seed=3))
    text = next(t for t in free.token_texts[20:] if t.strip() and "�" not in t)
    end = free.token_texts.index(text) + 1
    stopped = await policy.generate(_turn(segments, max_tokens=60, seed=3, stop=[text]))
    assert stopped.token_ids == free.token_ids[:end]
    assert (stopped.finish, stopped.stop) == ("stop", text)
    assert "".join(stopped.token_texts).endswith(text)
    assert stopped.entropies_nats == pytest.approx(free.entropies_nats[:end], abs=1e-4)


async def test_end_of_sequence_is_kept_with_its_own_text(policy: PolicyClient) -> None:
    segments = [TextSegment(text="A")]
    turns = [await policy.generate(_turn(segments, max_tokens=900, seed=seed)) for seed in range(3)]
    ended = [turn for turn in turns if turn.finish == "end_of_sequence"]
    assert ended
    for turn in ended:
        assert turn.stop is None
        assert turn.token_texts[-1].endswith(("<|im_end|>", "<|endoftext|>"))
    assert all(turn.finish == "end_of_sequence" or len(turn.token_ids) == 900 for turn in turns)


async def test_a_stream_tells_the_same_as_the_whole(
    policy: PolicyClient, make_image: MakeImage
) -> None:
    request = _turn(first_turn(make_image(24)), max_tokens=48, seed=9)
    whole = await policy.generate(request)
    lines = [line async for line in policy.stream(request)]
    deltas = [line for line in lines if isinstance(line, GenerateDelta)]
    last = lines[-1]
    assert isinstance(last, GenerateResponse)
    assert len(deltas) > 1
    for name in ("token_ids", "token_texts"):
        assert [x for d in deltas for x in getattr(d, name)] == getattr(whole, name)
        assert getattr(last, name) == getattr(whole, name)
    streamed = [x for delta in deltas for x in delta.entropies_nats]
    assert streamed == last.entropies_nats
    assert streamed == pytest.approx(whole.entropies_nats, abs=1e-4)
    assert last.version_spans == whole.version_spans


async def test_a_turn_of_a_caller_that_left_is_aborted(
    policy: PolicyClient, policy_server: RunningPolicy, make_image: MakeImage
) -> None:
    stream = policy.stream(_turn(first_turn(make_image(25)), max_tokens=800, seed=1))
    await anext(stream)
    await stream.aclose()
    with httpx.Client(base_url=policy_server.url) as client:
        for _ in range(100):
            running = [
                line
                for line in client.get("/metrics").text.splitlines()
                if line.startswith("vllm:num_requests_running")
            ]
            if running and running[0].endswith(" 0.0"):
                break
        else:
            pytest.fail("the request still runs")


async def test_the_request_id_is_passed_on(policy_server: RunningPolicy) -> None:
    token = request_id.set("case-7")
    try:
        body = _turn([TextSegment(text="A")], max_tokens=1).model_dump_json()
        async with httpx.AsyncClient(base_url=policy_server.url) as client:
            headers = {"x-request-id": "case-7", "content-type": "application/json"}
            response = await client.post("/medvr/v1/generate", content=body, headers=headers)
        assert response.headers["x-request-id"] == "case-7"
    finally:
        request_id.reset(token)
