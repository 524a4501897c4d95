import pytest

from services.rollout.group import trajectory_seed
from shared.agent.episode import (
    LEAST_TURN_TOKENS,
    CallMade,
    EpisodeSettings,
    Prefix,
    run_episode,
    turn_seed,
)
from shared.api.policy import TextSegment
from shared.clients.http import Retries
from shared.clients.zoom import ZoomClient
from shared.errors import PolicyError, ZoomError
from shared.geometry import Box, ImageSize
from shared.trajectory import (
    Generation,
    ImageSpan,
    StopReason,
    TextSpan,
    Trajectory,
    Turn,
    VersionSpan,
    spans_of,
)
from tests.rollout.scripted_policy import (
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    answer,
    is_image,
    look,
    rest_of_look,
    token_id,
    words,
)
from tests.rollout.stage import Stage

SETTINGS = EpisodeSettings(max_turns=3, max_turn_tokens=200)


async def play(
    stage: Stage,
    trajectory_id: str = "t",
    *,
    settings: EpisodeSettings = SETTINGS,
    prefix: Prefix | None = None,
    calls: list[CallMade] | None = None,
) -> Trajectory:
    return await run_episode(
        stage.services.policy,
        stage.services.zoom,
        await stage.open(),
        trajectory_id=trajectory_id,
        seed=trajectory_seed(trajectory_id),
        settings=settings,
        prefix=prefix,
        on_call=None if calls is None else calls.append,
    )


def observation_text(stage: Stage, turn: Turn) -> str:
    spans = [span for span in turn.observation if isinstance(span, TextSpan)]
    return "".join(stage.script.text_of(span.token_ids) for span in spans)


async def test_a_crop_is_shown_in_the_pixels_the_policy_wrote_and_kept_in_those_of_the_original(
    stage: Stage,
) -> None:
    stage.script.rehearse("t", look((21, 42, 63, 84)), answer("A"))
    trajectory = await play(stage)

    zoomed, answered = trajectory.turns
    assert zoomed.call is not None
    assert zoomed.call.bbox_2d == (21, 42, 63, 84)
    assert zoomed.call.box == Box(42, 84, 126, 168)
    assert trajectory.boxes == [Box(42, 84, 126, 168)]
    before, crop, after = zoomed.observation
    assert zoomed.call.crop == crop
    assert isinstance(crop, ImageSpan)
    assert crop.size == ImageSize(84, 84)
    assert crop.token_ids == [VISION_START, *[IMAGE_PAD] * 9, VISION_END]
    text = observation_text(stage, zoomed)
    assert text.startswith("<|im_end|>\n<|im_start|>user\n<tool_response>")
    assert "zoomed view of [21, 42, 63, 84]</tool_response><|im_end|>" in text
    assert isinstance(before, TextSpan)
    assert isinstance(after, TextSpan)
    assert answered.call is None
    assert (trajectory.answer, trajectory.stop_reason) == ("A", StopReason.ANSWERED)
    assert trajectory.format_facts.is_well_formed
    assert trajectory.format_facts.all_calls_parsed
    assert trajectory.format_facts.has_answer


async def test_what_was_sent_once_as_text_goes_out_as_the_same_token_ids_for_ever(
    stage: Stage,
) -> None:
    stage.script.rehearse("t", look((0, 0, 42, 42)), look((42, 42, 84, 84)), answer("A"))
    trajectory = await play(stage)

    first, second, third = stage.script.requests
    assert [segment.type for segment in first.segments] == ["text", "image", "text"]
    observed = ["text", "image", "text"]
    assert [s.type for s in second.segments] == ["tokens", "image", "tokens", *observed]
    known = ["tokens", "image", "tokens", "image", "tokens"]
    assert [s.type for s in third.segments] == [*known, *observed]
    recorded = await recorded_ids(stage, trajectory)
    sent = [i for segment in third.segments for i in stage.script.encode(segment)]
    assert recorded == sent + trajectory.turns[-1].generation.token_ids
    assert all(request.stop == ["</tool_call>", "</answer>"] for request in stage.script.requests)


