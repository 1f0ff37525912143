"""The version of the code behind a stage, from syntax trees alone.

What is special: the closure of the modules that a stage imports inside clipvip_lib is hashed without
docstrings and comments (better words never cost a training run), and nothing is imported to compute it.
The attic itself is left out: how a page looks does not change what a model learns.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.errors import ClipVipError

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "av",
    "decord",
)
PACKAGE = "clipvip_lib"
ATTIC = "clipvip_lib.study"


@functools.cache
def _library_versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a result can depend on, read without importing them."""
    return dict(_library_versions())


@functools.cache
def code_version(function: str, code: tuple[str, ...] = ()) -> str:
    """Hash (16 hex digits) of the function's source, what it names, and the closure of ``code``.

    Raises ClipVipError for a module or a function that does not exist.
    """
    module, _, name = function.partition(":")
    own, imported = _function_source(module, name)
    return _hash([own, *_sources({*code, *imported})])


def modules_version(modules: Iterable[str]) -> str:
    """Hash (16 hex digits) of the modules and all they import inside clipvip_lib.

    Raises ClipVipError for a module that does not exist.
    """
    return _hash(_sources(modules))


def _sources(modules: Iterable[str]) -> list[str]:
    return [f"# {each}\n{_module(each).text}" for each in sorted(module_closure(modules))]


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def module_closure(modules: Iterable[str]) -> set[str]:
    """The modules with all they import, directly or not, inside clipvip_lib; the attic is left out."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name == ATTIC or name.startswith(ATTIC + "."):
            continue
        found.add(name)
        waiting.extend(_module(name).imports)
    return found


@dataclass(frozen=True)
class _Module:
    tree: ast.Module
    text: str
    imports: frozenset[str]


@functools.cache
def _module(name: str) -> _Module:
    file = _file(name)
    if file is None:
        raise ClipVipError(f"no module {name!r}: expected a Python module; mend the stage's code")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    _strip_docstrings(tree)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return _Module(tree, ast.unparse(tree), frozenset(imported_modules(tree, package)))


def imported_modules(tree: ast.AST, package: str = "") -> set[str]:
    """The clipvip_lib modules that a syntax tree imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            if _is_ours(base):
                names = {f"{base}.{alias.name}" for alias in node.names}
                modules = {name for name in names if _file(name)}
                found.update(modules if modules == names else modules | {base})
    return found


def _is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


@functools.cache
def _file(name: str) -> Path | None:
    """Where a module's source lies. By path: find_spec would import the parents of a dotted name."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    if not rest:
        return Path(spec.origin)
    below = Path(spec.origin).parent.joinpath(*rest)
    found = [file for file in (below / "__init__.py", below.with_name(below.name + ".py")) if file.is_file()]
    return found[0] if found else None


def _strip_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            node.body = body[1:] or [ast.Pass()]


def _function_source(module: str, name: str) -> tuple[str, set[str]]:
    """The function with the module-level names that it uses, and the clipvip_lib modules these import."""
    tree = _module(module).tree
    package = module.rpartition(".")[0]
    definitions: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for defined in _defined_names(node):
            definitions.setdefault(defined, []).append(node)
    if not any(isinstance(node, ast.FunctionDef) for node in definitions.get(name, [])):
        raise ClipVipError(
            f"no function {name!r} in {module}: expected a stage function; mend the stage's function"
        )
    used: dict[str, list[ast.stmt]] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each in used or each not in definitions:
            continue
        used[each] = definitions[each]
        waiting.extend(n.id for node in used[each] for n in ast.walk(node) if isinstance(n, ast.Name))
    text, imported = [], set()
    for each in sorted(used):
        for node in used[each]:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= imported_modules(_only(node, each), package)
                text.append(f"import {each}")
            else:
                imported |= imported_modules(node, package)
                text.append(ast.unparse(node))
    return "\n".join(text), imported


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _only(node: ast.Import | ast.ImportFrom, name: str) -> ast.stmt:
    """The import with nothing but ``name``: its neighbours on the line are no part of the function's code."""
    names = [alias for alias in node.names if _bound_name(alias) == name]
    if isinstance(node, ast.Import):
        return ast.Import(names=names)
    return ast.ImportFrom(module=node.module, names=names, level=node.level)


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [_bound_name(alias) for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [
        n.id for target in targets if target is not None for n in ast.walk(target) if isinstance(n, ast.Name)
    ]
