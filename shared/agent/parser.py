"""Reads one turn of the policy: its thought, its tool call or answer, and where that is written.

The text of a turn is the concatenation of its token texts and ends at the first `</tool_call>` or
`</answer>`; whatever the last token holds behind that is not judged. Character positions are
mapped back to tokens, so it does not matter how a tokenizer groups digits, brackets and quotes.
Nothing here raises on what a policy wrote: a bad call is a `ParsedCall` with an error.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate
from typing import NamedTuple, NoReturn, cast

import msgspec

from shared.agent.prompt import TURN_STOPS
from shared.agent.tools import TOOLS, Arguments, BadArguments, Tool

EVERY_TOOL = tuple(TOOLS.values())

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


class ParsedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call: the tool and its arguments, or the reason why there are none."""

    tool: str | None = None
    arguments: Arguments | None = None
    reason: BadCallReason | None = None
    error: str | None = None
    """What the policy is told about a call that does not parse."""


class ParsedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn says. A turn has a call, or an answer, or neither (it was not finished)."""

    call: ParsedCall | None = None
    answer: str | None = None
    """Stripped; None if the turn gave none or an empty one."""
    is_well_formed: bool
    """Exactly one thought, then exactly one call or answer, and only white space around them."""
    first_coordinate_token: int | None = None
    """Index of the token that holds the first character of the first argument: of a box, its first
    coordinate's."""
    end_token: int | None = None
    """One past the token that holds the last character of the last argument: of a box, its closing
    bracket."""


class _CallInText(NamedTuple):
    """A parsed call and the character positions between which its arguments are written."""

    tool: Tool
    arguments: Arguments
    first: int
    """Of the first digit (or sign)."""
    last: int
    """Of the last digit or closing bracket."""


class _BadCall(Exception):
    def __init__(self, reason: BadCallReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse_turn(token_texts: Sequence[str], tools: Sequence[Tool] = EVERY_TOOL) -> ParsedTurn:
    """Parse the turn whose tokens spell `token_texts` (one text per token).

    `tools` are those its policy was told of; a call of another does not parse.
    """
    text = "".join(token_texts)
    end, stop = _first_stop(text)
    if stop is None:
        return ParsedTurn(is_well_formed=False)
    body, is_well_formed = text[:end], _is_well_formed(text[:end])
    if stop == _CLOSE_ANSWER:
        return ParsedTurn(answer=_answer(body), is_well_formed=is_well_formed)
    try:
        found = _parse_call(body, tools)
    except _BadCall as bad:
        call = ParsedCall(reason=bad.reason, error=str(bad))
        return ParsedTurn(call=call, is_well_formed=is_well_formed)
    token_ends = list(accumulate(len(token) for token in token_texts))
    return ParsedTurn(
        call=ParsedCall(tool=found.tool.name, arguments=found.arguments),
        is_well_formed=is_well_formed,
        first_coordinate_token=bisect_right(token_ends, found.first),
        end_token=bisect_right(token_ends, found.last) + 1,
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


def _parse_call(body: str, tools: Sequence[Tool]) -> _CallInText:
    """The call that closes `body`; of several openings the last counts. Raises `_BadCall`."""
    opened = body.rfind(_OPEN_CALL)
    if opened < 0:
        raise _BadCall(BadCallReason.NOT_OPENED, "a call must be opened with <tool_call>")
    start = opened + len(_OPEN_CALL)
    written = body[start : -len(_CLOSE_CALL)]
    try:
        call = _STRICT.decode(written)
    except (ValueError, RecursionError):
        raise _malformed() from None
    if not isinstance(call, dict):
        raise _malformed()
    call = cast("dict[str, object]", call)
    tool = next((tool for tool in tools if tool.name == call.get("name")), None)
    if tool is None:
        raise _BadCall(BadCallReason.UNKNOWN_TOOL, _unknown_tool(tools))
    arguments = call.get("arguments")
    if not isinstance(arguments, dict):
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS, tool.usage)
    try:
        read = tool.read(cast("dict[str, object]", arguments))
    except BadArguments:
        raise _BadCall(BadCallReason.WRONG_ARGUMENTS, tool.usage) from None
    first, last = _extent(written, tool)
    return _CallInText(tool, read, start + first, start + last)


def _malformed() -> _BadCall:
    return _BadCall(BadCallReason.MALFORMED_JSON, "the call is not a JSON object")


def _unknown_tool(tools: Sequence[Tool]) -> str:
    """What the policy is told: the tools it has."""
    *others, last = [tool.name for tool in tools]
    if not others:
        return f"unknown tool; the only tool is {last}"
    return f"unknown tool; the tools are {', '.join(others)} and {last}"


def _extent(written: str, tool: Tool) -> tuple[int, int]:
    """Where the tool's arguments are written: first character of the first, last of the last.

    A list begins with its first number, not with its bracket.
    """
    arguments = _value_start(written, _skip(written, 0), "arguments")
    firsts: list[int] = []
    ends: list[int] = []
    for name in tool.arguments:
        at = _value_start(written, arguments, name)
        _, end = _PLAIN.raw_decode(written, at)
        firsts.append(_skip(written, at + 1) if written[at] == "[" else at)
        ends.append(end - 1)
    return min(firsts), max(ends)


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
