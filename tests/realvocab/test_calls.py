"""The parser finds the box's tokens however this vocabulary merges what is around them."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.tokens import TextStream, Vocabulary
from shared.agent.parser import parse_turn
from tests.realvocab.vocabulary import TOKEN_IDS, build_tokenizer, ranks

numbers = st.one_of(
    st.integers(-9_999, 9_999).map(str),
    st.floats(-2_000, 2_000, allow_nan=False).map(lambda x: json.dumps(round(x, 2))),
    st.sampled_from(["0", "-0", "1e2", "-2.5E+1", "7e-1", "-0.25", "100000"]),
)
gaps = st.sampled_from(["", " ", "  ", "\n", "\n    ", "\t", "\r\n"])
thoughts = st.sampled_from(["look", 'at [12, 34], "bbox_2d": [1, 2, 3, 4]', "é肺🫁 [", ""])
notes = st.sampled_from([None, "[9, 9", "é", '"bbox_2d": [5, 6, 7, 8]', "]}}", "\\"])


@st.composite
def spelled_calls(draw: st.DrawFn) -> tuple[str, int, int]:
    """(text of a turn, where its first coordinate starts, where the closing bracket stands)."""
    gap = draw(gaps)
    coordinates = [draw(numbers) for _ in range(4)]
    box = f"[{draw(gaps)}%s{draw(gaps)}]" % f",{draw(gaps)}".join(coordinates)
    note = draw(notes)
    members = [f'"bbox_2d"{draw(gaps)}:{draw(gaps)}\0']
    if note is not None:
        members.insert(draw(st.integers(0, 1)), f'"note":{gap}{json.dumps(note)}')
    arguments = "{" + gap + f",{draw(gaps)}".join(members) + draw(gaps) + "}"
    outer = [f'"name":{gap}"zoom_in"', f'"arguments":{gap}{arguments}']
    if draw(st.booleans()):
        outer.reverse()
    body = "{" + draw(gaps) + f",{gap}".join(outer) + draw(gaps) + "}"
    before, after = f"<think>{draw(thoughts)}</think><tool_call>{draw(gaps)}{body}".split("\0")
    first = len(before) + box.index(coordinates[0])
    return before + box + after + draw(gaps) + "</tool_call>", first, len(before + box) - 1


def check(token_texts: list[str], text: str, first: int, closing: int) -> None:
    assert "".join(token_texts) == text
    parsed = parse_turn(token_texts)
    assert parsed.call is not None
    assert parsed.call.arguments is not None
    assert parsed.first_coordinate_token is not None
    assert parsed.end_token is not None
    kept = "".join(token_texts[: parsed.first_coordinate_token])
    reached = kept + token_texts[parsed.first_coordinate_token]
    assert len(kept) <= first < len(reached), "cut right before the token of the first coordinate"
    through = "".join(token_texts[: parsed.end_token])
    before_last = "".join(token_texts[: parsed.end_token - 1])
    assert len(before_last) <= closing < len(through), "through the token of the closing bracket"


@settings(max_examples=400, deadline=None)
@given(spelled_calls())
def test_the_box_is_found_as_the_tokenizer_merges_it(
    vocabulary: Vocabulary, call: tuple[str, int, int]
) -> None:
    text, first, closing = call
    ids = build_tokenizer().encode(text, add_special_tokens=False)
    token_texts = TextStream(vocabulary).push(ids, final=True)
    check(token_texts, text, first, closing)
    if text[first] != "-":
        at = parse_turn(token_texts).first_coordinate_token
        assert at is not None
        assert token_texts[at] == text[first], "a digit is a token of its own"


def any_ids(text: str, random: Random) -> list[int]:
    """Ids that spell a text in a way of their own: a policy samples tokens, not merges."""
    rest, ids = text.encode(), []
    while rest:
        fitting = [rest[:n] for n in range(1, 13) if rest[:n] in ranks()]
        special = [i for t, i in TOKEN_IDS.items() if rest.startswith(t.encode())]
        if special and random.random() < 0.5:
            chosen, token_id = token_bytes(special[0]), special[0]
        else:
            chosen = random.choice(fitting)
            token_id = ranks()[chosen]
        ids.append(token_id)
        rest = rest[len(chosen) :]
    return ids


def token_bytes(token_id: int) -> bytes:
    return next(t for t, i in TOKEN_IDS.items() if i == token_id).encode()


@settings(max_examples=200, deadline=None)
@given(spelled_calls(), st.integers(0, 2**32))
def test_the_box_is_found_in_tokens_no_tokenizer_would_choose(
    vocabulary: Vocabulary, call: tuple[str, int, int], seed: int
) -> None:
    text, first, closing = call
    token_texts = TextStream(vocabulary).push(any_ids(text, Random(seed)), final=True)
    check(token_texts, text, first, closing)


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [
        ('{"name": "zoom_in", "arguments": {"bbox_2d": [12, 3, 40, 56]}}', "1", "]}}"),
        ('{"name":"zoom_in","arguments":{"bbox_2d":[12,3,40,56]}}', "1", "]}}"),
        ('{"name": "zoom_in", "arguments": {"bbox_2d": [-12, 3, 40, 56]}}', " [-", "]}}"),
        ('{"name":"zoom_in","arguments":{"bbox_2d":[-12,3,40,56]}}', '":[-', "]}}"),
        ('\n{"name": "zoom_in", "arguments": {"bbox_2d": [12, 3, 40, 56]}}\n', "1", "]}}\n"),
        ('{"arguments": {"bbox_2d": [ 12, 3, 40, 56 ]}, "name": "zoom_in"}', "1", " ]"),
        ('{"arguments": {"bbox_2d": [12, 3, 40, 5.5]}, "name": "zoom_in"}', "1", "]},"),
    ],
)
def test_the_usual_spellings_are_cut_where_one_would_cut_them_by_hand(
    vocabulary: Vocabulary, written: str, first: str, last: str
) -> None:
    text = f"<think>look</think><tool_call>{written}</tool_call>"
    ids = build_tokenizer().encode(text, add_special_tokens=False)
    token_texts = TextStream(vocabulary).push(ids, final=True)
    parsed = parse_turn(token_texts)
    assert parsed.first_coordinate_token is not None
    assert parsed.end_token is not None
    assert token_texts[parsed.first_coordinate_token] == first
    assert "]" in token_texts[parsed.end_token - 1]
    assert last.startswith(token_texts[parsed.end_token - 1])


def test_a_turn_ends_at_a_stop_that_ends_inside_a_token(vocabulary: Vocabulary) -> None:
    text = "<think>x</think><answer>B</answer>\n\n"
    ids = build_tokenizer().encode(text, add_special_tokens=False)
    token_texts = TextStream(vocabulary).push(ids, final=True)
    assert token_texts[-1] == ">\n\n"
    parsed = parse_turn(token_texts)
    assert (parsed.answer, parsed.is_well_formed) == ("B", True)
