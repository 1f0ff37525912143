"""Words that a page explains: each is a link to its line in the page's glossary, and pointing at it shows that line.

The first use in every section is marked, in running text and captions, not in code, headings or tables. Without a
script the link leads to the glossary at the page's end.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

GLOSSARY = re.compile(r"<!--glossary-->.*?<!--/glossary-->", re.DOTALL)
_TAG = re.compile(r"(<[^>]*>)")
_TEXTS = {"p", "li", "figcaption"}
_NOT_IN = {
    "a",
    "button",
    "code",
    "pre",
    "script",
    "style",
    "svg",
    "summary",
    "table",
    "dl",
    "nav",
    "h1",
    "h2",
    "h3",
}
_TITLE = re.compile(r'<p class="(?:finding|asked|recorded)">')  # as good as headings
_VOID = {"br", "hr", "img", "input", "meta", "source", "wbr"}


def marked(page: str, words: Mapping[str, str]) -> str:
    """HTML in which the first use of each word in every section is a link to its meaning.

    words: {word: its meaning}; a word of letters is found in its plural, too. The page's tags must nest.
    """
    forms = "|".join(
        re.escape(html.escape(word, quote=False)) for word in sorted(words, key=len, reverse=True)
    )
    # of a hyphen or a comma a word is a part (V-S, proxy-4), unless the comma ends a clause
    use = re.compile(rf"(?<![\w\-+@])({forms})(s?)(?![\w\-@]|,\w)")
    open_tags: list[str] = []
    used: set[str] = set()

    def link(found: re.Match) -> str:
        word = html.unescape(found[1])
        if word in used or (found[2] and not word.isalpha()):
            return found[0]
        used.add(word)
        return f'<a class="term" href="#{anchor(word)}">{found[0]}</a>'

    parts = _TAG.split(page)
    for i, part in enumerate(parts):
        if i % 2:
            name = re.match(r"</?\s*([a-zA-Z0-9]+)", part)
            if not name or name[1] in _VOID or part.endswith("/>"):
                continue
            if part.startswith("</"):
                open_tags.pop()
            else:
                open_tags.append("h3" if _TITLE.match(part) else name[1])
                if name[1] in ("section", "main"):
                    used = set()
        elif _TEXTS.intersection(open_tags) and not _NOT_IN.intersection(open_tags):
            parts[i] = use.sub(link, part)
    return "".join(parts)


def anchor(word: str) -> str:
    """The id of a word in the glossary; signs are told apart by their numbers."""
    return "word-" + "".join(sign.lower() if sign.isalnum() else f"-{ord(sign):x}-" for sign in word)


def with_glossary(page: str, words: Mapping[str, str]) -> str:
    """The page with its words marked, and the meanings of those that it uses at its end."""
    page = marked(page, words)
    found = [word for word in sorted(words, key=str.lower) if f'href="#{anchor(word)}"' in page]
    items = "".join(
        f'<dt id="{anchor(word)}">{html.escape(word)}</dt><dd>{html.escape(words[word])}</dd>'
        for word in found
    )
    section = (
        f'<section class="glossary"><h2 id="words">Words</h2><dl>{items}</dl></section>' if found else ""
    )
    return GLOSSARY.sub(lambda _: f"<!--glossary-->{section}<!--/glossary-->", page, count=1)
