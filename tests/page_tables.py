"""A page's tables against the results beside it. A column that is the same in every row stands in the caption."""

from __future__ import annotations

from html.parser import HTMLParser

from clipvip_lib.say import with_minus


class Tables(HTMLParser):
    """Every table of a page as {caption: rows of cell texts}; headings of the columns are left out."""

    def __init__(self, page: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.caption = self.place = self.column = None
        self.constant: dict[int, str] = {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "caption":
            self.caption, self.place, self.constant = "", "caption", {}
        elif tag == "span" and attributes and self.place in ("caption", "same"):
            named = dict(attributes)
            self.place = "same"
            if "data-column" in named:
                self.column = int(named["data-column"])
                self.constant[self.column] = ""
        elif tag == "tbody" and self.caption is not None:
            self.tables[self.caption] = []
        elif tag == "tr" and self.caption in self.tables:
            self.tables[self.caption].append([])
        elif tag in ("td", "th") and self.caption in self.tables:
            self.tables[self.caption][-1].append("")
            self.place = "cell"

    def handle_data(self, data):
        if self.place == "caption":
            self.caption += data
        elif self.place == "same" and self.column is not None:
            self.constant[self.column] += data
        elif self.place == "cell":
            self.tables[self.caption][-1][-1] += data

    def handle_endtag(self, tag):
        if tag in ("caption", "td", "th"):
            self.place = None
        elif tag == "span":
            self.column = None
        elif tag == "tr" and self.caption in self.tables:
            for column, text in sorted(self.constant.items()):
                self.tables[self.caption][-1].insert(column, text)
        elif tag == "table":
            self.caption = None


def says(text: str, value: object) -> bool:
    """Whether a cell's text is a stored value, rounded to the decimals that it shows."""
    if value is None:
        return text == "–"
    if isinstance(value, bool):
        return text == ("yes" if value else "no")
    if isinstance(value, str):
        return text == ("–†" if value == "NOT VERIFIED" else with_minus(value))
    number = text.replace(",", "").replace("−", "-")
    decimals = len(number.partition(".")[2])
    return abs(float(number) - value) <= 0.5 * 10**-decimals + 1e-9


def require_same_numbers(page: str, results: dict) -> None:
    """Fails unless the page has the tables of its results/NAME.json, cell for cell, and no other."""
    stored, shown = results["tables"], Tables(page).tables
    assert set(shown) == set(stored) and shown
    for caption, rows in shown.items():
        kept = stored[caption]["rows"]
        assert [len(row) for row in rows] == [len(row) for row in kept], caption
        for row, values in zip(rows, kept, strict=True):
            for text, value in zip(row, values, strict=True):
                assert says(text, value), f"{caption}: the page says {text!r}, results hold {value!r}"
