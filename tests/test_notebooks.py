"""The nine notebooks: their form, a whole run at smoke, its pages' numbers, and nbval on what was executed.

The run is the real thing, ``clipvip reproduce`` on an empty cache in another process: shared_runs.py.
"""

from __future__ import annotations

import ast
import builtins
import collections
import json
import os
import re
import xml.etree.ElementTree as xml
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from fault_runs import running
from page_tables import require_same_numbers

from clipvip_lib.statistics.claims import CLAIMS, STATEMENTS
from clipvip_lib.study.experiments import NOTEBOOKS
from clipvip_lib.workshop.page_stage import PAGE_IMPORTS

FOLDER = Path(__file__).parents[1] / "notebooks"
IGNORED = "nbval-ignore-output"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=NOTEBOOKS)
def book(request):
    found = nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)
    found.name = request.param
    return found


def code_cells(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


# ------------------------------------------------------------------------------------------------- their form


def test_the_folder_holds_the_studys_notebooks_and_no_other():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


def test_stored_clean_with_a_plain_kernel_and_ids(book):
    nbformat.validate(nbformat.read(FOLDER / f"{book.name}.ipynb", as_version=nbformat.NO_CONVERT))
    for cell in code_cells(book):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert book.metadata.kernelspec.name == "python3"
    assert set(book.metadata) <= {"kernelspec", "language_info"}
    assert set(book.metadata.get("language_info", {})) <= {"name"}
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids)


def test_title_is_a_question_with_what_would_say_no(book):
    assert book.cells[0].source.splitlines()[0].endswith("?")
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert len([line for line in book.cells[0].source.splitlines() if line.strip()]) >= 4


def test_parameters_are_the_second_cell_and_plain(book):
    cell = book.cells[1]
    assert tags(cell) == ["parameters"]
    assert sum("parameters" in tags(other) for other in book.cells) == 1
    lines = [line for line in cell.source.splitlines() if line.strip()]
    assert lines[0] == 'profile = "mini"' and "seeds = [0]" in lines
    for line in lines:
        assert line.count("=") == 1, f"papermill does not see {line!r}"
        value = ast.literal_eval(line.partition("=")[2].strip())
        parts = value if isinstance(value, list) else [value]
        assert value == {} or all(isinstance(part, str | int | float | bool) for part in parts), line
    assert "at_hand = {}" in cell.source


class Branch(ast.NodeTransformer):
    """A program as it runs where all that ``study.has`` asks for is there, or where nothing is."""

    def __init__(self, there: bool):
        self.there = there

    @staticmethod
    def asks(test: ast.expr) -> bool:
        names = [ast.unparse(node.func) for node in ast.walk(test) if isinstance(node, ast.Call)]
        return "study.has" in names or ast.unparse(test) == "study.of_the_world"

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        return (node.body if self.there else node.orelse) if self.asks(node.test) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return (node.body if self.there else node.orelse) if self.asks(node.test) else node


def undefined(cells: list[str], there: bool) -> set[str]:
    """Names that a cell uses and no cell up to it defines."""
    defined, missing = set(dir(builtins)), set()
    for cell in cells:
        nodes = list(ast.walk(Branch(there).visit(ast.parse(cell))))
        for node in nodes:
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                defined.add(node.id)
            elif isinstance(node, ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.alias):
                defined.add((node.asname or node.name).partition(".")[0])
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        missing |= used - defined
    return missing


@pytest.mark.parametrize("there", [True, False], ids=["everything at hand", "nothing at hand"])
def test_every_name_is_defined_whatever_is_at_hand(book, there):
    """What no ``study.has`` guards must not rest on what one guards."""
    assert undefined([cell.source for cell in code_cells(book)], there) == set()


def test_a_name_that_rests_on_a_guarded_one_is_found():
    cells = ["x = 1\nif study.has('finetune/*'):\n    y = x\nelse:\n    z = x", "print(y, z)"]
    assert undefined(["study = 1", *cells], there=True) == {"z"}
    assert undefined(["study = 1", *cells], there=False) == {"y"}
    assert undefined(["study = 1", "y = w if study.of_the_world else None", "y"], there=False) == set()


