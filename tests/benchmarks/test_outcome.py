"""The line a benchmark prints, and the page that is made of the lines."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.outcome import Aim, Figure, Outcome, decode_outcome, make_outcome, print_outcome
from benchmarks.results import Measured, read_results, refresh_table, write_result

OUTCOME = make_outcome(
    Figure("cca", 123.456, "x as fast", ">= 100"),
    also=[Figure("cca at 512 px", 25.0, "x as fast"), Figure("cca, cold", 80.0, "x", ">= 90")],
    detail={"times_ms": [0.123456, 0.2]},
)
PAGE = "# Title\n\n<!-- table: made by `make bench` -->\nold\n<!-- end of table -->\n\nText.\n"


def measured(outcome: Outcome) -> Measured:
    return Measured("2026-01-31", "2 cores of a processor, 24 GiB", "abc", outcome)


def test_the_last_line_is_the_outcome_with_four_digits(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(OUTCOME)
    line = capsys.readouterr().out.splitlines()[-1]
    document = msgspec.json.decode(line)
    assert list(document) == ["name", "figure", "unit", "aim", "detail"]
    assert document["figure"] == 123.5
    assert document["detail"]["times_ms"] == [0.1235, 0.2]
    assert decode_outcome(line) == OUTCOME


@pytest.mark.parametrize(
    ("aim", "kept", "missed"), [(">= 0.95", 0.95, 0.949), ("<= 0.7", 0.7, 0.71)]
)
def test_an_aim_is_kept_up_to_its_bound(aim: str, kept: float, missed: float) -> None:
    assert Aim.parse(aim).is_met(kept)
    assert not Aim.parse(aim).is_met(missed)
    assert str(Aim.parse(aim)) == aim


def test_an_aim_without_a_relation_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with >= or <="):
        Aim.parse("100")


def test_the_table_has_a_row_for_every_figure_and_says_which_aim_is_missed(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    refresh_table(page, [measured(OUTCOME)])
    lines = page.read_text().splitlines()
    assert "| cca | 123.5 x as fast | >= 100 | yes | 2026-01-31 | abc |" in lines
    assert "| cca at 512 px | 25 x as fast |  |  | 2026-01-31 | abc |" in lines
    assert "| cca, cold | 80 x | >= 90 | **no** | 2026-01-31 | abc |" in lines
    assert "Machine: 2 cores of a processor, 24 GiB." in lines
    assert "old" not in lines
    assert lines[0] == "# Title"
    assert lines[-1] == "Text."


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="lacks the line"):
        refresh_table(page, [measured(OUTCOME)])
    assert page.read_text() == "# Title\n"


def test_results_are_read_in_the_order_asked_for_and_missing_ones_left_out(tmp_path: Path) -> None:
    other = make_outcome(Figure("zoom", 6.0, "x"))
    write_result(tmp_path / "results", "cca", measured(OUTCOME))
    write_result(tmp_path / "results", "zoom", measured(other))
    found = read_results(tmp_path / "results", ["zoom", "loop", "cca"])
    assert found == [measured(other), measured(OUTCOME)]
