import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.agent.parser import BadCallReason, ParsedTurn, parse_turn
from shared.agent.tools import ZOOM_IN, ZoomArguments


def tokens(*texts: str) -> list[str]:
    return list(texts)


def turn(body: str, thought: str = "look") -> list[str]:
    """One token per character: the finest tokenisation."""
    return list(f"<think>{thought}</think>{body}")


def call(arguments: object, name: object = "zoom_in") -> list[str]:
    body = json.dumps({"name": name, "arguments": arguments})
    return turn(f"<tool_call>{body}</tool_call>")


def reason_of(token_texts: list[str]) -> BadCallReason | None:
    parsed = parse_turn(token_texts)
    assert parsed.call is not None
    return parsed.call.reason


@st.composite
def splits(draw: st.DrawFn, text: str) -> list[str]:
    """The text as tokens of any size, empty ones included (a token that ends no character)."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=len(text))))
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


numbers = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3)),
)


@given(st.data(), st.tuples(numbers, numbers, numbers, numbers), st.sampled_from(["", " ", "\n "]))
def test_the_box_is_found_in_any_tokenisation(
    data: st.DataObject, bbox_2d: tuple[float, ...], space: str
) -> None:
    written = f",{space}".join(json.dumps(c) for c in bbox_2d)
    before = '<think>at 12, [34</think>\n<tool_call>{"name": "zoom_in", "arguments": {"bbox_2d":'
    before += f"{space}[{space}"
    text = f"{before}{written}{space}]}}}}</tool_call>"
    token_texts = data.draw(splits(text))

    parsed = parse_turn(token_texts)

    assert parsed.call is not None
    assert parsed.call.arguments == ZoomArguments(bbox_2d)
    first, end = parsed.first_coordinate_token, parsed.end_token
    assert first is not None
    assert end is not None
    kept = "".join(token_texts[:first])
    assert before.startswith(kept), "nothing of the first coordinate is kept"
    assert len("".join(token_texts[: first + 1])) > len(before), "the token holds its first digit"
    through = "".join(token_texts[:end])
    assert through.startswith(before + written + space + "]"), "the closing bracket is inside"
    assert "]" in token_texts[end - 1], "and it is in the last token"
    assert parsed.is_well_formed


@given(st.data())
def test_a_turn_says_the_same_in_any_tokenisation(data: st.DataObject) -> None:
    text = data.draw(
        st.lists(
            st.sampled_from(
                [
                    "<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>",
                    '{"name": "zoom_in", "arguments": ', '{"bbox_2d": [1, 2, 3, 4]}', "}", "A", " ",
                    "[", "1e999", "é", '"', "\\",
                ]
            ),
            max_size=12,
        ).map("".join)
    )  # fmt: skip

    def content(parsed: ParsedTurn) -> tuple[object, ...]:
        return (parsed.call, parsed.answer, parsed.is_well_formed)

    assert content(parse_turn(data.draw(splits(text)))) == content(parse_turn([text]))


def test_an_answer_is_what_stands_between_its_tags() -> None:
    parsed = parse_turn(turn("<answer> B. glioma \n</answer>"))
    assert (parsed.answer, parsed.call, parsed.is_well_formed) == ("B. glioma", None, True)


def test_an_empty_answer_is_no_answer() -> None:
    assert parse_turn(turn("<answer> </answer>")).answer is None


def test_what_the_last_token_holds_behind_the_stop_is_not_judged() -> None:
    parsed = parse_turn(tokens("<think>x</think><answer>A", "</answer>. <tool_call>"))
    assert (parsed.answer, parsed.is_well_formed) == ("A", True)


def test_a_turn_that_was_not_finished_has_neither_call_nor_answer() -> None:
    for body in ("", "<answer>A", '<tool_call>{"name": "zoom_in"', "A<|im_end|>"):
        parsed = parse_turn(turn(body))
        assert (parsed.call, parsed.answer, parsed.is_well_formed) == (None, None, False)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>A</answer>",
        "A <think>x</think><answer>A</answer>",
        "<think>x</think> so <answer>A</answer>",
        "<think>x<answer>A</answer>",
        "<think>x</think><think>y</think><answer>A</answer>",
        "<think><answer>B</think><answer>A</answer>",
        "<think>x</think><tool_call>{}<answer>A</answer>",
    ],
)
def test_an_answer_outside_the_form_counts_but_is_not_well_formed(text: str) -> None:
    parsed = parse_turn(list(text))
    assert (parsed.answer, parsed.is_well_formed) == ("A", False)


def test_white_space_around_the_tags_is_well_formed() -> None:
    assert parse_turn(list("\n<think>x</think>\n\n<answer>A</answer>")).is_well_formed


@pytest.mark.parametrize(
    "body",
    [
        "",
        "zoom please",
        '{"name": "zoom_in", "arguments": {"bbox_2d": [1, 2, 3, 4]}',
        '{"name": "zoom_in", "arguments": {"bbox_2d": [1, 2, 3, 4]}}}',
        '["zoom_in", [1, 2, 3, 4]]',
        '{"name": "zoom_in", "arguments": {"bbox_2d": [1, 2, 3, NaN]}}',
        '{"name": "zoom_in", "arguments": {"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}}',
        "[" * 100_000,
        '{"name": "zoom_in", "arguments": {"bbox_2d": [' + "9" * 5000 + ", 2, 3, 4]}}",
    ],
)
def test_malformed_json_is_a_bad_call(body: str) -> None:
    token_texts = turn(f"<tool_call>{body}</tool_call>")
    assert reason_of(token_texts) is BadCallReason.MALFORMED_JSON
    parsed = parse_turn(token_texts)
    assert (parsed.first_coordinate_token, parsed.end_token) == (None, None)
    assert parsed.is_well_formed, "the tags are in order; that the call is bad is another fact"


@pytest.mark.parametrize("name", ["zoom_out", None, 3, ["zoom_in"]])
def test_another_tool_is_unknown(name: object) -> None:
    assert reason_of(call({"bbox_2d": [1, 2, 3, 4]}, name)) is BadCallReason.UNKNOWN_TOOL


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        [1, 2, 3, 4],
        {},
        {"bbox": [1, 2, 3, 4]},
        {"bbox_2d": [1, 2, 3]},
        {"bbox_2d": [1, 2, 3, 4, 5]},
        {"bbox_2d": "1, 2, 3, 4"},
        {"bbox_2d": ["1", 2, 3, 4]},
        {"bbox_2d": [True, 2, 3, 4]},
        {"bbox_2d": [[1, 2], [3, 4]]},
        {"bbox_2d": [10**400, 2, 3, 4]},
    ],
)
def test_wrong_arguments_are_a_bad_call(arguments: object) -> None:
    assert reason_of(call(arguments)) is BadCallReason.WRONG_ARGUMENTS


def test_a_number_beyond_all_floats_is_wrong() -> None:
    body = '<tool_call>{"name": "zoom_in", "arguments": {"bbox_2d": [1e999, 2, 3, 4]}}</tool_call>'
    assert reason_of(turn(body)) is BadCallReason.WRONG_ARGUMENTS


def test_a_call_that_was_never_opened_is_bad() -> None:
    assert reason_of(turn('{"name": "zoom_in"}</tool_call>')) is BadCallReason.NOT_OPENED


def test_of_several_openings_the_last_one_is_the_call() -> None:
    body = "<tool_call>{" + ZOOM_IN.call_text(bbox_2d=[1, 2, 3, 4])
    parsed = parse_turn(turn(body))
    assert parsed.call is not None
    assert parsed.call.arguments == ZoomArguments((1, 2, 3, 4))
    assert not parsed.is_well_formed


def test_a_second_call_in_the_same_turn_is_never_reached() -> None:
    parsed = parse_turn(
        turn(ZOOM_IN.call_text(bbox_2d=[1, 2, 3, 4]) + ZOOM_IN.call_text(bbox_2d=[5, 6, 7, 8]))
    )
    assert parsed.call is not None
    assert parsed.call.arguments == ZoomArguments((1, 2, 3, 4))


def test_the_box_is_not_confused_with_what_looks_like_one() -> None:
    decoy = json.dumps({"bbox_2d": [9, 9, 9, 9]})
    body = json.dumps(
        {
            "note": decoy,
            "bbox_2d": [8, 8, 8, 8],
            "name": "zoom_in",
            "arguments": {"label": decoy, "nested": {"bbox_2d": [7]}, "bbox_2d": [1, 2, 3, 4]},
        }
    ).replace('"arguments"', '"argument\\u0073"')
    token_texts = turn(f"<tool_call>{body}</tool_call>", thought=decoy)
    parsed = parse_turn(token_texts)
    written = "".join(token_texts[parsed.first_coordinate_token : parsed.end_token])
    assert written == "1, 2, 3, 4]"
