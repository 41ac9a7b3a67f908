from __future__ import annotations

import html.parser

import numpy as np
import pytest

from purestate.errors import MetricError
from purestate.view import html_table, text_table


def test_texts_are_aligned_left_and_numbers_right():
    rows = [["fc.weight", 1280, 0.5, True], ["b", None, 1e-7, False]]
    assert text_table(rows, ["name", "n", "loss", "best"]).splitlines() == [
        "name          n   loss  best",
        "---------  ----  -----  -----",
        "fc.weight  1280    0.5  True",
        "b             -  1e-07  False",
    ]


def test_lines_have_no_trailing_spaces_and_a_break_does_not_break_the_table():
    text = text_table([["a", "one\ntwo"], ["b", ""]], ["x", "y"])
    assert text.splitlines()[2:] == ["a  one two", "b"]


def test_numpy_numbers_are_numbers():
    assert text_table([[np.float32(0.25)], [np.int64(1000)]], ["value"]).splitlines()[2:] == [" 0.25", " 1000"]


def test_without_rows_the_header_stays():
    assert text_table([], ["a", "bc"]) == "a  bc\n-  --"


class Cells(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.opened, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.cells.append(data)


def test_html_is_escaped_and_keeps_every_entry():
    parsed = Cells(html_table([["<script>alert('&')</script>", 1.23456789], [None, 2]], ["a & b", "n"]))
    assert parsed.cells == ["a & b", "n", "<script>alert('&')</script>", "1.23457", "-", "2"]
    assert set(parsed.opened) == {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("table", [text_table, html_table])
def test_a_row_of_another_length_is_refused(table):
    with pytest.raises(MetricError, match=r"^row 1 of a table has 1 entries, its header 2: \['a', 'b'\]\.$"):
        table([[1, 2], [1]], ["a", "b"])