async def recorded_ids(stage: Stage, trajectory: Trajectory) -> list[int]:
    """All token ids of the record in order; the prompt's from the server itself."""
    prompt = [i for s in (await stage.open()).prompt_segments for i in stage.script.encode(s)]
    return prompt + [i for span in spans_of([], trajectory) for i in span.token_ids]


async def test_two_turns_never_draw_the_same_random_numbers(stage: Stage) -> None:
    stage.script.rehearse("t", look((0, 0, 42, 42)), look((42, 42, 84, 84)), answer("A"))
    await play(stage)
    seeds = [request.seed for request in stage.script.requests]
    assert seeds == [turn_seed(trajectory_seed("t"), index) for index in range(3)]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (words("<think>x</think><tool_call>{zoom}</tool_call>", 0.1), "not a JSON object"),
        (look((63, 84, 21, 42)), "box must have x1 < x2 and y1 < y2"),
        (look((500, 500, 600, 600)), "box lies outside the image"),
    ],
)
async def test_a_bad_call_is_answered_by_an_error_and_the_trajectory_goes_on(
    stage: Stage, turn: list, error: str
) -> None:
    stage.script.rehearse("t", turn, answer("A"))
    trajectory = await play(stage)

    bad = trajectory.turns[0]
    assert bad.call is not None
    assert (bad.call.box, bad.call.crop) == (None, None)
    assert bad.call.error is not None
    assert error in bad.call.error
    assert f"<tool_response>error: {bad.call.error}</tool_response>" in observation_text(stage, bad)
    assert not any(isinstance(span, ImageSpan) for span in bad.observation)
    assert trajectory.boxes == []
    assert trajectory.answer == "A"
    assert not trajectory.format_facts.all_calls_parsed
    assert trajectory.format_facts.is_well_formed
    assert len(stage.crops) == 1, "only the view was rendered"


async def test_the_call_of_the_last_turn_is_placed_but_not_executed(stage: Stage) -> None:
    stage.script.rehearse("t", look((0, 0, 42, 42)), look((42, 42, 84, 84)))
    trajectory = await play(stage, settings=EpisodeSettings(max_turns=2, max_turn_tokens=200))

    assert trajectory.stop_reason is StopReason.MAX_TURNS
    last = trajectory.turns[1]
    assert last.call is not None
    assert (last.call.box, last.call.crop) == (Box(84, 84, 168, 168), None)
    assert last.observation == []
    assert trajectory.boxes == [Box(0, 0, 84, 84)], "a crop nobody saw does not count"
    assert len(stage.crops) == 2, "the view and the first crop"


async def test_an_observation_that_does_not_fit_is_dropped_whole(stage: Stage) -> None:
    stage.script.rehearse("t", look((0, 0, 42, 42)), answer("A"))
    whole = await play(stage)
    first_turn = stage.script.requests[0]
    num_known = sum(len(stage.script.encode(s)) for s in first_turn.segments)
    num_known += len(whole.turns[0].generation.token_ids)
    too_small, enough = 0, 400
    while enough - too_small > 1:
        room = (too_small + enough) // 2
        stage.script.max_model_len_tokens = num_known + room
        trajectory = await play(stage)
        if trajectory.stop_reason is StopReason.ANSWERED:
            enough = room
            assert stage.script.requests[-1].max_tokens >= LEAST_TURN_TOKENS
            continue
        too_small = room
        assert trajectory.stop_reason is StopReason.CONTEXT_FULL
        (only,) = trajectory.turns
        assert only.observation == []
        assert only.call is not None
        assert (only.call.box, only.call.crop) == (Box(0, 0, 84, 84), None)
    num_shown = sum(len(span.token_ids) for span in whole.turns[0].observation)
    assert enough >= num_shown + LEAST_TURN_TOKENS, "the turn after it has room"


async def test_a_turn_that_reaches_its_token_limit_ends_the_trajectory(stage: Stage) -> None:
    stage.script.rehearse("t", answer("A"))
    trajectory = await play(stage, settings=EpisodeSettings(max_turns=3, max_turn_tokens=6))
    assert trajectory.stop_reason is StopReason.TURN_TOKEN_LIMIT
    assert trajectory.num_sampled_tokens == 6
    assert (trajectory.answer, trajectory.format_facts.is_well_formed) == (None, False)


