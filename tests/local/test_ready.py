"""What is shown while processes start: their own words of this start, on one line each."""

import io
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.local.ready import last_message, one_line


def shown(said: str, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    table = Table("process", "last said", box=None)
    table.add_row("policy", one_line(said))
    console.print(table)
    return console.export_text().splitlines()


def test_a_long_line_gives_way_to_the_name() -> None:
    assert shown("word " * 60, width=40)[1].split()[:2] == ["policy", "word"]


def test_brackets_in_a_log_are_no_markup() -> None:
    assert "[W1125 utils.cpp] in [/tmp/x]" in shown("[W1125 utils.cpp] in [/tmp/x]", width=80)[1]


def test_what_an_earlier_start_logged_is_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.write_text("bye bye\n")
    start = log.stat().st_size
    assert last_message(log) == "bye bye"
    assert last_message(log, start) == ""
    with log.open("a") as file:
        file.write(json.dumps({"message": "two\nlines"}) + "\n")
    assert last_message(log, start) == "two lines"
