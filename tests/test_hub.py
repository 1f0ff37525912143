"""Weights by their name on the Hugging Face Hub: from its cache without a network, and from a server that answers as
the Hub does, on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_clip import save_small, write_videos
from test_embed_commands import run

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features
from clipvip_lib.models import hub
from clipvip_lib.models.checkpoints import load_clip_vip

COMMIT = "0" * 40
TOWERS = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def snapshot(cache: Path, name: str) -> Path:
    """The empty folder of a model in the cache, as huggingface_hub lays it out."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The Hub's cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_commands_take_a_name_as_they_take_a_folder(cache, tmp_path, capsys):
    save_small(snapshot(cache, "acme/small-clip"))
    write_videos(tmp_path / "videos", 2)
    line = ("embed", tmp_path / "videos", "--texts", tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("a dog runs\n")
    for weights in ("acme/small-clip", save_small(tmp_path / "folder")):
        assert run(*line, "--weights", weights, "--out", tmp_path / Path(weights).name) == 0
    by_name, by_folder = tmp_path / "small-clip", tmp_path / "folder"
    for kind in (".", "texts"):
        assert (by_name / kind / "features.npy").read_bytes() == (
            by_folder / kind / "features.npy"
        ).read_bytes()
    assert Features(by_name).settings["weights"] == "acme/small-clip"
    capsys.readouterr()
    assert run("search", "a dog runs", "--in", by_name, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2


def test_open_clips_form_of_a_model(cache):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**TOWERS).eval()
    folder = snapshot(cache, "acme/theirs")
    save_file(
        {k: v for k, v in theirs.state_dict().items() if k != "attn_mask"},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWERS}))
    x = torch.randn(1, 1, 3, 32, 32)
    for source in ("hf-hub:acme/theirs", folder):
        ours, report = load_clip_vip(source, attention="mean_pool")
        assert (
            ours.config.vision_config.hidden_act == "quick_gelu" and not report.assumed and not report.added
        )
        with torch.no_grad():
            torch.testing.assert_close(
                ours.encode_video(x), F.normalize(theirs.encode_image(x[:, 0]), dim=-1)
            )
    with pytest.raises(
        ClipVipError, match=r"config\.json and model\.safetensors .* or 'hf-hub:acme/theirs'|HF_HUB_OFF"
    ):
        load_clip_vip("acme/theirs")


@pytest.mark.bad_input(
    "--weights: a name of the Hub that is not in the cache, without a network; a part of a model in the cache",
    says="one sentence: `not in the cache of this machine`",
)
def test_what_is_not_there_is_a_sentence(cache, tmp_path):
    save_small(snapshot(cache, "acme/half"))
    weights = cache / "models--acme--half" / "snapshots" / COMMIT / "model.safetensors"
    weights.rename(weights.with_name("model-00001-of-00002.safetensors"))
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    weights.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    for name in ("acme/absent", "hf-hub:acme/absent", "acme/half", "hf-hub:acme/half"):
        with pytest.raises(
            ClipVipError, match="not in the cache of this machine.*HF_HUB_OFFLINE is set.*check it"
        ):
            hub.local(name)
        with pytest.raises(ClipVipError, match="HF_HUB_OFFLINE is set"):
            load_clip_vip(name)


@pytest.mark.parametrize(
    "name", ["a/b/c", "/a/b", "./a", "a", "a/", "../b", "here/b", "a b/c", "", "hf-hub:", "-a/b"]
)
def test_a_path_is_no_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert not hub.is_hub_name(name)
    assert hub.local(name) == Path(name)


@pytest.fixture
def served(tmp_path):
    """A server that knows one model, and what it was asked."""
    model = save_small(tmp_path / "model")
    (model / "modeling_evil.py").write_text("raise SystemExit('code of a model was run')")
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.extend([self.path] * self.path.startswith("/api/models"))
            if self.path.startswith("/api/models/acme/clip"):
                siblings = [{"rfilename": path.name} for path in model.iterdir()]
                about = {"id": "acme/clip", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                self.answer(json.dumps(about).encode())
            elif self.path.startswith("/acme/clip/resolve/") and (model / Path(self.path).name).is_file():
                self.answer((model / Path(self.path).name).read_bytes())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            for name, value in (
                ("ETag", etag),
                ("X-Repo-Commit", COMMIT),
                ("Content-Length", str(len(body))),
            ):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.bad_input("--weights: a name that the Hub does not know", says="one sentence, at once")
def test_a_model_is_fetched_once_and_without_its_code(served, tmp_path):
    address, asked = served
    env = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    env["PYTHONPATH"] = str(files.CHECKOUT)
    code = "import sys\nfrom clipvip_lib.models import hub\nfrom clipvip_lib.errors import ClipVipError\n"
    code += "try: print(hub.local(sys.argv[1]))\nexcept ClipVipError as error: print(error)"

    def local(name: str) -> str:
        line = [sys.executable, "-c", code, name]
        return subprocess.run(line, env=env, capture_output=True, text=True, check=True).stdout.strip()

    folder = Path(local("acme/clip"))
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "clip_tokenizer.json",
    }
    assert load_clip_vip(folder)[0].config.attention == "proxy"
    asked.clear()
    assert local("acme/clip") == str(folder) and not asked
    assert "has none under this name" in local("acme/other") and len(asked) == 1
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"  # where nobody answers
    assert "does not give it" in local("acme/third")
