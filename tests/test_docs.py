"""What the documentation names exists."""

import ast
import re

import pytest

from clipvip_lib.files import CHECKOUT

TABLE = (CHECKOUT / "docs/paper_to_code.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[3:5] for line in TABLE.splitlines() if line.startswith("|")][2:]


def names_of(path) -> set[str]:
    """What a module defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("cells", ROWS, ids=[row[0].strip()[:40] for row in ROWS])
def test_the_paper_is_where_the_table_says(cells):
    for cell, folder in zip(cells, ("clipvip_lib", "tests"), strict=True):
        file = None
        for word in re.findall(r"`([^`]+)`", cell):
            if word.endswith(".py"):
                file = CHECKOUT / folder / word
                assert file.is_file(), word
            else:
                assert file is not None and word in names_of(file), f"{word} in {file}"
        assert file is not None
    for number in re.findall(r"notebook (\d\d)", cells[0]):
        assert [*(CHECKOUT / "notebooks").glob(f"{number}_*.ipynb")]


@pytest.mark.parametrize(
    "path", [*sorted(CHECKOUT.glob("docs/*.md")), CHECKOUT / "README.md"], ids=lambda p: p.name
)
def test_links_between_documents_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), f"{path.name}: {link}"
