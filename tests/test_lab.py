"""JupyterLab leaves the checkout clean, and an interrupted cell ends with a sentence."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import patience
import pytest
from jupyter_client.manager import start_new_kernel

from clipvip_lib.files import CHECKOUT
from clipvip_lib.workshop.lab import scrub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server on a copy of the notebooks with the options of `make lab`: (folder, a function that asks it)."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(CHECKOUT / "notebooks", folder / "notebooks")
    [hook] = [
        word
        for word in (CHECKOUT / "Makefile").read_text().split()
        if word.startswith("--FileContentsManager")
    ]
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--port=0"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=told", hook, "--notebook-dir=notebooks"),
    ]
    places = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("RUNTIME", "CONFIG", "DATA")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | places, stdout=log, stderr=log)

    def url() -> str:
        found = [*(folder / "RUNTIME").glob("jpserver-*.json")] if (folder / "RUNTIME").is_dir() else []
        return json.loads(found[0].read_text())["url"] if found else ""

    def ask(method: str, path: str, content: object = None) -> dict:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{url()}api/{path}", body, {"Authorization": "token told"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def answers() -> bool:
        with contextlib.suppress(OSError):  # its file is there before it listens
            return bool(url()) and bool(ask("GET", "status"))
        return False

    try:
        patience.until(answers, "the server", process)
        yield folder / "notebooks", ask
    finally:
        patience.kill(process.pid)
        process.wait()


def run_through(model: dict) -> None:
    """As if it had been run and looked at in JupyterLab."""
    notebook = model["content"]
    notebook["metadata"]["language_info"] |= {"version": "3.99", "file_extension": ".py"}
    notebook["metadata"]["widgets"] = {}
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] |= {"trusted": True, "collapsed": False}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]


def test_saving_a_notebook_that_ran_changes_no_byte(lab):
    folder, ask = lab
    for path in sorted(folder.glob("*.ipynb")):
        before = path.read_bytes()
        model = ask("GET", f"contents/{path.name}?content=1")
        run_through(model)
        ask("PUT", f"contents/{path.name}", {name: model[name] for name in ("type", "format", "content")})
        assert path.read_bytes() == before == (CHECKOUT / "notebooks" / path.name).read_bytes(), path.name


def test_what_was_written_is_saved_and_a_notebook_of_ones_own_keeps_its_outputs(lab):
    folder, ask = lab
    for name, kept in (("04_video_proxy.ipynb", False), ("10_mine.ipynb", True), ("10_mine.ipynb", True)):
        model = ask("GET", "contents/04_video_proxy.ipynb?content=1")
        run_through(model)
        model["content"]["cells"][0]["source"] += "\nA line of mine."
        ask("PUT", f"contents/{name}", {part: model[part] for part in ("type", "format", "content")})
        saved = json.loads((folder / name).read_text())["cells"]
        assert "".join(saved[0]["source"]).endswith("A line of mine.")
        assert any(cell.get("outputs") for cell in saved) == kept


def test_the_hook_leaves_files_alone():
    model = {"type": "file", "content": "text"}
    scrub(model, "00_start_here.ipynb", SimpleNamespace(root_dir=CHECKOUT / "notebooks"))
    assert model == {"type": "file", "content": "text"}


@pytest.mark.fault(
    "notebook: a cell that runs stages is interrupted (Jupyter's stop button)",
    sees="how many stages are done, `Run the cell again to continue.`, no traceback",
    keeps="finished stages, and the checkpoints of those that ran",
)
def test_an_interrupted_cell_says_how_far_it_came_and_goes_on(tmp_path):
    environment = os.environ | {"CLIPVIP_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    manager, client = start_new_kernel(kernel_name="python3", env=environment)

    def run(code: str, interrupt_after: str = "") -> list[dict]:
        client.execute(code)
        found = []
        while (message := client.get_iopub_msg(timeout=600))["content"].get("execution_state") != "idle":
            found.append(message["content"] | {"kind": message["msg_type"]})
            if interrupt_after and interrupt_after in message["content"].get("text", ""):
                manager.interrupt_kernel()
        return found

    try:
        run(
            "import small_study\nfrom clipvip_lib.study import notebook\n"
            "study = notebook.start('00_first', profile='slow', seeds=[0, 40], plan=small_study.PLAN)"
        )
        asked = "sorted(stage.name for stage, _ in study.results())"
        [error] = [message for message in run(asked, "arm/seed0 done") if message["kind"] == "error"]
        assert error["traceback"] == ["Stopped: 2 of 3 stages are done. Run the cell again to continue."]
        [found] = [m for m in run(asked) if m["kind"] == "execute_result"]
        assert found["data"]["text/plain"] == "['arm/seed0', 'arm/seed40', 'base']"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