def test_code_is_plain_and_short(book):
    for cell in code_cells(book):
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), f"{cell.id}: shell or magic"
        tree = ast.parse(cell.source)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)], cell.id
        assert "chdir" not in cell.source and "getcwd" not in cell.source
        assert len(cell.source.splitlines()) <= 60, f"{cell.id} is longer than a screen"


def test_begins_with_start_and_ends_with_record_and_footer(book):
    cells = code_cells(book)
    assert cells[-1].source.strip() == "study.footer()" and tags(cells[-1]) == [IGNORED]
    assert "study.record(" in cells[-2].source and IGNORED not in tags(cells[-2])
    assert sum("study.record(" in cell.source for cell in cells) == 1
    [first] = [cell for cell in cells if "notebook.start(" in cell.source]
    assert f'"{book.name}"' in first.source and tags(first) == [IGNORED]


# ------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def run(smoke):
    return smoke


def executed(run, name: str) -> nbformat.NotebookNode:
    [path] = (run.home / "stages" / "page").glob(f"{name}-*/executed.ipynb")
    return nbformat.read(path, as_version=4)


def results(run, name: str) -> dict:
    return json.loads((run.out / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_smoke_makes_all_pages(run):
    assert run.first.returncode == 0, run.first.stdout[-3000:] + run.first.stderr[-3000:]
    assert run.first.stdout.splitlines()[-1] == str(run.out / "index.html")
    pages = {path.stem for path in run.out.glob("*.html")}
    assert pages == {*NOTEBOOKS, "index"}
    assert (run.out / "index.html").read_text().count('class="card done"') == len(NOTEBOOKS)
    for name in NOTEBOOKS:  # a pattern that no stage fits would leave its part out
        assert "Left out: " not in (run.out / f"{name}.html").read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_a_second_run_finds_everything_and_nothing_ever_ran_twice(run):
    again = run.reproduce()
    assert again.returncode == 0
    [counted] = re.findall(r"^\[.*?(\d+) of (\d+) stages found done", again.stdout, re.MULTILINE)
    assert counted[0] == counted[1] and " started" not in again.stdout
    log = (run.home / "logs" / "reproduce.log").read_text()
    started = collections.Counter(re.findall(r"\] (\S+) started$", log, re.MULTILINE))
    assert len(started) == int(counted[1]) and set(started.values()) == {1}
    left = [path for path in run.home.rglob("*") if ".partial" in path.name]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_number_in_a_pages_tables_is_in_its_results(run, name):
    require_same_numbers((run.out / f"{name}.html").read_text(encoding="utf-8"), results(run, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_cells_say_in_words_is_on_the_page(run, name):
    """Sentences built from results are displayed, or last values of cells; the page must not lose them."""
    page = (run.out / f"{name}.html").read_text(encoding="utf-8")
    for cell in code_cells(executed(run, name)):
        for output in cell.outputs:
            said = output.get("data", {}).get("text/markdown")
            if said:
                missing = set(re.findall(r"\w+", said)) - set(re.findall(r"\w+", page))
                assert not missing, (said, missing)
    assert results(run, name)["headline"] in re.sub("&#x27;", "'", page).replace("&quot;", '"')


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_number_in_a_sentence_is_in_the_results(run, name):
    kept = "\n".join(results(run, name)["said"])
    for cell in code_cells(executed(run, name)):
        for output in cell.outputs:
            shown = output.get("text") or output.get("data", {}).get("text/markdown") or ""
            missing = set(re.findall(r"\d[\d.,]*", shown)) - set(re.findall(r"\d[\d.,]*", kept))
            assert not missing, (shown, missing)


@pytest.mark.slow
def test_no_run_holds_what_only_jupyterlab_shows(run):
    for name in NOTEBOOKS:
        stored = nbformat.writes(executed(run, name))
        assert "jupyter.widget" not in stored and "jp-RenderedHTML" not in stored, name


@pytest.mark.slow
def test_claims_are_the_same_on_every_page(run):
    verdicts = {row["id"]: row for row in results(run, "08_verdict")["numbers"]["claims"]}
    assert list(verdicts) == [statement.id for statement in STATEMENTS]
    # smoke judges nothing, but every statement has its evidence
    assert all(row["verdict"] == "not judged" and row["seeds"] == [0] for row in verdicts.values())
    for name in NOTEBOOKS[:-1]:
        kept = [value for value in results(run, name)["numbers"].values() if isinstance(value, list)]
        rows = [row for value in kept for row in value if isinstance(row, dict) and "verdict" in row]
        own = {statement.id for c in CLAIMS if c.notebook == name for statement in c.statements}
        assert {row["id"] for row in rows} == own
        assert all(row == verdicts[row["id"]] for row in rows), name


# ------------------------------------------------------------------------------------------------------ nbval


def compared(book) -> list:
    """The cells whose stored outputs nbval compares."""
    return [cell for cell in code_cells(book) if cell.outputs and IGNORED not in tags(cell)]


def falsify(book) -> str:
    """Change one digit of one number in a table; returns the id of the cell."""
    for cell in compared(book):
        for output in cell.outputs:
            table = output.get("data", {}).get("text/html", "")
            found = re.search(r'<td class="number">[^<]*?(\d)</td>', table)
            if found:
                digit = str((int(found[1]) + 1) % 10)
                output["data"]["text/html"] = table[: found.start(1)] + digit + table[found.end(1) :]
                return cell.id
    raise AssertionError("no number in any table that nbval compares")


@pytest.fixture(scope="module")
def nbval(run, tmp_path_factory):
    """nbval on the executed notebooks and on one with a changed number, two processes side by side."""
    folder = tmp_path_factory.mktemp("nbval")
    parts: list[list[str]] = [[], []]
    for i, name in enumerate([*NOTEBOOKS, "changed"]):
        book = executed(run, "07_cost" if name == "changed" else name)
        if name == "changed":
            falsify(book)
        path = folder / f"{name}.ipynb"
        nbformat.write(book, path)
        parts[i % 2].append(str(path))
    where = tmp_path_factory.mktemp("elsewhere")
    line = ["-q", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-c", os.devnull]
    line += ["--rootdir", folder]
    modules = [*PAGE_IMPORTS, "clipvip_lib.study.notebook", "clipvip_lib.study.figures", "pytest"]
    with running(where, modules, CLIPVIP_HOME=str(run.home)) as runs:
        started = [
            runs(*line, f"--junitxml={where / str(i)}.xml", *part, target="fault_runs:nbval")
            for i, part in enumerate(parts)
        ]
        said = "\n".join(each.end()[1] for each in started)
    outcomes = collections.defaultdict(collections.Counter)
    for i in range(len(parts)):
        for case in xml.parse(where / f"{i}.xml").iter("testcase"):
            bad = case.find("failure") is not None or case.find("error") is not None
            name = next(n for n in [*NOTEBOOKS, "changed"] if n in case.get("classname") + case.get("name"))
            outcomes[name]["failed" if bad else "passed"] += 1
    return SimpleNamespace(said=said, outcomes=outcomes)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nbval_finds_the_same_outputs_again(run, nbval, name):
    book = executed(run, name)
    assert len(compared(book)) >= 3, "nbval would compare next to nothing"
    assert sum(any("text/html" in o.get("data", {}) for o in c.outputs) for c in compared(book)) >= 2
    assert nbval.outcomes[name]["failed"] == 0, nbval.said[-4000:]
    assert nbval.outcomes[name]["passed"] == len(code_cells(book))


@pytest.mark.slow
@pytest.mark.thorough
def test_nbval_finds_one_changed_number(nbval):
    assert nbval.outcomes["changed"]["failed"] == 1, nbval.said[-4000:]
    assert nbval.outcomes["changed"]["passed"] > 3
