"""The questions of a job as a CSV file: read whole, and refused whole with every row that is wrong.

Of a file of any content no more rows are held than may be asked, so that a small file cannot take
much memory.

    image,question,choices,k,seed
    scan1.dcm,What is shown?,ring|cross,5,7

UTF-8, comma-separated, with a header. `image` is the name of an uploaded file or the SHA-256 of
its bytes; `choices` is one cell with | between them, or several columns of that name. The other
columns are fields of a case's form: k, seed, verify, and which picture of the file is meant
(frame, axis, index, window, window_center, window_width). `image` and `question` are needed. No
cell is ever quoted in an error: a name or a question may tell who the patient is.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from pydantic import ValidationError

from shared.api.zoom import RenderingRequest

_RENDERING = tuple(RenderingRequest.model_fields)
COLUMNS = ("image", "question", "choices", "k", "seed", "verify", *_RENDERING)
REPEATED_COLUMN = "choices"
_NEEDED = ("image", "question")
MAX_CELLS = 256
"""Of a row: every column, and many of choices."""
_MAX_DIGITS = 20


class QuestionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it is written; only its form is checked."""

    line: int
    """As a spreadsheet numbers it: the header is 1."""
    image_number: int
    """Which of the uploaded files, from 1."""
    question: str
    choices: list[str]
    k: int | None
    seed: int | None
    verify: bool | None
    rendering: dict[str, object]
    """The fields of `RenderingRequest` that the row gives."""


class BadQuestions(Exception):
    """What is wrong with the file, in a sentence."""


class BadRow(Exception):
    """What is wrong with a row."""


def read_questions(
    content: bytes, image_numbers: Mapping[str, int | None], max_rows: int
) -> tuple[list[QuestionRow], dict[int, str]]:
    """The rows, and what is wrong with the others by line.

    `image_numbers` has the number of every name and hash that a row may give; None is a name that
    several files have. Raises `BadQuestions` for a file that has no rows to speak of.
    """
    lines = _lines(content)
    first = next(lines, None)
    if first is None:
        raise BadQuestions(f"the file is empty; it must begin with a header of {_accepted()}")
    header = _header(first[1])
    num_filled = 0
    filled: list[tuple[int, list[str]]] = []
    for line in lines:
        if any(line[1]):
            num_filled += 1
            if num_filled <= max_rows:
                filled.append(line)
    if not filled:
        raise BadQuestions("the file has a header, and no question under it")
    if num_filled > max_rows:
        raise BadQuestions(f"the file has {num_filled} questions; at most {max_rows} are accepted")
    rows: list[QuestionRow] = []
    wrong: dict[int, str] = {}
    for line, cells in filled:
        try:
            rows.append(_row(line, header, cells, image_numbers))
        except BadRow as error:
            wrong[line] = str(error)
    return rows, wrong


def _accepted() -> str:
    return ", ".join(COLUMNS)


def _lines(content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Row number and trimmed cells of every row, one after the other."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadQuestions(f"the file is not UTF-8 (byte {error.start})") from error
    if "\0" in text:
        raise BadQuestions("the file holds null characters: it is no CSV text")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            if len(row) > MAX_CELLS:
                raise BadQuestions(f"row {number} has {len(row)} cells; at most {MAX_CELLS} can be")
            yield number, [cell.strip() for cell in row]
    except csv.Error as error:
        raise BadQuestions(f"line {reader.line_num} is no CSV: {error}") from error


def _header(cells: Sequence[str]) -> list[str]:
    header = [cell.casefold() for cell in cells]
    if any(name not in COLUMNS for name in header):
        unknown = [str(n) for n, name in enumerate(header, start=1) if name not in COLUMNS]
        raise BadQuestions(
            f"the header's column {', '.join(unknown[:8])} is not known; accepted: {_accepted()}"
        )
    for name in COLUMNS:
        if name != REPEATED_COLUMN and header.count(name) > 1:
            raise BadQuestions(f"the header has {name} twice; only {REPEATED_COLUMN} may repeat")
    for name in _NEEDED:
        if name not in header:
            raise BadQuestions(f"the header has no column {name}; accepted: {_accepted()}")
    return header


def _row(
    line: int, header: list[str], cells: list[str], image_numbers: Mapping[str, int | None]
) -> QuestionRow:
    if len(cells) != len(header):
        raise BadRow(f"{len(cells)} cells under {len(header)} columns; quote a cell with a comma")
    by_name = dict(zip(header, cells, strict=True))
    name = by_name["image"]
    number = image_numbers.get(name, image_numbers.get(name.casefold(), 0))
    if number == 0:
        raise BadRow("image is neither the name nor the SHA-256 of an uploaded file")
    if number is None:
        raise BadRow("image is the name of several uploaded files; give its SHA-256")
    given = [cell for name, cell in zip(header, cells, strict=True) if name == REPEATED_COLUMN]
    return QuestionRow(
        line=line,
        image_number=number,
        question=by_name["question"],
        choices=[choice.strip() for cell in given if cell for choice in cell.split("|")],
        k=_number("k", by_name.get("k", "")),
        seed=_number("seed", by_name.get("seed", "")),
        verify=_yes_or_no("verify", by_name.get("verify", "")),
        rendering=_rendering({name: by_name[name] for name in _RENDERING if by_name.get(name)}),
    )


def _rendering(cells: dict[str, str]) -> dict[str, object]:
    try:
        return RenderingRequest.model_validate(cells).model_dump(include=set(cells))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        raise BadRow("; ".join(f"{each['loc'][0]}: {each['msg']}" for each in wrong)) from error


def _yes_or_no(name: str, cell: str) -> bool | None:
    if not cell:
        return None
    said = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if cell.casefold() not in said:
        raise BadRow(f"{name} is none of {', '.join(said)}")
    return said[cell.casefold()]


def _number(name: str, cell: str) -> int | None:
    if not cell:
        return None
    if not (cell.isascii() and cell.isdigit() and len(cell) <= _MAX_DIGITS):
        raise BadRow(f"{name} is no whole number from 0 on")
    return int(cell)
