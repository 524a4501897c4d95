"""The registry: what a policy is told, how its calls are read, and what a window changes."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.problems.ingest import ingest_phantoms
from services.problems.phantoms import WINDOWED, render_phantom
from services.rollout.group import trajectory_seed
from shared.agent.environment import open_problem
from shared.agent.episode import EpisodeSettings, run_episode
from shared.agent.parser import BadCallReason, parse_turn
from shared.agent.prompt import system_text
from shared.agent.tools import SET_WINDOW, TOOLS, ZOOM_IN, UnknownTool, tools_named
from shared.api.zoom import CropRequest, PixelLimitsModel, WireWindow
from shared.errors import PolicyError
from shared.geometry import Box
from shared.trajectory import StopReason, Trajectory, WindowArguments
from tests.rollout.scripted_policy import VIEW, Word, answer, look, rest_of_window, set_window
from tests.rollout.stage import ALWAYS, Stage
from tests.rollout.stage import play as roll

SETTINGS = EpisodeSettings(max_turns=5, max_turn_tokens=200)
BOTH = ["zoom_in", "set_window"]
ZOOM_IN_TEXT = (
    "You are a careful radiology assistant. Think inside <think></think>. To look closer at a "
    "region call a tool inside <tool_call></tool_call>. Give the final answer inside "
    "<answer></answer>.\n\n# Tools\n\n<tools>\n"
    '{"type": "function", "function": {"name": "zoom_in", "description": '
    '"Look closer: returns the region of the original image inside the box.", '
    '"parameters": {"type": "object", "properties": {"bbox_2d": {"type": "array", '
    '"items": {"type": "number"}, "minItems": 4, "maxItems": 4, '
    '"description": "[x1, y1, x2, y2] in pixels of the image as shown."}}, '
    '"required": ["bbox_2d"]}}}\n</tools>'
)


def test_a_policy_with_one_tool_is_told_what_it_was_trained_with_to_the_byte() -> None:
    assert system_text(tools_named(["zoom_in"])) == ZOOM_IN_TEXT


def test_a_policy_is_told_the_tools_of_its_manifest_in_its_order() -> None:
    told = system_text(tools_named(BOTH))
    lines = told.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line)["function"]["name"] for line in lines] == BOTH
    assert system_text(tools_named(BOTH[::-1])) != told


def test_a_manifest_with_a_tool_that_there_is_not_is_refused() -> None:
    with pytest.raises(UnknownTool, match="no tool 'measure'; the tools are zoom_in, set_window"):
        tools_named(["zoom_in", "measure"])


def test_every_tool_reads_the_call_it_spells() -> None:
    calls = {"zoom_in": {"bbox_2d": [1, 2, 3, 4]}, "set_window": {"center": -600, "width": 1500.5}}
    assert set(calls) == set(TOOLS)
    for name, arguments in calls.items():
        parsed = parse_turn(list(f"<think>x</think>{TOOLS[name].call_text(**arguments)}"))
        assert parsed.call is not None
        assert parsed.call.tool == name
        assert json.loads(msgspec.json.encode(parsed.call.arguments)) == arguments


numbers = st.one_of(
    st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))
)


@given(st.data(), numbers, numbers, st.sampled_from(["", " ", "\n "]), st.booleans())
def test_a_window_is_found_in_any_tokenisation_and_order(
    data: st.DataObject, center: float, width: float, space: str, is_turned: bool
) -> None:
    members = [("center", json.dumps(center)), ("width", json.dumps(width))]
    (first, one), (second, two) = members[::-1] if is_turned else members
    before = '<think>width 12</think><tool_call>{"name": "set_window", "arguments": {'
    before += f'"note": [7], "{first}":{space}'
    written = f'{one},{space}"{second}":{space}{two}'
    text = f'{before}{written}{space}, "unit": "HU"}}}}</tool_call>'
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=len(text))))
    token_texts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]

    parsed = parse_turn(token_texts)

    assert parsed.call is not None
    assert parsed.call.arguments == WindowArguments(center, width)
    start, end = parsed.first_coordinate_token, parsed.end_token
    assert start is not None
    assert end is not None
    kept, through = "".join(token_texts[:start]), "".join(token_texts[:end])
    assert len(kept) <= len(before) < len(kept) + len(token_texts[start])
    last = len(before) + len(written) - 1
    assert len(through) - len(token_texts[end - 1]) <= last < len(through)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"center": 40}, {"center": "40", "width": 80}, {"center": 40, "width": True}, [40, 80]],
)
def test_wrong_arguments_of_a_window_are_a_bad_call(arguments: object) -> None:
    body = json.dumps({"name": "set_window", "arguments": arguments})
    parsed = parse_turn(list(f"<think>x</think><tool_call>{body}</tool_call>"))
    assert parsed.call is not None
    assert parsed.call.reason is BadCallReason.WRONG_ARGUMENTS
    assert parsed.call.error == "arguments must be the numbers center and width"


def test_a_tool_the_policy_was_not_told_of_is_unknown_to_it() -> None:
    token_texts = list(f"<think>x</think>{SET_WINDOW.call_text(center=40, width=400)}")
    alone, other = parse_turn(token_texts, (ZOOM_IN,)).call, list("<tool_call>{}</tool_call>")
    assert alone is not None
    assert alone.error == "unknown tool; the only tool is zoom_in"
    neither = parse_turn(other, (ZOOM_IN, SET_WINDOW)).call
    assert neither is not None
    assert neither.error == "unknown tool; the tools are zoom_in and set_window"


# -- in an episode --------------------------------------------------------------------------------


async def with_greys(stage: Stage) -> None:
    """A CT phantom as the stage's problem, and a policy of both tools."""
    phantom = render_phantom(WINDOWED, 3, 0)
    (problem,), _ = await ingest_phantoms([phantom], stage.services.zoom, lambda _: None)
    stage.problem = msgspec.structs.replace(stage.problem, image=problem.image)
    stage.script.tools = BOTH