async def test_ending_without_call_or_answer_is_a_reason_of_its_own(stage: Stage) -> None:
    stage.script.rehearse("t", words("I cannot tell.<|im_end|>", 0.1))
    trajectory = await play(stage)
    assert trajectory.stop_reason is StopReason.NO_TOOL_NO_ANSWER
    assert trajectory.turns[0].generation.token_ids[-1] == token_id("<|im_end|>")


async def test_the_baseline_is_the_mean_over_the_first_twenty_tokens_before_a_coordinate(
    stage: Stage,
) -> None:
    thought = words("<think>", 1.0) + words("look", 3.0)
    call = look((0, 0, 42, 42), before=0.5)[len(words("<think>look closer", 0)) :]
    stage.script.rehearse("t", thought + call, answer("A"))
    trajectory = await play(stage)
    assert trajectory.baseline_entropy_nats == pytest.approx((1.0 + 3.0 + 18 * 0.5) / 20)


async def test_the_baseline_stops_before_the_first_coordinate(stage: Stage) -> None:
    turn = words('<tool_call>{"name":"zoom_in","arguments":{"bbox_2d":[', 0.5)
    num_before = len(turn)
    turn[0] = turn[0]._replace(nats=2.5)
    stage.script.rehearse("t", turn + rest_of_look((0, 0, 42, 42), inside=9.0), answer("A"))
    trajectory = await play(stage)
    assert num_before < 25
    expected = (2.5 + 0.5 * (min(20, num_before) - 1)) / min(20, num_before)
    assert trajectory.baseline_entropy_nats == pytest.approx(expected)


async def test_without_a_coordinate_the_baseline_covers_the_first_twenty_of_all_tokens(
    stage: Stage,
) -> None:
    stage.script.rehearse("t", words("<think>x</think><answer>A</answer>", 0.75))
    assert (await play(stage)).baseline_entropy_nats == pytest.approx(0.75)


async def test_a_call_that_does_not_parse_leaves_the_baseline_open(stage: Stage) -> None:
    bad = words("<tool_call>[1</tool_call>", 4.0)
    stage.script.rehearse("t", bad, look((0, 0, 42, 42), before=1.0), answer("A"))
    calls: list[CallMade] = []
    trajectory = await play(stage, calls=calls)
    expected = (len(bad) * 4.0 + (20 - len(bad)) * 1.0) / 20
    assert trajectory.baseline_entropy_nats == pytest.approx(expected)
    (made,) = calls
    assert (made.call_index, len(made.prefix.turns)) == (1, 1)


async def test_a_branch_inherits_everything_up_to_the_first_coordinate(stage: Stage) -> None:
    stage.script.rehearse(
        "t", look((0, 0, 42, 42), inside=1.5), look((42, 42, 84, 84), inside=2.5), answer("A")
    )
    calls: list[CallMade] = []
    parent = await play(stage, calls=calls)
    stage.script.version = 4
    stage.script.rehearse("t/1", rest_of_look((63, 63, 105, 105)), answer("B"), first_turn=1)
    own_calls: list[CallMade] = []
    opened = await stage.open()
    opened.prompt = [TextSpan(token_ids=[token_id("prompt")])]
    stage.script.pieces[token_id("prompt")] = "prompt"
    branch = await run_episode(
        stage.services.policy,
        stage.services.zoom,
        opened,
        trajectory_id="t/1",
        seed=trajectory_seed("t/1"),
        settings=SETTINGS,
        prefix=calls[1].prefix,
        on_call=own_calls.append,
    )

    assert calls[1].tool_entropy_nats == pytest.approx(2.5)
    assert branch.parent_id == "t"
    cut = branch.forked_at_token
    assert branch.forked_at_turn == 1
    assert cut is not None
    assert branch.turns[0] == parent.turns[0]
    ours, theirs = branch.turns[1].generation, parent.turns[1].generation
    assert "".join(theirs.token_texts[:cut]).endswith('"bbox_2d": [')
    for name in ("token_ids", "token_texts", "sampled_logprobs", "entropies_nats"):
        assert getattr(ours, name)[:cut] == getattr(theirs, name)[:cut]
        assert len(getattr(ours, name)) == len(ours.token_ids)
    assert ours.version_spans == [VersionSpan(3, cut), VersionSpan(4, len(ours.token_ids) - cut)]
    assert branch.baseline_entropy_nats == parent.baseline_entropy_nats
    assert branch.boxes == [Box(0, 0, 84, 84), Box(126, 126, 210, 210)]
    assert branch.answer == "B"
    assert [made.is_resampled for made in own_calls] == [True]
    asked = stage.script.requests[-2]
    sent = stage.script.encode(asked.segments[-1])
    assert sent[-cut:] == theirs.token_ids[:cut], "the request ends right before the coordinate"
    assert asked.max_tokens == SETTINGS.max_turn_tokens - cut
    assert sum(map(is_image, asked.segments)) == 1, "the crop shown before is shown again"


