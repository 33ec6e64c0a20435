"""A finished run for people: a table in the terminal and one self-contained HTML page."""

from fairanon.report.page import write_first_page, write_report
from fairanon.report.table import compare, print_numbers, print_table, summarise, table_rows, untrained

__all__ = [
    "compare",
    "print_numbers",
    "print_table",
    "summarise",
    "table_rows",
    "untrained",
    "write_first_page",
    "write_report",
]
