"""JupyterLab leaves the checkout clean, its widgets answer, and an interrupted cell ends with a sentence."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import browser as browsers
import patience
import pytest
from jupyter_client.manager import start_new_kernel

from clipvip_lib.files import CHECKOUT
from clipvip_lib.workshop.lab import scrub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server as `make lab` starts it, on a copy of the checkout: (notebooks, a function to ask it, address)."""
    folder = tmp_path_factory.mktemp("lab")
    for part in ("notebooks", "clipvip_lib", "reports/reference"):
        shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    [options] = re.findall(
        r"bin/jupyter lab (.*?)\$\(LAB_ARGS\)", (CHECKOUT / "Makefile").read_text(), re.DOTALL
    )
    command = [
        *(sys.executable, "-m", "jupyter", "lab", *options.replace("\\", "").split()),
        *("--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--ServerApp.port_retries=0"),
        "--IdentityProvider.token=told",
    ]
    home = folder.with_suffix(".home")
    places = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("RUNTIME", "CONFIG", "DATA")}
    places |= {"PYTHONPATH": str(folder), "CLIPVIP_HOME": str(home / "clipvip")}
    home.mkdir()
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | places, stdout=log, stderr=log)

    def url() -> str:
        found = [*(home / "RUNTIME").glob("jpserver-*.json")] if (home / "RUNTIME").is_dir() else []
        return json.loads(found[0].read_text())["url"] if found else ""

    def ask(method: str, path: str, content: object = None) -> dict:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{url()}api/{path}", body, {"Authorization": "token told"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def answers() -> bool:
        # The server's file is there before it is full, and full before the server listens.
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return bool(url()) and bool(ask("GET", "status"))
        return False

    try:
        patience.until(answers, "the server", process)
        yield folder / "notebooks", ask, url()
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
    folder, ask, _ = lab
    for path in sorted(folder.glob("*.ipynb")):
        before = path.read_bytes()
        model = ask("GET", f"contents/{path.name}?content=1")
        run_through(model)
        ask("PUT", f"contents/{path.name}", {name: model[name] for name in ("type", "format", "content")})
        assert path.read_bytes() == before == (CHECKOUT / "notebooks" / path.name).read_bytes(), path.name