async def test_a_turn_sampled_across_a_swap_is_cut_in_both_versions() -> None:
    from shared.agent.transcript import first_tokens

    texts = list("abcdef")
    generation = Generation(
        token_ids=list(range(6)),
        token_texts=texts,
        sampled_logprobs=[0.0] * 6,
        entropies_nats=[0.0] * 6,
        version_spans=[VersionSpan(1, 2), VersionSpan(2, 3), VersionSpan(3, 1)],
        stop=None,
    )
    spans_by_cut = {n: first_tokens(generation, n).version_spans for n in (0, 2, 4)}
    assert spans_by_cut == {
        0: [],
        2: [VersionSpan(1, 2)],
        4: [VersionSpan(1, 2), VersionSpan(2, 2)],
    }


async def test_every_turn_is_told_as_soon_as_its_call_is_answered(stage: Stage) -> None:
    stage.script.rehearse("t", look((0, 0, 42, 42)), answer("A"))
    told: list[tuple[int, bool]] = []

    async def on_turn(turn: Turn) -> None:
        shown = turn.call is not None and turn.call.crop is not None
        told.append((len(stage.script.requests), shown))

    await run_episode(
        stage.services.policy,
        stage.services.zoom,
        await stage.open(),
        trajectory_id="t",
        seed=trajectory_seed("t"),
        settings=SETTINGS,
        on_turn=on_turn,
    )
    assert told == [(1, True), (2, False)]


async def test_a_dead_zoom_server_is_a_zoom_error(stage: Stage) -> None:
    stage.script.rehearse("t", look((0, 0, 42, 42)), answer("A"))
    nobody = ZoomClient("http://127.0.0.1:9", retries=Retries(max_attempts=1))
    with pytest.raises(ZoomError) as caught:
        await run_episode(
            stage.services.policy,
            nobody,
            await stage.open(),
            trajectory_id="t",
            seed=trajectory_seed("t"),
            settings=SETTINGS,
        )
    await nobody.aclose()
    assert caught.value.is_transient


@pytest.mark.parametrize(("status", "is_transient"), [(503, True), (400, False)])
async def test_a_policy_that_refuses_is_a_policy_error(
    stage: Stage, status: int, is_transient: bool
) -> None:
    stage.script.failures.append(status)
    with pytest.raises(PolicyError) as caught:
        await play(stage)
    assert caught.value.is_transient is is_transient


async def test_the_prompt_is_learnt_from_the_first_response_and_shared(stage: Stage) -> None:
    stage.script.rehearse("a", answer("A"))
    stage.script.rehearse("b", answer("B"))
    opened = await stage.open()
    for name in ("a", "b"):
        await run_episode(
            stage.services.policy,
            stage.services.zoom,
            opened,
            trajectory_id=name,
            seed=trajectory_seed(name),
            settings=SETTINGS,
        )
    first, second = stage.script.requests
    assert isinstance(first.segments[0], TextSegment)
    assert [s.type for s in second.segments] == ["tokens", "image", "tokens"]
    assert opened.prompt is not None
    view = opened.prompt[1]
    assert isinstance(view, ImageSpan)
    assert (view.size, len(view.token_ids)) == (ImageSize(168, 168), 36 + 2)
