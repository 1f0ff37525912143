"""docs/faults.md, from the marks of the tests: ``python tests/faults.py`` writes it, test_faults.py holds it.

``@pytest.mark.fault("what happens", sees=.., keeps=..)`` and ``@pytest.mark.bad_input("what comes", says=..)`` stand on
the test that shows it. What stands between backticks is quoted: the test's own strings must hold these words.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "faults.md"
FIELDS = {"fault": ("sees", "keeps"), "bad_input": ("says",)}

INTRODUCTION = """\
# Faults and bad inputs

Each row is a test (`make test ALL=1` runs all). `make faults` writes this page from their marks, so edit the marks, not
this page. `Words like these` are quoted from what the test expects, with the names and numbers of its own case.
"Simulated" means that the test makes a call fail with the system's error. Ctrl-C is the signal, or the exception that
Python makes of it. Where the test does not look at what survives, the row says so.
"""
NOT_SHOWN = (
    "**A power cut.** Tests empty the files that one may leave, and `test_stages.py` holds the order of syncs and "
    "renames. None stops the machine, or drops what the disk has not written.",
    "**A clock that is changed.** Tests date files into the future, which is what a clock that was set back leaves. "
    "None changes the system's time.",
    "**The kernel's out-of-memory killer.** Memory is exhausted by a limit on a process, which gets an error; where "
    "the system itself runs out of it, it sends SIGKILL, as other tests do.",
    "**A rank whose machine or network is lost.** All ranks of the tests are on one machine.",
    "**A GPU that fails or runs out of memory.** No test provokes it.",
)


@dataclass(frozen=True)
class Row:
    """A mark. ``told``: its further fields; ``strings``: those of the test, without the backslashes of patterns."""

    kind: str
    what: str
    told: dict[str, str]
    file: str
    test: str
    cases: int
    strings: str

    @property
    def missing(self) -> list[str]:
        """Quoted words that the test does not hold."""
        quoted = [words for text in self.told.values() for words in re.findall("`(.+?)`", text)]
        return [words for words in quoted if words not in self.strings]


class Module:
    """A file of tests, read and never imported."""

    def __init__(self, path: Path):
        self.path, self.tree = path, ast.parse(path.read_text(encoding="utf-8"))

    def value(self, name: str) -> tuple[Module, ast.expr] | None:
        """What a name of the module is set to, here or in the helper module that it is imported from."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return self, node.value
            elif isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                helper = self.path.parent / f"{node.module}.py"
                return Module(helper).value(name) if helper.is_file() else None
        return None

    def length(self, node: ast.expr) -> int:
        """Of a list, tuple or dict that stands in the source. Raises ValueError for others."""
        match node:
            case ast.List() | ast.Tuple():
                return sum(
                    self.length(each.value) if isinstance(each, ast.Starred) else 1 for each in node.elts
                )
            case ast.Dict():
                pairs = zip(node.keys, node.values, strict=True)
                return sum(1 if key else self.length(value) for key, value in pairs)
            case ast.Call(func=ast.Name(id="sorted"), args=[inner]):
                return self.length(inner)
            case ast.Name() if found := self.value(node.id):
                module, value = found
                return module.length(value)
        raise ValueError(f"{self.path.name}: cannot count {ast.unparse(node)}; state cases= in the mark")

    def strings(self, test: ast.FunctionDef) -> str:
        """All strings of a test and of the module's values that it names; the marks' own ones are left out."""
        decorators = [each for each in test.decorator_list if mark_of(each) not in FIELDS]
        nodes = [inner for part in [*decorators, *test.body] for inner in ast.walk(part)]
        for name in {node.id for node in nodes if isinstance(node, ast.Name)}:
            if found := self.value(name):
                nodes += ast.walk(found[1])
        found = [
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        return "\n".join(found).replace("\\", "")

    def rows(self) -> Iterator[Row]:
        for test in self.tree.body:
            if not isinstance(test, ast.FunctionDef):
                continue
            for mark in filter(lambda each: mark_of(each) in FIELDS, test.decorator_list):
                kind = mark_of(mark)
                told = {each.arg: ast.literal_eval(each.value) for each in mark.keywords}
                cases = told.pop("cases", 0) or prod(
                    self.length(each.args[1])
                    for each in test.decorator_list
                    if mark_of(each) == "parametrize"
                )
                if tuple(told) != FIELDS[kind] or len(mark.args) != 1:
                    raise ValueError(
                        f"{self.path.name}, {test.name}: {kind} expected one text and {FIELDS[kind]}"
                    )
                what = ast.literal_eval(mark.args[0])
                yield Row(kind, what, told, self.path.name, test.name, cases, self.strings(test))


def mark_of(node: ast.expr) -> str:
    """The name of a mark of pytest with arguments, or an empty text."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr=name)):
            return name
    return ""


def read(folder: Path = TESTS) -> list[Row]:
    """Every mark, sorted by what it says."""
    rows = [row for path in sorted(folder.glob("test_*.py")) for row in Module(path).rows()]
    return sorted(rows, key=lambda row: (row.what.lower(), row.file, row.test))


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def point(text: str) -> str:
    """Of a list in Markdown."""
    return textwrap.fill(text, 118, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def page(rows: list[Row]) -> str:
    """The page in Markdown."""

    def shown_by(row: Row) -> str:
        return f"{row.file}::{row.test.removeprefix('test_')}" + f", {row.cases} cases" * (row.cases > 1)

    faults, inputs = ([row for row in rows if row.kind == kind] for kind in FIELDS)
    parts = [INTRODUCTION]
    for title, heads, some in (
        ("Faults", ("fault", "what the user sees", "what survives", "test"), faults),
        ("Bad inputs", ("input", "what is said", "test"), inputs),
    ):
        cases = sum({(row.file, row.test): row.cases for row in some}.values())
        parts.append(f"## {title}\n\n{len(some)} rows, shown by {cases} cases of tests.\n")
        parts.append(table(heads, [(row.what, *row.told.values(), shown_by(row)) for row in some]))
    parts.append("## Not shown by a test\n\n" + "\n".join(map(point, NOT_SHOWN)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(read()), encoding="utf-8")