def test_what_was_written_is_saved_and_a_notebook_of_ones_own_keeps_its_outputs(lab):
    folder, ask, _ = lab
    for name, kept in (("04_video_proxy.ipynb", False), ("10_mine.ipynb", True), ("10_mine.ipynb", True)):
        model = ask("GET", "contents/04_video_proxy.ipynb?content=1")
        run_through(model)
        model["content"]["cells"][0]["source"] += "\nA line of mine."
        ask("PUT", f"contents/{name}", {part: model[part] for part in ("type", "format", "content")})
        saved = json.loads((folder / name).read_text())["cells"]
        assert "".join(saved[0]["source"]).endswith("A line of mine.")
        assert any(cell.get("outputs") for cell in saved) == kept


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(
        ["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True
    ).stdout


class Desk:
    """JupyterLab in a browser, on a committed copy of the checkout with the notebooks at smoke size."""

    def __init__(self, tab: browsers.Browser, folder: Path, ask, url: str):
        self.tab, self.folder, self.ask, self.url = tab, folder, ask, url

    def choose(self, *labels: str) -> None:
        """Something in a menu."""
        for kind, label in zip(("MenuBar", "Menu"), labels, strict=True):
            self.tab.wait(f"""(() => {{
              for (const old of document.querySelectorAll('#wanted')) old.id = '';
              const found = [...document.querySelectorAll('.lm-{kind}-itemLabel')];
              const wanted = found.find((item) => item.textContent === '{label}' && item.offsetWidth);
              if (wanted) wanted.id = 'wanted';
              return Boolean(wanted);
            }})()""")
            self.tab.click("#wanted")

    def run_all(self, name: str) -> None:
        """Open a notebook, run all its cells and wait for them."""
        self.tab.show(f"{self.url}lab/workspaces/{name}/tree/{name}.ipynb?token=told")
        patience.until(lambda: self.kernel(name), "a kernel that the browser is connected with", pause=0.5)
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"

        def begins() -> bool:
            self.tab.press("Escape")
            self.choose("Run", "Run All Cells")
            return self.tab.within(5, f"{prompts}.some((p) => /[\\d*]/.test(p.textContent))")

        patience.until(begins, "cells that run: until the notebook is ready the menu does nothing")
        self.tab.wait(f"{prompts}.every((p) => /\\d/.test(p.textContent))")

    def kernel(self, name: str) -> bool:
        kernels = [each["kernel"] for each in self.ask("GET", "sessions") if each["path"] == f"{name}.ipynb"]
        return any(each["connections"] and each["execution_state"] == "idle" for each in kernels)

    def faults(self) -> list[str]:
        """Errors that cells show, and what the browser complains of."""
        errors = "'[data-mime-type$=error],[data-mime-type$=stderr],.jp-OutputArea-output.jp-mod-error'"
        shown = self.tab.run(f"[...document.querySelectorAll({errors})].map((found) => found.textContent)")
        # What JupyterLab itself notes down, and gives up to ask for.
        own = ('"type": "debug"', '"type": "log"', "net::ERR_ABORTED")
        return shown + [said for said in self.tab.complaints() if not any(part in said for part in own)]

    def save(self, name: str) -> None:
        path = self.folder / "notebooks" / f"{name}.ipynb"
        before, meanwhile = path.stat().st_mtime_ns, path.with_name(f".~{path.name}")
        self.choose("File", "Save Notebook")
        patience.until(
            lambda: path.stat().st_mtime_ns > before and not meanwhile.exists(), f"{path} being saved"
        )


@pytest.fixture(scope="module")
def desk(lab, smoke, tmp_path_factory):
    assert smoke.first.returncode == 0, smoke.first.stdout[-3000:]
    folder, ask, url = lab
    (folder.parent.with_suffix(".home") / "clipvip").symlink_to(smoke.home)
    for path in (CHECKOUT / "notebooks").glob("*.ipynb"):
        at_smoke = path.read_text(encoding="utf-8").replace('profile = \\"mini\\"', 'profile = \\"smoke\\"')
        (folder / path.name).write_text(at_smoke, encoding="utf-8")
    shutil.copy(CHECKOUT / ".gitignore", folder.parent)
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", "-A")
    git(folder.parent, "commit", "-qm", "a copy")
    with browsers.browser(tmp_path_factory.mktemp("chromium") / "profile", local=True) as tab:
        yield Desk(tab, folder.parent, ask, url)


@browsers.in_a_browser
@pytest.mark.thorough
def test_a_sentence_typed_in_jupyterlab_is_answered_by_the_live_model(desk):
    desk.run_all("00_start_here")
    tab = desk.tab
    assert desk.faults() == []
    assert tab.run("document.querySelectorAll('.Toastify__toast').length") == 0  # no question about news
    looks = "getComputedStyle(document.querySelector('.jp-RenderedHTML tbody %s'))"
    assert (
        tab.run(looks % "td:not([class])" + ".textAlign") == "left"
    )  # as on the pages; of itself JupyterLab's are right
    assert tab.run(looks % "tr:nth-child(even)" + ".backgroundColor") == "rgba(0, 0, 0, 0)"
    tab.run("document.querySelector('.widget-text input').focus()")
    tab.type("a zebra grows")
    tab.press("Enter")
    videos = "[...document.querySelectorAll('.jupyter-widgets.widget-output video')]"
    tab.wait(f"{videos}.length === 6")
    tab.run(f"{videos}[0].scrollIntoView({{block: 'center'}})")
    tab.wait(f"{videos}.every((video) => video.currentTime > 0)")
    said = tab.run("document.querySelector('.jupyter-widgets.widget-output').textContent")
    assert "“a zebra grows”" in said and "Unknown to the models: zebra." in said and "CLIP-ViP" in said
    assert desk.faults() == []
    desk.save("00_start_here")
    assert git(desk.folder, "status", "--porcelain") == ""


@browsers.in_a_browser
@pytest.mark.thorough
def test_a_slider_in_jupyterlab_moves_what_the_live_model_looks_at(desk):
    desk.run_all("04_video_proxy")
    tab = desk.tab
    pictures = "[...document.querySelectorAll('.jupyter-widgets.widget-output img')].map((img) => img.src)"
    tab.wait(f"{pictures}.length > 1")
    for slider in ("clip", "head", "proxy"):
        before = tab.run(pictures)
        then = json.dumps(before, separators=(",", ":"))
        moved = f"{pictures}.length === {len(before)} && JSON.stringify({pictures}) !== {json.dumps(then)}"
        handle = f"""[...document.querySelectorAll('.widget-slider')].find((slider) =>
          slider.textContent.startsWith('{slider}')).querySelector('.noUi-handle')"""

        def moves(handle: str = handle, moved: str = moved) -> bool:
            tab.run(f"{handle}.focus()")
            tab.press("ArrowRight")
            return tab.within(5, moved)

        patience.until(moves, f"what {slider} changes: JupyterLab takes the focus when the last cell has run")
    assert desk.faults() == []
    desk.save("04_video_proxy")
    assert git(desk.folder, "status", "--porcelain") == ""


def test_the_hook_leaves_files_alone():
    model = {"type": "file", "content": "text"}
    scrub(model, "00_start_here.ipynb", SimpleNamespace(root_dir=CHECKOUT / "notebooks"))
    assert model == {"type": "file", "content": "text"}


@pytest.mark.parametrize(
    ("name", "outputs", "kept"),
    [
        ("04_video_proxy.ipynb", [], False),
        ("04_video_proxy.ipynb", ["x"], True),
        ("04_video_proxy-Copy1.ipynb", [], True),
    ],
)
def test_outputs_are_kept_where_some_were_stored_and_in_a_duplicate(tmp_path, name, outputs, kept):
    stored = json.loads((CHECKOUT / "notebooks/04_video_proxy.ipynb").read_text())
    first = next(cell for cell in stored["cells"] if cell["cell_type"] == "code")
    first["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text} for text in outputs]
    (tmp_path / name).write_text(json.dumps(stored))
    model = {"type": "notebook", "content": stored}
    run_through(model)
    scrub(model, name, SimpleNamespace(root_dir=tmp_path))
    assert any(cell.get("outputs") for cell in model["content"]["cells"]) == kept


@pytest.mark.fault(
    "notebook: a cell that runs stages is interrupted (Jupyter's stop button)",
    sees="how many stages are done, `Run the cell again to continue.`, no traceback",
    keeps="finished stages, and the checkpoints of those that ran",
)
@pytest.mark.thorough
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
            "study = notebook.start('00_first', profile='slow', seeds=[0, 40], outline=small_study.OUTLINE)"
        )
        asked = "sorted(stage.name for stage, _ in study.results())"
        [error] = [message for message in run(asked, "arm/seed0 done") if message["kind"] == "error"]
        assert error["traceback"] == ["Stopped: 2 of 3 stages are done. Run the cell again to continue."]
        [found] = [m for m in run(asked) if m["kind"] == "execute_result"]
        assert found["data"]["text/plain"] == "['arm/seed0', 'arm/seed40', 'base']"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
