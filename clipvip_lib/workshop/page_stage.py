"""A page is a stage like any other: a notebook, its parameters and the stages it reads lead to one HTML file.

The notebook's text and the source of the whole package are part of the stage's configuration. A page takes only
seconds, so it is made again after any change. A notebook edited during a run cannot be mistaken for the one that ran.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import clipvip_lib
from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, lack_of_memory
from clipvip_lib.workshop.provenance import provenance, versions
from clipvip_lib.workshop.stages import Stage, library_versions, version

if TYPE_CHECKING:
    from nbformat import NotebookNode

RESULTS_MIME = "application/vnd.clipvip.results+json"  # of the output in which a notebook keeps its results
CELL_TIMEOUT_SECONDS = 6 * 3600  # a cell may wait for training when its notebook is run alone
KERNEL_START_SECONDS = 180
PAGE_COST_SECONDS = 8.0
# What renders pages and what kernels start with, in addition to the notebooks' own imports.
PAGE_IMPORTS = (
    "papermill",
    "nbconvert",
    "ipykernel.kernelapp",
    "scipy.stats",
    "clipvip_lib.workshop.kernel",
    "clipvip_lib.workshop.pages",
)


def page_stage(
    name: str,
    source: str,
    parameters: dict,
    profile: object,
    inputs: Sequence[Stage],
    beside: Sequence[Path] = (),
) -> Stage:
    """The stage that makes a notebook's page. source: the notebook's text; beside: files that it reads besides its
    stages, if they are there."""
    return Stage(
        name=f"page/{name}",
        function="clipvip_lib.workshop.page_stage:render",
        config={
            "notebook": name,
            "parameters": parameters,
            "profile": repr(profile),
            "precision": getattr(profile, "precision", ""),
            "package": package_digest(),
            "libraries": versions() | library_versions(),
            "source": bare(source),
            "beside": [files.digest(path.parent, [path]) for path in beside if path.is_file()],
        },
        inputs={stage.name: stage for stage in inputs},
        imports=(*PAGE_IMPORTS, *sorted(notebook_imports(source))),
        cost=PAGE_COST_SECONDS,
    )


def bare(source: str) -> str:
    """The notebook's text without the parts that do not affect its page: outputs, cell ids, an editor's metadata."""
    cells = []
    for i, cell in enumerate(json.loads(source)["cells"]):
        tags = cell.get("metadata", {}).get("tags", [])
        kept = {"cell_type": cell["cell_type"], "id": f"cell-{i}", "metadata": {"tags": tags} if tags else {}}
        kept["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    book = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, ensure_ascii=False)


@functools.cache
def package_digest() -> str:
    """Hash of all source and data files of this package."""
    folder = Path(clipvip_lib.__file__).parent
    found = [
        file for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".j2", ".css", ".js", ".json")
    ]
    return files.digest(folder, found)


def notebook_imports(source: str) -> set[str]:
    """The modules that a notebook's code imports."""
    found: set[str] = set()
    for cell in json.loads(source)["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.suppress(SyntaxError):  # the run will report it, with the cell
                found |= imported_modules(ast.parse("".join(cell["source"])))
    return found


def imported_modules(tree: ast.AST) -> set[str]:
    """The modules that a syntax tree imports, also inside functions. ``from clipvip_lib import losses`` counts as
    ``clipvip_lib.losses``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if _is_ours(name) else node.module for name in inside.values()}
    return found


def _is_ours(module: str) -> bool:
    path = files.CHECKOUT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@version(1, "first")
def render(config: dict, inputs: dict[str, Path], folder: Path, progress) -> dict:
    """Stage function: run the notebook, keep its results, write page.html, results.json, executed.ipynb.

    If the notebook fails, ``<home>/failed/`` keeps it as far as it got.
    Raises ClipVipError naming the cell and its error, and for a notebook that records no results.
    """
    from clipvip_lib.workshop.pages import page_html

    name = config["notebook"]
    executed = _execute(name, config["source"], config["parameters"], folder, progress)
    results = recorded_results(executed, name)
    results["said"] = said(executed)
    results["run"] = provenance(
        config["parameters"]["profile"], config["parameters"]["seeds"], config["precision"]
    )
    files.write_json(folder / "results.json", results)
    files.write_bytes(folder / "page.html", page_html(executed, name).encode())
    failed_copy(name).unlink(missing_ok=True)
    return {"headline": results["headline"], "profile": results["profile"], "seeds": results["seeds"]}


def failed_copy(name: str) -> Path:
    """Where the executed copy of a notebook that failed is kept."""
    return files.home() / "failed" / f"{name}.ipynb"


def _execute(name: str, source: str, parameters: dict, folder: Path, progress) -> NotebookNode:
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    from clipvip_lib.workshop.kernel import use_copies

    use_copies()
    given, partial = folder / "notebook.ipynb", folder / "executed.partial.ipynb"
    files.write_bytes(given, source.encode())
    where = files.make_folder(folder / "cwd")  # a notebook must not depend on it; its files there are kept
    try:
        papermill.execute_notebook(
            given,
            partial,
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
            cwd=where,
            start_timeout=KERNEL_START_SECONDS,
            execution_timeout=CELL_TIMEOUT_SECONDS,
        )
    except (papermill.PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        kept = ""
        if partial.is_file():
            files.write_bytes(failed_copy(name), partial.read_bytes())
            kept = f"; the notebook as far as it got is {failed_copy(name)}"
        raise ClipVipError(_why(error) + kept) from error
    partial.replace(folder / "executed.ipynb")
    progress(1, 1, "executed")
    return nbformat.read(folder / "executed.ipynb", as_version=4)


def _why(error: Exception) -> str:
    if type(error).__name__ == "PapermillExecutionError":
        words = " ".join(str(error.evalue).split())
        what = words if error.ename == "ClipVipError" else f"{error.ename}: {words[:300]}"
        if lack_of_memory(error.ename, words):
            what = "it ran out of memory; use fewer --workers"
        return f"cell {error.exec_count} of the notebook: {what}"
    if type(error).__name__ == "DeadKernelError":
        return "the notebook's kernel died, most often for lack of memory; use fewer --workers"
    return f"a cell of the notebook ran longer than {CELL_TIMEOUT_SECONDS} s"


def said(notebook: NotebookNode) -> list[str]:
    """What cells say in words, line by line: sentences built from results, and printed text.

    Tables and figures are in the results already. With these lines, every number that a page shows is in them.
    """
    lines: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.output_type == "stream":
                lines += output.text.splitlines()
            elif "text/html" not in data:
                lines += data.get("text/markdown", data.get("text/plain", "")).splitlines()
    return [line.strip() for line in lines if line.strip()]


def recorded_results(notebook: NotebookNode, name: str) -> dict:
    """What ``study.record`` stored. Raises ClipVipError if it was not called exactly once."""
    found = [
        output["data"][RESULTS_MIME]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if RESULTS_MIME in output.get("data", {})
    ]
    if len(found) != 1:
        raise ClipVipError(
            f"{name} recorded results {len(found)} times: expected study.record(...) once, "
            "in its last cell; correct it"
        )
    return dict(found[0])
