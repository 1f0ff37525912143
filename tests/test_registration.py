"""AutoConfig and AutoModel find CLIP-ViP after ``import clipvip_lib``, in whatever order things are imported."""

import subprocess
import sys

import patience
import pytest

FIND = """
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained({folder!r})
model = AutoModel.from_pretrained({folder!r})
assert type(config).__name__ == "ClipViPConfig" and config.proxies == 3, config
assert type(model).__name__ == "ClipViP", type(model)
"""
ORDERS = {
    "ours first": "import clipvip_lib",
    "transformers first": "import transformers, clipvip_lib",
    "auto classes first": "from transformers import AutoModel; import clipvip_lib",
    "looked for before it is imported": (
        "import clipvip_lib, importlib.util; assert importlib.util.find_spec('transformers')"
    ),
    "by a submodule": "import clipvip_lib; from transformers.modeling_utils import PreTrainedModel",
    "the model itself first": "import clipvip_lib.models.clip_vip",
}

USUAL = ("ours first", "auto classes first")  # the others are thorough: each imports transformers again


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig

    sizes = {"width": 32, "layers": 1, "heads": 2, "image_size": 16, "patch_size": 8, "embed_dim": 16}
    config = ClipViPConfig.small(**sizes, vocab_size=40, context_length=12, proxies=3)
    ClipViP(config).save_pretrained(tmp_path_factory.mktemp("model") / "clip-vip")
    return tmp_path_factory.getbasetemp() / "model0" / "clip-vip"


# An interpreter for each order: forked from one that has imported what both sides import of PyTorch, which is dear.
FORKED = """
import os, sys
import torch._dynamo, torch.distributed.tensor
assert not {"transformers", "clipvip_lib"} & set(sys.modules)
for line in sys.stdin:
    code, said = eval(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        exec(code, {"__name__": "__main__"})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def interpreter():
    """``interpreter(code, said)`` runs code in an interpreter of its own that says to a file; returns how it ended."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKED], **pipes) as process:

        def run(code, said):
            print(repr((code, str(said))), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [order if order in USUAL else pytest.param(order, marks=pytest.mark.thorough) for order in ORDERS],
)
def test_auto_classes_find_it(order, folder, interpreter, tmp_path):
    ended = interpreter(ORDERS[order] + FIND.format(folder=str(folder)), tmp_path / "said")
    assert ended == 0, (tmp_path / "said").read_text()


def test_without_transformers_nothing_is_imported():
    code = "import sys, clipvip_lib; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert patience.run([sys.executable, "-c", code]).returncode == 0


def test_without_us_transformers_does_not_know_it(folder, interpreter, tmp_path):
    """It is the import that registers, nothing that was left in the environment."""
    code = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r})"
    assert interpreter(code, tmp_path / "said") != 0
    assert "clip_vip" in (tmp_path / "said").read_text()
