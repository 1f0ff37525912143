"""Imports run one way, and importing the library touches no network and no GPU."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import clipvip_lib
from clipvip_lib.workshop.page_stage import imported_modules

PACKAGE = Path(clipvip_lib.__file__).parent
# A module may import from its own storey and from those before it.
STOREYS = {
    "ground": (
        "ahead",
        "children",
        "cores",
        "errors",
        "files",
        "heap",
        "locks",
        "precision",
        "progress",
        "profiles",
        "registration",
        "say",
        "stop_signals",
    ),
    "workshop": ("workshop",),  # no CLIP in it
    "data": ("data", "streams"),
    "paper": ("models", "omnisource", "losses", "retrieval", "statistics", "paper", "flops", "scaling"),
    "work": ("captions", "features", "training"),
    "study": ("study",),
    "bench": ("bench",),
    "commands": ("commands", "cli"),
}
#: The workshop stands on the ground alone, and only study/ and bench/ use it.
BELOW = {name: tuple(STOREYS)[: number + 1] for number, name in enumerate(STOREYS)}
for storey in ("data", "paper", "work", "commands"):
    BELOW[storey] = tuple(name for name in BELOW[storey] if name != "workshop")
NOTEBOOKS_ONLY = {
    "matplotlib",
    "pandas",
    "IPython",
    "ipywidgets",
    "papermill",
    "nbconvert",
    "nbformat",
    "nbclient",
    "jupyterlab",
}
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
)


def storey(module: str) -> str | None:
    part = module.split(".")[1]
    return next((name for name, parts in STOREYS.items() if part in parts), None)


def tree(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def others(module: str) -> set[str]:
    """Top-level packages of other projects that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def ours(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    return {name for name in imported_modules(tree(module)) if name.split(".")[0] == "clipvip_lib"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    if module == "clipvip_lib":
        assert ours(module) == {"clipvip_lib.registration"}
        return
    own = storey(module)
    assert own, f"{module} has no place: give it one in STOREYS"
    above = {n for n in ours(module) if n != "clipvip_lib" and storey(n) not in BELOW[own]}
    assert not above, f"{module} ({own}) imports {above}"


def test_no_import_goes_in_a_circle():
    """Imports inside functions count too: they tie modules together just as much."""
    modules = {
        module: ours(module) & set(MODULES) - {module} for module in MODULES if module != "clipvip_lib"
    }
    assert len(list(graphlib.TopologicalSorter(modules).static_order())) >= len(modules)


def test_imports_are_absolute():
    """What reads imports looks at no others."""
    for module in MODULES:
        relative = [n for n in ast.walk(tree(module)) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, module


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if m != "clipvip_lib" and storey(m) in ("ground", "data", "paper", "work")],
)
def test_the_science_never_imports_what_is_for_notebooks(module):
    assert not others(module) & NOTEBOOKS_ONLY


def test_the_check_can_fail():
    assert storey("clipvip_lib.workshop.workers") not in BELOW[storey("clipvip_lib.data.video")]
    assert imported_modules(ast.parse("def f():\n    from clipvip_lib.study import notebook")) == {
        "clipvip_lib.study.notebook"
    }


def loaded_after(statement: str) -> set[str]:
    """Modules in a fresh interpreter after a statement, which fails if it opens a connection."""
    code = f"""
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"network: {{event}} {{arguments}}")
sys.addaudithook(watch)
{statement}
print(" ".join(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_library_is_light_and_offline():
    loaded = loaded_after("import clipvip_lib")
    assert not loaded & {"torch", "transformers", "numpy", "decord", "av", *NOTEBOOKS_ONLY}


def test_the_command_line_and_the_pipeline_import_nothing_heavy():
    loaded = loaded_after("import clipvip_lib.cli, clipvip_lib.study.pipeline, clipvip_lib.study.notebook")
    assert not loaded & {"torch", "transformers", "decord", *NOTEBOOKS_ONLY}


def test_models_touch_neither_network_nor_gpu_when_imported():
    statement = "import clipvip_lib.models.proxy_attention, torch; assert not torch.cuda.is_initialized()"
    assert "torch" in loaded_after(statement)
