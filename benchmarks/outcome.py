"""What a benchmark measured: one line of JSON, the last one it prints.

    {"name": …, "figure": …, "unit": …, "aim": …, "detail": {…}}

`figure` is the ratio that matters, `aim` the bound it should keep (`>= 0.95`) or null. Further
figures with aims of their own are in `detail.also`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class Aim(msgspec.Struct, frozen=True):
    """A bound that a figure should keep."""

    relation: str
    """`>=` or `<=`."""
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Aim":
        """The inverse of `str`. Raises `ValueError`."""
        relation, _, bound = text.partition(" ")
        if relation not in (">=", "<="):
            raise ValueError(f"{text!r} is no aim: it must begin with >= or <=")
        return cls(relation, float(bound))

    def is_met(self, figure: float) -> bool:
        """Whether a figure keeps the bound."""
        return figure >= self.bound if self.relation == ">=" else figure <= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


class Figure(msgspec.Struct, frozen=True):
    """One number with its unit and, where it has one, its aim."""

    name: str
    figure: float
    unit: str
    aim: str | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met; None without an aim."""
        return None if self.aim is None else Aim.parse(self.aim).is_met(self.figure)


class Outcome(msgspec.Struct, frozen=True):
    """The line."""

    name: str
    figure: float
    unit: str
    aim: str | None
    detail: dict[str, Any]
    """`also` holds further figures; the rest is whatever helps to read them."""

    @property
    def figures(self) -> list[Figure]:
        """The figure that matters, then the others."""
        also = msgspec.convert(self.detail.get("also", []), list[Figure])
        return [Figure(self.name, self.figure, self.unit, self.aim), *also]


def make_outcome(
    main: Figure, *, also: Sequence[Figure] = (), detail: Mapping[str, Any] | None = None
) -> Outcome:
    """An outcome whose numbers are rounded to what they are worth."""
    rounded = _rounded({"also": msgspec.to_builtins(list(also)), **(detail or {})})
    return Outcome(main.name, _significant(main.figure), main.unit, main.aim, rounded)


def _significant(number: float) -> float:
    return float(f"{number:.4g}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return _significant(value)
    if isinstance(value, dict):
        return {key: _rounded(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(member) for member in value]
    return value


def decode_outcome(line: bytes | str) -> Outcome:
    """A printed line, validated. Raises `msgspec.ValidationError`."""
    outcome = msgspec.json.decode(line, type=Outcome)
    for figure in outcome.figures:
        if figure.aim is not None:
            Aim.parse(figure.aim)
    return outcome


def print_outcome(outcome: Outcome) -> None:
    """The last line on stdout."""
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    sys.stdout.flush()
