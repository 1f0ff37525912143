"""The notebooks in JupyterLab: how they look, whether widgets can answer, and a checkout that stays as it is.

``make lab`` saves a notebook's cells, not its outputs. Outputs differ from run to run, and they are kept where they
belong: numbers in the cache, pages in reports/. A notebook that lies there with outputs, that is new, or that has not
a name like the study's, such as a duplicate, is one's own: it is saved as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from clipvip_lib.files import read_json
from clipvip_lib.workshop.pages import TEMPLATES

#: What the study's notebooks say of themselves; JupyterLab would add the version of whoever saves.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SHOWN = ".jp-RenderedHTML.jp-RenderedHTMLCommon"  # what JupyterLab calls the HTML that a cell shows
# None of its stripes, and room for the frame of a first video.
OTHERWISE = "tbody tr:nth-child(n){background:none}.row{padding:0 4px}"
NAME = re.compile(r"\d\d_[a-z_]+\.ipynb")
KEPT = {"tags"}  # of a cell's metadata: the others are how it was looked at


def live() -> bool:
    """Whether the cell that runs was sent by a front end that shows widgets, such as JupyterLab.

    It names the cell in its request; papermill, nbclient and nbval do not. So pages and stored outputs hold no widget,
    wherever a run was started.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and "cellId" in kernel.get_parent("shell").get("metadata", {})


def style() -> str:
    """The pages' style for what cells show in JupyterLab, light or dark as its theme is."""
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    colours = re.findall(r":root{(.*?)}", css)
    light, dark = (
        f"{found};color-scheme:{name};--paper:var(--jp-layout-color0);"
        for found, name in zip(colours, ("light", "dark"), strict=True)
    )
    return f"<style>{SHOWN}{{{light}[data-jp-theme-light=false] &{{{dark}}}{css}{OTHERWISE}}}</style>"


def scrub(model: dict, path: str, contents_manager: object, **_: object) -> None:
    """Take outputs, counts and the editor's own metadata out of a notebook before it is saved (a ``pre_save_hook`` of
    Jupyter's contents manager, which changes ``model`` in place)."""
    stored = Path(contents_manager.root_dir, path)
    ours = model.get("type") == "notebook" and NAME.fullmatch(stored.name) and stored.is_file()
    if not ours or not _is_bare(read_json(stored)):
        return
    notebook = model["content"]
    notebook["metadata"] = METADATA
    for cell in notebook["cells"]:
        cell["metadata"] = {name: value for name, value in cell["metadata"].items() if name in KEPT}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def _is_bare(notebook: dict) -> bool:
    """Whether a notebook was stored by this hook, or as the study's are: without outputs, with just this metadata."""
    return notebook.get("metadata") == METADATA and not any(cell.get("outputs") for cell in notebook["cells"])