async def play(stage: Stage, *turns: list[Word]) -> Trajectory:
    stage.script.rehearse("t", *turns)
    return await run_episode(
        stage.services.policy,
        stage.services.zoom,
        await stage.open(),
        trajectory_id="t",
        seed=trajectory_seed("t"),
        settings=SETTINGS,
    )


async def test_a_window_stays_set_for_the_crops_after_it(stage: Stage) -> None:
    await with_greys(stage)
    box, soft = (42, 42, 84, 84), WindowArguments(40, 400)
    played = await play(stage, look(box), set_window(40, 400), look(box), answer("A"))

    calls = [turn.call for turn in played.turns if turn.call is not None]
    assert [(call.tool, call.window) for call in calls] == [
        ("zoom_in", None),
        ("set_window", soft),
        ("zoom_in", soft),
    ]
    before, whole, after = (call.crop for call in calls)
    assert before is not None
    assert whole is not None
    assert after is not None
    assert before.image != after.image
    limits = PixelLimitsModel(min_pixels=VIEW.min_pixels, max_pixels=VIEW.max_pixels)
    window = WireWindow(center=40, width=400)
    asked = CropRequest(image=stage.problem.image, limits=limits, window=window)
    assert (await stage.services.zoom.crop(asked)).crop == whole.image
    assert played.boxes == [Box(84, 84, 168, 168)] * 2, "a window is no place to agree on"
    assert played.format_facts.all_calls_parsed


async def test_an_image_without_grey_levels_is_an_error_the_policy_is_told(stage: Stage) -> None:
    stage.script.tools = BOTH
    played = await play(stage, set_window(40, 400), look((42, 42, 84, 84)), answer("A"))

    refused, zoomed = (turn.call for turn in played.turns[:2])
    assert refused is not None
    assert refused.error == "this image was kept without grey levels: no window can be set"
    assert refused.crop is None
    assert zoomed is not None
    assert zoomed.window is None, "what could not be set is not in force"
    assert played.stop_reason is StopReason.ANSWERED
    assert not played.format_facts.all_calls_parsed


async def test_an_impossible_window_is_an_error_the_policy_is_told(stage: Stage) -> None:
    await with_greys(stage)
    asked = len(stage.crops)
    played = await play(stage, set_window(40, 0), set_window(1e10, 5), answer("A"))
    errors = [turn.call.error for turn in played.turns if turn.call is not None]
    assert errors == ["width must be over 0", "center and width must be at most 1000000000"]
    assert len(stage.crops) == asked + 1, "the view alone was asked for"


async def test_a_policy_without_the_tool_is_told_what_it_has(stage: Stage) -> None:
    await with_greys(stage)
    stage.script.tools = ["zoom_in"]
    played = await play(stage, set_window(40, 400), answer("A"))
    (call,) = (turn.call for turn in played.turns if turn.call is not None)
    assert (call.tool, call.error) == (None, "unknown tool; the only tool is zoom_in")
    assert call.first_coordinate_token is None, "it can never fork"


async def test_a_policy_of_another_time_is_refused_before_it_is_asked(stage: Stage) -> None:
    stage.script.tools = ["zoom_in", "measure"]
    with pytest.raises(PolicyError, match="no tool 'measure'"):
        await open_problem(
            stage.services.zoom,
            await stage.services.policy.describe(),
            image=stage.problem.image,
            question="?",
        )


async def test_a_branch_of_a_window_is_cut_before_its_first_argument(stage: Stage) -> None:
    await with_greys(stage)
    unsure = set_window(40, 400, inside=1.5)
    for name in ("g/b00", "g/b01"):
        stage.script.rehearse(name, unsure, answer("A"))
        stage.script.rehearse(f"{name}/0", rest_of_window(-600, 1500), answer("B"))
    trajectories = await roll(stage, ALWAYS)

    parent, branch = trajectories["g/b00"], trajectories["g/b00/0"]
    cut = branch.forked_at_token
    assert cut is not None
    texts = parent.turns[0].generation.token_texts
    assert "".join(texts[:cut]).endswith('"arguments": {"center": ')
    ours, theirs = branch.turns[0].call, parent.turns[0].call
    assert ours is not None
    assert theirs is not None
    assert theirs.fork is not None
    assert theirs.fork.tool_entropy_nats == pytest.approx(1.5)
    assert (ours.window, theirs.window) == (WindowArguments(-600, 1500), WindowArguments(40, 400))
    assert branch.baseline_entropy_nats == parent.baseline_entropy_nats
