"""Rows of cells as a table on the console."""

from collections.abc import Sequence

from rich import box
from rich.table import Table


def rich_table(rows: Sequence[tuple[str, ...]], title: str = "") -> Table:
    """The first row is the heading."""
    head, *body = rows
    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for cell in head:
        table.add_column(cell, overflow="fold")
    for cells in body:
        table.add_row(*cells)
    return table
