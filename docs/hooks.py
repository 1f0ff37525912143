"""What the site (mkdocs.yml) needs beyond mkdocs: files from outside docs/, and links that hold there too.

README.md is the start page and CONTRIBUTING.md a page, without second copies. A link to a file of the checkout becomes
one to where the site has it: a module to its reference, a notebook to its page of the reference run.
"""

from __future__ import annotations

import os
import posixpath
import re
import textwrap
from pathlib import Path

from griffe import Extension
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "reports/README.md": "reports/README.md",
}
BROUGHT = ("reports/reference/*.html", "reports/reference/*.svg", "reports/reference/registration.json")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
#: A file of the package in backticks, with the names after it that stand in the same sentence or cell.
NAMED = re.compile(r"(?<![\[`])`([\w/]+\.py)`(?!\])((?:[,:]? `[A-Za-z_]\w*`)*)")


def modules() -> dict[str, str]:
    """The file of each module of the reference, and the page that has it: {"losses.py": "api/losses.md"}."""
    found = {}
    for page in (CHECKOUT / "docs/api").glob("*.md"):
        for name in re.findall(r"^::: clipvip_lib\.(\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            found[name.replace(".", "/") + ".py"] = f"api/{page.name}"
    return found


def on_files(files, config):
    brought = PAGES | {str(p.relative_to(CHECKOUT)): None for each in BROUGHT for p in CHECKOUT.glob(each)}
    for path, place in brought.items():
        files.append(File.generated(config, place or path, abs_src_path=str(CHECKOUT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = {place: path for path, place in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        place = placed(target)
        if place is None or files.get_file_from_path(place.partition("#")[0]) is None:
            raise PluginError(f"{here} links {found[1]}, which the site does not have: see docs/hooks.py")
        return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    parts = FENCE.split(markdown)  # code stays as it is
    return "".join(
        part if i % 2 else NAMED.sub(referred, LINK.sub(link, part)) for i, part in enumerate(parts)
    )


def placed(target: str) -> str | None:
    """Where the site has a file of the checkout."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target.startswith("notebooks/"):
        return f"reports/reference/{Path(target).stem}.html"
    module = target.removeprefix("clipvip_lib/")
    if module in (known := modules()):
        return f"{known[module]}#clipvip_lib.{module.removesuffix('.py').replace('/', '.')}"
    return target if (CHECKOUT / target).is_file() else None


def referred(found: re.Match) -> str:
    """A module and names of it as links into the reference, as far as it has them."""
    file, names = found[1], found[2]
    if file not in modules():
        return found[0]
    module = "clipvip_lib." + file.removesuffix(".py").replace(os.sep, ".")
    said = f'<autoref identifier="{module}" optional><code>{file}</code></autoref>'
    return said + re.sub(
        r"`(\w+)`", rf'<autoref identifier="{module}.\1" optional><code>\1</code></autoref>', names
    )


class Pictures(Extension):
    """Indented blocks of docstrings as code: Markdown would take one below a list for a part of the list."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"(?<=\n\n)((?: {4}.*(?:\n|$)|\n(?= {4}))+)",
                lambda found: f"```text\n{textwrap.dedent(found[1]).rstrip()}\n```\n\n",
                obj.docstring.value,
            )
