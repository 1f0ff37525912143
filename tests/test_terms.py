"""Words that pages explain: found where they are used, left alone where they are not text, explained at the end."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvip_lib.study.words import MEANINGS
from clipvip_lib.workshop import terms

WORDS = {"arm": "one of the models", "V-S": "video & subtitle", "V-S,C + F-C": "the loss"}


def links(page: str) -> list[str]:
    return re.findall(r'<a class="term" href="#[^"]*">(.*?)</a>', terms.marked(page, WORDS))


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("<p>Two arms, one arm</p>", ["arms"]),
        ("<section><p>arm</p></section><section><p>arm</p></section>", ["arm", "arm"]),
        ("<p>V-S,C + F-C and V-S.</p>", ["V-S,C + F-C", "V-S"]),
        ("<p>V-S, then V-S2, harm, proxy-arm, V-S,X</p>", ["V-S"]),
        ("<li>an <b>arm</b></li><figcaption>V-S</figcaption>", ["arm", "V-S"]),
        ("<h2>arm</h2><p><code>arm</code><a href='x'>arm</a></p><table><td>arm</td></table>", []),
        ('<p class="recorded">arm</p><p class="finding">arm</p><p><img alt="arm"></p><p>arm</p>', ["arm"]),
        ("arm outside of any text", []),
    ],
)
def test_the_first_use_in_a_section_is_marked_and_only_in_text(page, found):
    assert links(page) == found


def test_the_glossary_has_the_words_of_the_page_and_no_other():
    page = terms.with_glossary("<main><p>V-S</p><!--glossary--><!--/glossary--></main>", WORDS)
    assert "video &amp; subtitle" in page and "one of the models" not in page
    assert f'<dt id="{terms.anchor("V-S")}">V-S</dt>' in page
    assert "<dt" not in terms.with_glossary("<main><p>x</p><!--glossary--><!--/glossary--></main>", WORDS)


def test_every_word_has_an_id_of_its_own():
    ids = [terms.anchor(word) for word in MEANINGS]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]+", found) for found in ids)


@given(st.lists(st.sampled_from(["arm", "V-S", "x", "<p>", "</p>", "<b>", "</b>", " "]), max_size=20))
def test_nothing_but_links_is_added(parts):
    page, opened = "", []
    for part in parts:  # tags that nest
        if part.startswith("</"):
            if opened and opened[-1] == part[2:-1]:
                page += f"</{opened.pop()}>"
        else:
            opened += [part[1:-1]] if part.startswith("<") else []
            page += part
    page += "".join(f"</{tag}>" for tag in reversed(opened))
    assert re.sub(r'<a class="term" href="[^"]*">(.*?)</a>', r"\1", terms.marked(page, WORDS)) == page
