"""Pages: one file, readable offline, light and dark, alt text kept, code folded."""

import re
from html.parser import HTMLParser

import browser as browsers
import nbformat
import numpy as np
import pandas as pd
import pytest

from clipvip_lib.errors import ClipVipError
from clipvip_lib.study import figures
from clipvip_lib.workshop import pages, tables

VOID = {"meta", "img", "br", "hr", "link", "input", "col", "wbr", "source"}


class Checker(HTMLParser):
    """Collects what a page refers to, and fails on tags that do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.images, self.links, self.tags, self.texts = [], [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID, tag
        self.handle_starttag(tag, attributes)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


def book() -> nbformat.NotebookNode:
    """An executed notebook with every kind of output."""
    import matplotlib
    from matplotlib import pyplot as plt

    with matplotlib.rc_context():
        matplotlib.use("agg")
        figures.use_style()
        fig, axes = plt.subplots()
        axes.plot([1, 2], [3, 4])
        figure = figures.figure_html(fig, "Lines rise", "n = 2", "a rising line")
    wide = pd.DataFrame({f"column {i}": [i] for i in range(30)})
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    v4 = nbformat.v4

    def shows(**data):
        return v4.new_output("display_data", data={k.replace("_", "/"): v for k, v in data.items()})

    outputs = [
        shows(text_html=figure),
        shows(text_html=tables.table_html(wide, "A wide table")),
        v4.new_output("stream", name="stdout", text="10/20, 3 s left\n"),
        v4.new_output("stream", name="stderr", text="a warning\n"),
        v4.new_output("display_data", data={"image/png": png}, metadata={"alt": "a dot"}),
        shows(text_plain="<b>not bold</b>"),
        shows(application_javascript="alert(1)"),
        v4.new_output(
            "error", ename="ValueError", evalue="bad", traceback=["\x1b[31mValueError\x1b[0m: <bad>"]
        ),
    ]
    text = "# Do proxies win & how?\n\nThe paper says *yes*, p < 0.05.\n\n"
    text += "| a | b |\n|---|--:|\n| 1 | 2 |\n\n## Part"
    code = v4.new_code_cell("def f(x):\n    return x < 1  # less", outputs=outputs, execution_count=1)
    return v4.new_notebook(cells=[v4.new_markdown_cell(text), code])


@pytest.fixture(scope="module")
def page() -> str:
    made = pages.page_html(book(), "04_video_proxy")
    return pages.with_navigation(
        made, ["03_x", "04_video_proxy", "05_y"], ["03_x", "04_video_proxy"], "04_video_proxy"
    )


def scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def test_the_page_nests_and_fetches_nothing(page):
    found = Checker(page)
    assert [tag for tag, _ in found.tags if tag in ("script", "link", "iframe", "object")] == ["script"]
    assert scripts(page) == [pages.script()] and pages.policy() in page
    assert all(image["src"].startswith("data:") for image in found.images)
    assert not re.search(r"@import|url\((?!#|%23)|https?://[^\s\"'<]*\.(?:js|css|woff2?)", page)
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert set(found.links) == {"#content", "index.html", "03_x.html", "results/04_video_proxy.json"}


CAPTION = "</td></p><script>alert(1)</script><img src=x onerror=alert(2)> $a_{ & \x1b[31m\u202e ![p](http://e.x/p.png)"


@pytest.mark.bad_input(
    "pages: captions with tags and scripts, wherever a page shows texts", says="the tags as text"
)
def test_captions_with_tags_are_shown_and_never_obeyed():
    """Texts from data in every place where a page may show them."""
    from matplotlib import pyplot as plt

    figures.use_style()
    fig, axes = plt.subplots()
    axes.set_title(CAPTION[:60])
    axes.text(0, 0, CAPTION[:60])
    drawn = figures.figure_html(fig, CAPTION, CAPTION, CAPTION)
    frame = pd.DataFrame({CAPTION: [CAPTION]}, index=pd.Index([CAPTION], name=f"2 {CAPTION}"))
    v4 = nbformat.v4
    shows = [
        {"text/html": drawn},
        {"text/html": tables.table_html(frame, CAPTION)},
        {"text/plain": CAPTION},
        {"text/markdown": f"* {CAPTION}\n\n{CAPTION}\n\n[a](javascript:alert(3))"},
    ]
    outputs = [v4.new_output("display_data", data=data) for data in shows]
    outputs += [v4.new_output("stream", name=name, text=CAPTION) for name in ("stdout", "stderr")]
    outputs.append(v4.new_output("error", ename="E", evalue=CAPTION, traceback=[CAPTION]))
    cells = [v4.new_markdown_cell("# Shown?"), v4.new_code_cell("1", outputs=outputs, execution_count=1)]
    page = pages.page_html(v4.new_notebook(cells=cells), "03_x")
    found = Checker(page)
    assert [tag for tag, _ in found.tags if tag in ("script", "iframe")] == ["script"]
    assert scripts(page) == [pages.script()]  # its own, the only one that its policy lets run
    assert all(image["src"].startswith("data:image/svg") for image in found.images) and len(found.images) == 1
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert not [link for link in found.links if link.startswith("javascript:")]
    assert "".join(found.texts).count("<script>alert(1)</script>") >= 10
    card = dict.fromkeys(("number", "question", "headline", "facts"), CAPTION)
    card |= {"page": "x.html", "status": "done", "verdicts": [(CAPTION, CAPTION, CAPTION)]}
    index = Checker(pages.index_html([card], [(CAPTION, CAPTION)], "smoke"))
    assert [tag for tag, _ in index.tags if tag in ("script", "img")] == ["script"]


def test_every_image_has_its_alt_text(page):
    assert [image["alt"] for image in Checker(page).images] == ["a rising line", "a dot"]


def test_light_and_dark_code_folded_text_escaped(page):
    assert page.count("prefers-color-scheme:dark") == 2
    found = Checker(page)
    assert ("meta", {"name": "color-scheme", "content": "light dark"}) in found.tags
    folded = [attributes for tag, attributes in found.tags if tag == "details"]
    assert len(folded) == 2 and not any("open" in attributes for attributes in folded)  # code, stderr
    assert "&lt;b&gt;not bold" in page and "alert(1)" not in page
    assert "".join(found.texts).count("Do proxies win & how?") == 2  # title and heading
    assert 'lang="en"' in page and "<main" in page and "aria-current" in page


def test_a_folded_cell_shows_its_first_line_of_code():
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell("\ndrawn = 1\nprint(drawn)"),
    ]
    found = Checker(pages.page_html(nbformat.v4.new_notebook(cells=cells), "04_video_proxy"))
    assert "drawn = 1" in found.texts


def test_a_cell_tagged_open_is_not_folded():
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell("by_hand = 1", metadata={"tags": ["open"]}),
        nbformat.v4.new_code_cell("drawn = 1"),
    ]
    found = Checker(pages.page_html(nbformat.v4.new_notebook(cells=cells), "04_video_proxy"))
    assert ["open" in attributes for tag, attributes in found.tags if tag == "details"] == [True, False]


def test_a_notebook_without_a_title_is_refused(tmp_path):
    with pytest.raises(ClipVipError, match="no title"):
        pages.question({"cells": [{"cell_type": "code", "source": "# no"}]})
    for content in (b"{}", b"\xff"):
        (tmp_path / "x.ipynb").write_bytes(content)
        with pytest.raises(ClipVipError, match="is not a notebook"):
            pages.notebook_question(tmp_path / "x.ipynb")


def test_navigation_is_renewed_not_repeated(page):
    again = pages.with_navigation(page, ["03_x", "04_video_proxy", "05_y"], ["05_y"], "04_video_proxy")
    assert again.count("<nav") == 1
    assert 'href="05_y.html"' in again and 'href="03_x.html"' not in again


def test_the_outline_links_to_every_section_once():
    page = "<!--outline--><!--/outline--><main><h1>Q?</h1><h2>One &amp; all</h2><h2 id='x'>y</h2><h2>One &amp; all</h2>"
    made = pages.with_outline(page + "<h3>Two</h3></main>")
    links = re.findall(r'<li class="level(\d)"><a href="#([^"]+)">([^<]*)</a>', made)
    assert [(level, text) for level, _, text in links] == [
        ("2", "One &amp; all"),
        ("2", "One &amp; all"),
        ("3", "Two"),
    ]
    assert all(made.count(f'id="{slug}"') == 1 for _, slug, _ in links)
    assert pages.with_outline(made) == made


def cards(n: int) -> list[dict]:
    done = {
        "number": "04",
        "question": "Do <b> win?",
        "page": "04.html",
        "headline": "yes & no",
        "facts": "mini",
        "verdicts": [],
    }
    return [done | {"status": "done"}] * (n - 1) + [
        done | {"page": None, "headline": "not run", "status": "missing"}
    ]


def test_the_index_has_a_card_a_notebook():
    index = pages.index_html(cards(9), [("commit", "<abc>")], "mini")
    found = Checker(index)
    assert (
        index.count('<li class="card') == 9
        and found.links[1:] == ["#the-pages", "#this-run"] + ["04.html"] * 8
    )
    assert all(index.count(f'id="{slug}"') == 1 for slug in ("the-pages", "this-run"))
    assert "Do &lt;b&gt; win?" in index and "&lt;abc&gt;" in index and "small made-up world" in index
    assert "mean nothing" not in index
    assert "its numbers mean nothing" in pages.index_html(cards(1), [], "smoke")
    assert "published size" in pages.index_html(cards(1), [], "paper")


# --- in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browsers.browser(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@browsers.in_a_browser
@pytest.mark.parametrize("dark", [True, False])
def test_a_browser_shows_the_page_offline_in_both_settings(page, tab, tmp_path, dark):
    from PIL import Image

    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    file.write_text(page)
    tab.show(file, dark=dark)
    tab.picture(shot)
    assert tab.complaints() == []
    pixels = np.asarray(Image.open(shot).convert("L"), np.float32)
    background = np.median(pixels)
    assert background < 40 if dark else background > 240
    figure = pixels[:, pixels.shape[1] // 2]  # a column through text, figure and table
    assert np.abs(figure - background).max() > 100


@browsers.in_a_browser
def test_wide_tables_scroll_inside_themselves(page, tab, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page)
    tab.show(file, width=600)
    assert tab.run("document.documentElement.scrollWidth") <= 600
    assert tab.run("document.querySelector('.table').scrollWidth") > 600


@browsers.in_a_browser
def test_a_row_without_a_number_is_the_last_however_a_table_is_sorted(page, tab, tmp_path):
    effects = pd.DataFrame({"effect": ["−1.0", "–", "+3.0", "+2.5"]})
    file = tmp_path / "page.html"
    file.write_text(page.replace("</main>", tables.table_html(effects, "Effects") + "</main>"))
    tab.show(file)
    sort = """(() => { const table = [...document.querySelectorAll('.table table')].at(-1);
      [...table.tHead.rows[0].cells].find((cell) => cell.textContent === 'effect').firstElementChild.click();
      return [...table.tBodies[0].rows].map((row) => [...row.cells].at(-1).textContent.trim()); })()"""
    assert tab.run(sort) == ["−1.0", "+2.5", "+3.0", "–"]
    assert tab.run(sort) == ["+3.0", "+2.5", "−1.0", "–"]
    assert tab.run(sort) == ["−1.0", "–", "+3.0", "+2.5"]
    small = pd.DataFrame({"effect": ["1.0e-14", "0", "1.2e-06", "3.0", "1.1e-15"]})
    file.write_text(page.replace("</main>", tables.table_html(small, "Effects") + "</main>"))
    tab.show(file)
    assert tab.run(sort) == ["0", "1.1e-15", "1.0e-14", "1.2e-06", "3.0"]


@browsers.in_a_browser
def test_no_script_of_a_caption_runs_even_where_it_is_not_escaped(page, tab, tmp_path):
    """The page's policy is the second lock."""
    file = tmp_path / "page.html"
    bad = "<script>document.title = 'run'</script><img src='x' onerror='document.title = 1'></main>"
    file.write_text(page.replace("</main>", bad))
    tab.show(file)
    assert tab.run("document.title") == "Do proxies win & how?"
    assert "Content Security Policy" in " ".join(tab.complaints())
