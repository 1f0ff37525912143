"""From an executed notebook to one HTML file, and the index of all pages.

nbconvert does the work with this project's template (``templates/``). Its own template links scripts from a CDN, drops
alt text and fixes light or dark at export. The navigation and the outline are written when a page is published: they
only link to what exists, and a new page never makes an old one run again.

A page holds one script, its own (``templates/page.js``), and a policy that names it by its hash: a browser runs no
other, whatever a caption says, and fetches nothing. Without the script, all that a page says is still there.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clipvip_lib.errors import ClipVipError
from clipvip_lib.say import with_minus

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).parent / "templates"
NAVIGATION = re.compile(r"<!--pages-->.*?<!--/pages-->", re.DOTALL)
OUTLINE = re.compile(r"<!--outline-->.*?<!--/outline-->", re.DOTALL)
HEADING = re.compile(r"<h([23])(?: id=\"([^\"]*)\")?>(.*?)</h\1>", re.DOTALL)
REFERENCE = re.compile(r"<!--reference-->.*?<!--/reference-->", re.DOTALL)


def page_html(notebook: NotebookNode, name: str) -> str:
    """The executed notebook as one HTML file with nothing to fetch."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        extra_template_basedirs=[str(TEMPLATES)],
        template_name="page",
        filters={
            "said2html": said2html,
            "page_base64": lambda text: base64.b64encode(text.encode()).decode(),
        },
        exclude_anchor_links=True,
    )
    resources = {"page_title": question(notebook), "page_name": name, "page_style": style()}
    resources |= {"page_script": script(), "page_policy": policy()}
    return exporter.from_notebook_node(notebook, resources)[0]


def said2html(text: str) -> str:
    """Markdown that a cell put out, as HTML. It may hold texts from data: their tags are shown and never obeyed, their
    links run nothing, and their pictures are not fetched."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Said(IPythonRenderer):
        def image(self, text: str, url: str, title: str | None = None) -> str:
            return html.escape(f"![{text}]({url})")

    renderer = Said(escape=True, allow_harmful_protocols=False, exclude_anchor_links=True)
    words = "`".join(part if i % 2 else with_minus(part) for i, part in enumerate(text.split("`")))
    return MarkdownWithMath(renderer=renderer).render(words)


def question(notebook: NotebookNode | dict) -> str:
    """The notebook's title: its first heading. Raises ClipVipError if it has none."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            for line in text.splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    raise ClipVipError("a notebook has no title: expected a first heading, '# Question?'; add one")


@functools.cache
def style() -> str:
    """The pages' CSS, with colours of code for light and dark."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="xcode")
    dark = HtmlFormatter(style="github-dark")
    return "\n".join(
        [
            (TEMPLATES / "style.css").read_text(encoding="utf-8"),
            _tokens(light.get_style_defs(".highlight")),
            "@media (prefers-color-scheme:dark){" + _tokens(dark.get_style_defs(".highlight")) + "}",
        ]
    )


@functools.cache
def script() -> str:
    """The pages' JavaScript: what can be touched, and videos that play while they are seen."""
    return (TEMPLATES / "page.js").read_text(encoding="utf-8")


@functools.cache
def policy() -> str:
    """What a browser may do with a page: run this one script, show what is inside, and fetch nothing."""
    known = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{known}'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _tokens(css: str) -> str:
    """Only the colours of tokens; background and line numbers come from the page's own style."""
    lines = [re.sub(r"/\*.*?\*/", "", line).strip() for line in css.splitlines()]
    return "".join(line for line in lines if re.match(r"\.highlight \.\w+ ", line))


def label(name: str) -> str:
    """A notebook's name for people: ``04 video proxy`` for ``04_video_proxy``."""
    return name.replace("_", " ")


def with_navigation(page: str, names: Iterable[str], available: Iterable[str], current: str) -> str:
    """The page with links to the pages that exist; the others are named without a link."""
    available = set(available)
    items = ['<li><a href="index.html">Index</a></li>']
    for name in names:
        text = html.escape(label(name))
        if name == current:
            items.append(f'<li><span aria-current="page">{text}</span></li>')
        elif name in available:
            items.append(f'<li><a href="{name}.html">{text}</a></li>')
        else:
            items.append(f"<li><span>{text}</span></li>")
    navigation = f'<nav class="pages" aria-label="Pages"><ol>{"".join(items)}</ol></nav>'
    return NAVIGATION.sub(lambda _: f"<!--pages-->{navigation}<!--/pages-->", page, count=1)


def with_outline(page: str, levels: str = "23") -> str:
    """The page with links to its sections of these levels, each of which gets an id from its heading."""
    start, found, used = page.index("<main"), [], set()

    def named(match: re.Match) -> str:
        level, known, inner = match.groups()
        text = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        slug = base = known or re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        while slug in used:
            slug = f"{base}-{len(used)}"
        used.add(slug)
        found.append((level, slug, text))
        return f'<h{level} id="{slug}">{inner}</h{level}>'

    page = page[:start] + HEADING.sub(named, page[start:])
    items = "".join(
        f'<li class="level{level}"><a href="#{slug}">{html.escape(text)}</a></li>'
        for level, slug, text in found
        if level in levels
    )
    outline = (
        f'<nav class="outline" aria-label="Sections of this page"><details open><summary>On this page</summary>'
        f"<ol>{items}</ol></details></nav>"
    )
    return OUTLINE.sub(lambda _: f"<!--outline-->{outline if items else ''}<!--/outline-->", page, count=1)


def with_reference(page: str, section: str) -> str:
    """The page with a section on the reference run after its title; "" for no section."""
    return REFERENCE.sub(lambda _: f"<!--reference-->{section}<!--/reference-->", page, count=1)


def index_html(cards: list[dict], facts: list[tuple[str, str]], profile: str, answer: str = "") -> str:
    """The index: the answer as HTML, one card per notebook (number, question, headline, facts, page, status), and the
    run's facts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"style": _safe(style()), "script": _safe(script()), "policy": _safe(policy())}
    index = environment.get_template("index.html.j2").render(
        cards=cards, facts=facts, profile=profile, answer=_safe(answer)
    )
    return with_outline(index, levels="2")


def _safe(text: str):
    from markupsafe import Markup

    return Markup(text)


def notebook_question(path: Path) -> str:
    """The title of a notebook file. Raises ClipVipError if the file is not a notebook."""
    try:
        return question(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ClipVipError(
            f"{path} is not a notebook ({error}): expected Jupyter's JSON; restore it"
        ) from error
