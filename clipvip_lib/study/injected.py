"""What papermill put into a notebook: parameters that it declares, of the kind that it declares.

papermill writes ``-p NAME VALUE`` into a cell of its own behind the one tagged ``parameters``. A name that this one
does not assign would be a variable that nothing reads, and the notebook would run to its end with the default.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence

from clipvip_lib.errors import ClipVipError, unknown

INJECTED = "# Parameters\n"  # how papermill begins its cell


def executed_cells() -> list[str]:
    """The sources of the cells that this process's kernel has executed; none outside a kernel."""
    if "IPython" not in sys.modules or (shell := sys.modules["IPython"].get_ipython()) is None:
        return []
    return [cell for cell in shell.user_ns.get("In", []) if isinstance(cell, str) and cell.strip()]


def check_injected(cells: Sequence[str]) -> None:
    """Compare papermill's cell, if there is one, with the cell before it.

    Raises ClipVipError for a parameter that is not declared there, one of another kind than its default, and a whole
    number below 1 where the default is above 0.
    """
    place = max((i for i, cell in enumerate(cells) if cell.startswith(INJECTED)), default=None)
    if place is None:
        return
    declared = _assigned(cells[place - 1]) if place else {}
    for name, value in _assigned(cells[place]).items():
        if name not in declared:
            raise unknown("notebook parameter", name, declared)
        default, given = (_value(node) for node in (declared[name], value))
        kinds = (int, float) if type(default) is float else (type(default),)
        if type(given) not in kinds:
            raise ClipVipError(
                f"the notebook parameter {name} expected {_kind(default)} such as {default!r}, got {given!r:.80}; "
                "correct it"
            )
        if type(default) is int and default > 0 and given < 1:
            raise ClipVipError(f"the notebook parameter {name} expected 1 or more, got {given}; correct it")


def _assigned(cell: str) -> dict[str, ast.expr]:
    found = {}
    for node in ast.parse(cell).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    return found


def _value(node: ast.expr) -> object:
    """A literal's value; of anything else (papermill writes ``float('nan')``) its source, as an odd kind."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.Constant(ast.unparse(node))


def _kind(value: object) -> str:
    kinds = {str: "a text", int: "a whole number", float: "a number", bool: "True or False", list: "a list"}
    return kinds.get(type(value), "an object")
