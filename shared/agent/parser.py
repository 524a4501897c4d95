"""Reads one turn of the policy: its thought, its tool call or answer, and where the box is written.

The text of a turn is the concatenation of its token texts and ends at the first `</tool_call>` or
`</answer>`; whatever the last token holds behind that is not judged. Character positions are
mapped back to tokens, so it does not matter how a tokenizer groups digits, brackets and quotes.
Nothing here raises on what a policy wrote: a bad call is a `ParsedCall` with an error.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate
from typing import NamedTuple, NoReturn, cast

import msgspec

from shared.agent.prompt import TURN_STOPS, ZOOM_TOOL_NAME

Bbox = tuple[float, float, float, float]

_TAG = re.compile(r"</?(?:think|tool_call|answer)>")
_WELL_FORMED = (
    ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    ["<think>", "</think>", "<answer>", "</answer>"],
)
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_OPEN_CALL, _CLOSE_CALL = "<tool_call>", "</tool_call>"
_OPEN_ANSWER, _CLOSE_ANSWER = "<answer>", "</answer>"


class BadCallReason(StrEnum):
    """Why a call does not parse."""

    NOT_OPENED = "not_opened"
    MALFORMED_JSON = "malformed_json"
    UNKNOWN_TOOL = "unknown_tool"
    WRONG_ARGUMENTS = "wrong_arguments"


CALL_ERRORS = {
    BadCallReason.NOT_OPENED: "a call must be opened with <tool_call>",
    BadCallReason.MALFORMED_JSON: "the call is not a JSON object",
    BadCallReason.UNKNOWN_TOOL: f"unknown tool; the only tool is {ZOOM_TOOL_NAME}",
    BadCallReason.WRONG_ARGUMENTS: "arguments must be a bbox_2d of four numbers",
}
"""What the policy is told."""


class ParsedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call: a box in view pixels, or the reason why there is none."""

    bbox_2d: Bbox | None = None
    """As written: x1, y1, x2, y2 in pixels of the view; finite, otherwise unchecked."""
    reason: BadCallReason | None = None

    @property
    def error(self) -> str | None:
        """What the policy is told about a call that does not parse."""
        return None if self.reason is None else CALL_ERRORS[self.reason]


class ParsedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn says. A turn has a call, or an answer, or neither (it was not finished)."""

    call: ParsedCall | None = None
    answer: str | None = None
    """Stripped; None if the turn gave none or an empty one."""
    is_well_formed: bool
    """Exactly one thought, then exactly one call or answer, and only white space around them."""
    first_coordinate_token: int | None = None
    """Index of the token that holds the first character of the first coordinate."""
    end_token: int | None = None
    """One past the token that holds the closing bracket of the box."""


class _BoxInText(NamedTuple):
    """A parsed box and the character positions of its first digit (or sign) and closing bracket."""

    bbox_2d: Bbox
    first: int
    closing: int


class _BadCall(Exception):
    def __init__(self, reason: BadCallReason) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_turn(token_texts: Sequence[str]) -> ParsedTurn:
    """Parse the turn whose tokens spell `token_texts` (one text per token)."""
    text = "".join(token_texts)
    end, stop = _first_stop(text)
    if stop is None:
        return ParsedTurn(is_well_formed=False)
    body, is_well_formed = text[:end], _is_well_formed(text[:end])
    if stop == _CLOSE_ANSWER:
        return ParsedTurn(answer=_answer(body), is_well_formed=is_well_formed)
    try:
        found = _parse_call(body)
    except _BadCall as error:
        return ParsedTurn(call=ParsedCall(reason=error.reason), is_well_formed=is_well_formed)
    token_ends = list(accumulate(len(token) for token in token_texts))
    return ParsedTurn(
        call=ParsedCall(bbox_2d=found.bbox_2d),
        is_well_formed=is_well_formed,
        first_coordinate_token=bisect_right(token_ends, found.first),
        end_token=bisect_right(token_ends, found.closing) + 1,
    )


def _first_stop(text: str) -> tuple[int, str | None]:
    """End of the turn and the stop that ended it."""
    found = [(at + len(stop), stop) for stop in TURN_STOPS if (at := text.find(stop)) >= 0]
    return min(found) if found else (len(text), None)


def _is_well_formed(body: str) -> bool:
    tags = list(_TAG.finditer(body))
    if [tag.group() for tag in tags] not in _WELL_FORMED:
        return False
    around = body[: tags[0].start()] + body[tags[1].end() : tags[2].start()]
    return not around.strip()


def _answer(body: str) -> str | None:
    opened = body.rfind(_OPEN_ANSWER)
    if opened < 0:
        return None
    return body[opened + len(_OPEN_ANSWER) : -len(_CLOSE_ANSWER)].strip() or None


def _parse_call(body: str) -> _BoxInText:
    """The call that closes `body`; of several openings the last counts. Raises `_BadCall`."""
    opened = body.rfind(_OPEN_CALL)
    if opened < 0:
        raise _BadCall(BadCallReason.NOT_OPENED)
    start = opened + len(_OPEN_CALL)
    written = body[start : -len(_CLOSE_CALL)]
    try:
        call = _STRICT.decode(written)
    except (ValueError, RecursionError):
        raise _BadCall(BadCallReason.MALFORMED_JSON) from None
    if not isinstance(call, dict):
        raise _BadCall(BadCallReason.MALFORMED_JSON)
    call = cast("dict[str, object]", call)
    if call.get("name") != ZOOM_TOOL_NAME:
        raise _BadCall(BadCallReason.UNKNOWN_TOOL)
    bbox_2d = _bbox(call.get("arguments"))
    arguments = _value_start(written, _skip(written, 0), "arguments")
    bracket = _value_start(written, arguments, "bbox_2d")
    _, after = _PLAIN.raw_decode(written, bracket)
    return _BoxInText(bbox_2d, start + _skip(written, bracket + 1), start + after - 1)


def _bbox(arguments: object) -> Bbox:
    """The four coordinates. Raises `_BadCall`."""
    if not isinstance(arguments, dict):
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS)
    values = cast("dict[str, object]", arguments).get("bbox_2d")
    if not isinstance(values, list) or len(cast("list[object]", values)) != 4:
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS)
    x1, y1, x2, y2 = (_coordinate(value) for value in cast("list[object]", values))
    return (x1, y1, x2, y2)


def _coordinate(value: object) -> float:
    """A finite JSON number; `true` is not one. Raises `_BadCall`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS)
    try:
        coordinate = float(value)
    except OverflowError:
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS) from None
    if not math.isfinite(coordinate):
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS)
    return coordinate


# -- JSON with positions ------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys differ: of two boxes nobody could say which one was meant."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key is given twice")
    return members


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
_PLAIN = json.JSONDecoder()


def _skip(text: str, index: int) -> int:
    """Index of the first character from `index` on that is not JSON white space."""
    found = _WHITESPACE.match(text, index)
    return index if found is None else found.end()


def _value_start(text: str, index: int, key: str) -> int:
    """Where the value of `key` starts in the valid JSON object at `index`, which has that key."""
    index = _skip(text, index + 1)
    while True:
        name, index = _PLAIN.raw_decode(text, index)
        index = _skip(text, _skip(text, index) + 1)
        if name == key:
            return index
        _, index = _PLAIN.raw_decode(text, index)
        index = _skip(text, _skip(text, index) + 1)
