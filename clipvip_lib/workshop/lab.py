"""The notebooks in JupyterLab, without changing the checkout: ``make lab`` saves a notebook's cells, not its outputs.

Outputs differ from run to run, and they are kept where they belong: numbers in the cache, pages in reports/. Notebooks
that are not the study's are saved as they are.
"""

from __future__ import annotations

import re

#: What the study's notebooks say of themselves; JupyterLab would add the version of whoever saves.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT = {"tags"}  # of a cell's metadata: the others are how it was looked at
OURS = re.compile(r"(.*/)?\d\d_\w+\.ipynb")


def scrub(model: dict, path: str = "", **_: object) -> None:
    """Take outputs, counts and the editor's own metadata out of a notebook before it is saved (a ``pre_save_hook`` of
    Jupyter's contents manager, which changes ``model`` in place)."""
    if model.get("type") != "notebook" or not OURS.fullmatch(path):
        return
    notebook = model["content"]
    notebook["metadata"] = METADATA
    for cell in notebook["cells"]:
        cell["metadata"] = {name: value for name, value in cell["metadata"].items() if name in KEPT}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
