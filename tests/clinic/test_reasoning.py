"""From a recorded trajectory to steps and evidence, with the entropies worked out by hand."""

import msgspec
import pytest

from services.clinic.reasoning import evidence_of, option_text, thought_of, turns_of
from shared.api.clinic import CaseImage
from shared.api.zoom import AppliedRendering, AppliedWindow, WireWindow
from shared.geometry import Box, ImageSize
from shared.trajectory import (
    ForkOrigin,
    FormatFacts,
    Generation,
    ImageSpan,
    StopReason,
    ToolCall,
    Trajectory,
    Turn,
    VersionSpan,
    WindowArguments,
)

IMAGE = CaseImage(
    url="/v1/cases/id/image",
    sha256="d" * 64,
    width_px=400,
    height_px=200,
    source_format="dicom",
    rendering=AppliedRendering(
        frame=3,
        num_frames=9,
        grey_mapping="requested_window",
        windows=[AppliedWindow(center=40.0, width=400.0, function="LINEAR")],
    ),
)


def wrote(text: str, entropies_nats: list[float]) -> Generation:
    """A generation of one-character tokens, `?` where the text is shorter than the entropies."""
    num_tokens = len(entropies_nats)
    texts = [*text[: num_tokens - 1], text[num_tokens - 1 :]]
    return Generation(
        token_ids=list(range(num_tokens)),
        token_texts=texts,
        sampled_logprobs=[-0.5] * num_tokens,
        entropies_nats=entropies_nats,
        version_spans=[VersionSpan(3, num_tokens)],
        stop="</tool_call>",
    )


def call(box: Box | None, *, is_shown: bool = True, error: str | None = None) -> ToolCall:
    crop = ImageSpan(token_ids=[1], image="c" * 64, size=ImageSize(84, 56)) if is_shown else None
    return ToolCall(
        index=0,
        first_coordinate_token=2 if box else None,
        end_token=12 if box else None,
        bbox_2d=(1.0, 2.0, 3.0, 4.0) if box else None,
        box=box,
        crop=crop,
        error=error,
        fork=None,
    )


def trajectory(*turns: Turn, stop_reason: StopReason = StopReason.ANSWERED) -> Trajectory:
    return Trajectory(
        trajectory_id="t",
        origin=ForkOrigin.BASE,
        seed=1,
        turns=list(turns),
        stop_reason=stop_reason,
        answer="A",
        format_facts=FormatFacts(True, True, True),
        baseline_entropy_nats=0.5,
    )


def test_h_tool_is_the_highest_mean_of_eight_tokens_from_the_first_coordinate_to_the_bracket():
    # Tokens 2 to 11 are the box's: 0, 0, 1, 1, 1, 1, 1, 1, 1, 1. The last eight give 1.
    entropies = [9.0, 9.0, 0.0, 0.0, *[1.0] * 8, 9.0]
    turn = Turn(generation=wrote("x" * 20, entropies), call=call(Box(100, 50, 200, 150)))

    [zoom] = evidence_of("id", trajectory(turn), IMAGE)

    assert zoom.tool_entropy_nats == pytest.approx(1.0)
    assert zoom.baseline_entropy_nats == 0.5
    assert zoom.entropy_increase_nats == pytest.approx(0.5)


def test_evidence_says_where_and_what_was_shown():
    turn = Turn(generation=wrote("x" * 20, [1.0] * 13), call=call(Box(100, 50, 200, 150)))

    [zoom] = evidence_of("id", trajectory(turn), IMAGE)

    assert zoom.box.model_dump() == {"x1": 100, "y1": 50, "x2": 200, "y2": 150}
    assert zoom.box_normalised == [0.25, 0.25, 0.5, 0.75]
    assert zoom.crop_url == f"/v1/cases/id/crops/{'c' * 64}"
    assert (zoom.crop_width_px, zoom.crop_height_px) == (84, 56)


def test_only_a_crop_that_was_shown_is_evidence():
    bad = Turn(generation=wrote("x", [1.0]), call=call(None, is_shown=False, error="box outside"))
    good = Turn(generation=wrote("x" * 20, [1.0] * 13), call=call(Box(0, 0, 40, 40)))
    unused = Turn(
        generation=wrote("x" * 20, [1.0] * 13), call=call(Box(0, 0, 50, 50), is_shown=False)
    )
    path = trajectory(bad, good, unused, stop_reason=StopReason.MAX_TURNS)

    evidence = evidence_of("id", path, IMAGE)
    calls = [turn.call for turn in turns_of(path, evidence)]

    assert [(zoom.index, zoom.turn) for zoom in evidence] == [(0, 1)]
    assert [made.evidence_index for made in calls if made] == [None, 0, None]
    assert [made.error for made in calls if made] == [
        "box outside",
        None,
        "not carried out: this was the last turn allowed",
    ]


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think> dark \n spot </think><answer>A</answer>", "dark \n spot"),
        ("<think>cut off", "cut off"),
        ("<think>no end<answer>A</answer>", "no end"),
        ("<answer>A</answer>", ""),
    ],
)
def test_the_thought_is_what_stands_in_think_even_if_it_was_not_closed(text: str, thought: str):
    assert thought_of(text) == thought


def test_a_letter_names_its_choice_and_anything_else_none():
    choices = ["dot", "ring"]
    assert option_text("B", choices) == "ring"
    assert option_text("b", choices) == "ring"
    assert option_text("C", choices) is None
    assert option_text("", choices) is None
    assert option_text("dot", choices) is None
    assert option_text("A", []) is None


def test_a_window_that_was_set_is_evidence_like_a_zoom_of_the_whole_image() -> None:
    window = WindowArguments(40, 400)
    setting = msgspec.structs.replace(
        call(None), tool="set_window", window=window, first_coordinate_token=2, end_token=12
    )
    zoomed = msgspec.structs.replace(call(Box(100, 50, 200, 150)), index=1, window=window)
    entropies = [0.0] * 2 + [1.0] * 10 + [9.0] * 8
    turns = [Turn(generation=wrote("x" * 20, entropies), call=c) for c in (setting, zoomed)]
    attempt = trajectory(*turns)

    evidence = evidence_of("id", attempt, IMAGE)

    assert [e.tool for e in evidence] == ["set_window", "zoom_in"]
    assert [e.window for e in evidence] == [WireWindow(center=40, width=400)] * 2
    assert evidence[0].box_normalised == [0, 0, 1, 1]
    assert evidence[0].tool_entropy_nats == pytest.approx(1.0)
    assert attempt.boxes == [Box(100, 50, 200, 150)], "the whole image is no place to agree on"
    told = [turn.call for turn in turns_of(attempt, evidence)]
    assert [(c.tool, c.window, c.evidence_index) for c in told if c is not None] == [
        ("set_window", WireWindow(center=40, width=400), 0),
        ("zoom_in", WireWindow(center=40, width=400), 1),
    ]
