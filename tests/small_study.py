"""A study of three tiny notebooks with real stages: what the tests of the pipeline run instead of hours."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

from clipvip_lib import cli, files
from clipvip_lib.errors import unknown
from clipvip_lib.profiles import get_profile, in_precision
from clipvip_lib.study import pipeline
from clipvip_lib.study.outline import Outline, study_outline
from clipvip_lib.workshop.stages import Stage, closure, version

NOTEBOOKS = ("00_first", "01_second", "02_third")


@version(1, "first")
def count(config: dict, inputs: dict[str, Path], folder: Path, progress) -> dict:
    """Count to ``n`` with a checkpoint at every step; ``mood`` says how it ends."""
    file = folder / "count.json"
    first = json.loads(file.read_text()) if file.exists() else 0
    for i in range(first, config["n"]):
        time.sleep(config.get("pause", 0.0))
        files.write_json(file, i + 1)  # a kill may come at any moment
        progress(i + 1, config["n"], "counting")
    if config.get("mood") == "raise":
        raise RuntimeError("the count\nwent wrong")
    if config.get("mood") == "hungry":
        exhaust_memory()
    if config.get("mood") in ("die", "bus"):
        os.kill(os.getpid(), signal.SIGKILL if config["mood"] == "die" else signal.SIGBUS)
    below = sum(json.loads((f / "result.json").read_text())["result"]["sum"] for f in inputs.values())
    with (folder.parent / "ran.txt").open("a") as log:
        log.write(f"{config.get('tag', '')}\n")
    return {"sum": config["n"] + below, "resumed_at": first, "threads": os.environ.get("OMP_NUM_THREADS")}


def exhaust_memory() -> None:
    """Take memory until none is left; a limit on this process says when."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, before[1]))
    try:
        held = []
        while True:
            held.append(bytearray(2**22))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def diverging() -> Stage:
    """The study's own pre-training at smoke size, with a learning rate at which the loss becomes NaN."""
    sized = get_profile("smoke", **{"pretrain.lr": 1e30, "pretrain.clip_norm": 1e30})
    stages = closure(study_outline().stages_for("00_start_here", in_precision(sized, "float32"), [0]))
    return next(stage for stage in stages if stage.name == "clip/seed0")


def stages_for(notebook: str, profile, seeds: list[int]) -> list[Stage]:
    """One base, and one arm per seed on top of it; ``02_third`` has an arm of its own that may fail."""
    function = "small_study:count"
    base = Stage("base", function, {"n": profile.n, "pause": profile.pause, "tag": "base"}, cost=2)
    arms = [
        Stage(
            f"arm/seed{s}", function, {"n": s + 1, "pause": profile.pause, "tag": f"arm{s}"}, {"base": base}
        )
        for s in seeds
    ]
    if profile.mood == "faulty" and notebook != "02_third":
        hungry = Stage("hungry", function, {"n": 3, "tag": "hungry", "mood": "hungry"}, {"base": base})
        return [diverging() if notebook == "00_first" else hungry]
    if notebook == "02_third":
        config = {"n": 1, "tag": "odd", "mood": profile.mood}
        return [Stage("odd", function, config, {"base": base})]
    return arms


def profile(name: str, precision: str = "auto"):
    """quick, and smoke the same; slow: a pause at each step; broken: one stage raises; deadly: one kills its worker;
    faulty: one stage's loss becomes NaN, one exhausts its memory. precision: nothing is computed in it."""
    known = {
        "quick": SimpleNamespace(n=3, pause=0.0, mood=""),
        "smoke": SimpleNamespace(n=3, pause=0.0, mood=""),
        "slow": SimpleNamespace(n=30, pause=0.1, mood=""),
        "broken": SimpleNamespace(n=3, pause=0.0, mood="raise"),
        "faulty": SimpleNamespace(n=3, pause=0.0, mood="faulty"),
        "deadly": SimpleNamespace(n=3, pause=0.0, mood="die"),
    }
    if name not in known:
        raise unknown("profile", name, known)
    return known[name]


OUTLINE = Outline(NOTEBOOKS, stages_for, profile)

CLAIM = """**The paper** claims that it does.
**Here** it counts to three.
**No** would be another number.

| what | ours | paper |
|---|---:|---:|
| R@1 | 45.1 | 49.6 |"""

START = """import small_study
from clipvip_lib.study import notebook

study = notebook.start("{name}", profile=profile, seeds=seeds, outline=small_study.OUTLINE)"""


def write_notebook(folder: Path, name: str, body: list[str], tagged: bool = True, extra: str = "") -> Path:
    """A notebook by the rules of the study: title, parameters, start, ``body``, record, footer."""
    import nbformat

    v4 = nbformat.v4
    parameters = v4.new_code_cell(f'profile = "quick"\nseeds = [0]{extra}')
    if tagged:
        parameters.metadata["tags"] = ["parameters"]
    cells = [
        v4.new_markdown_cell(f"# Does {name} count?\n\n{CLAIM}"),
        parameters,
        v4.new_code_cell(START.format(name=name), metadata={"tags": ["nbval-ignore-output"]}),
        *(v4.new_code_cell(source) for source in body),
        v4.new_code_cell("study.footer()", metadata={"tags": ["nbval-ignore-output"]}),
    ]
    book = v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


TABLE = """import pandas as pd
sums = [(stage.name, result["sum"]) for stage, result in study.results("*")]
frame = pd.DataFrame(sums, columns=["stage", "sum"])
study.table(frame, "What each stage counted to")"""
FIGURE = """from matplotlib import pyplot as plt
from clipvip_lib.study import figures
figures.use_style()
fig, axes = plt.subplots()
axes.bar(frame["stage"], frame["sum"])
study.figure(fig, "Every stage counts", "one seed", alt="bars, one a stage")"""
RECORD = """study.record(headline=f"counted to {frame['sum'].max()}", largest=frame["sum"].max())"""


SHORT = """top = max(result["sum"] for _, result in study.results())
study.record(headline=f"counted to {top}", largest=top)"""


def write_notebooks(folder: Path) -> Path:
    """The three notebooks; the first draws too."""
    write_notebook(folder, "00_first", [TABLE, FIGURE, RECORD])
    write_notebook(folder, "01_second", [SHORT])
    write_notebook(folder, "02_third", [SHORT], extra="\nnote = 'none'")
    return folder


def command(line: list[str]) -> int:
    """``HOME NOTEBOOKS`` and a command line of ``clipvip``, which then means this study."""
    home, notebooks, *rest = line
    os.environ["CLIPVIP_HOME"] = home
    pipeline.reproduce = functools.partial(REPRODUCE, outline=OUTLINE, notebooks=Path(notebooks))
    return cli.main(rest)


REPRODUCE = pipeline.reproduce
