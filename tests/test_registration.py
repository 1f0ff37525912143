"""AutoConfig and AutoModel find CLIP-ViP after ``import clipvip_lib``, in whatever order things are imported."""

import json
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig

    sizes = {"width": 32, "layers": 1, "heads": 2, "image_size": 16, "patch_size": 8, "embed_dim": 16}
    config = ClipViPConfig.small(**sizes, vocab_size=40, context_length=12, proxies=3)
    ClipViP(config).save_pretrained(tmp_path_factory.mktemp("model") / "clip-vip")
    return tmp_path_factory.getbasetemp() / "model0" / "clip-vip"


# An interpreter for each order: forked from one that has imported what both sides import of PyTorch, which is dear.
FORKED = """
import json, os, sys
import torch._dynamo, torch.distributed.tensor
codes, folder = json.loads(sys.argv[1]), sys.argv[2]
assert not {"transformers", "clipvip_lib"} & set(sys.modules)
for name, code in codes.items():
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), 2)
        exec(code, {"__name__": "__main__"})
        os._exit(0)
    print(json.dumps([name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]))
"""
#: The other way round: it is the import that registers, nothing that was left in the environment.
WITHOUT_US = "without us"


@pytest.fixture(scope="module")
def ended(folder, tmp_path_factory):
    """How the interpreter of each order ended: its exit code, and what it said."""
    said = tmp_path_factory.mktemp("said")
    codes = {order: first + FIND.format(folder=str(folder)) for order, first in ORDERS.items()}
    codes[WITHOUT_US] = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r})"
    done = patience.run([sys.executable, "-c", FORKED, json.dumps(codes), said])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (code, (said / name).read_text()) for name, code in rows}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_find_it(order, ended):
    code, said = ended[order]
    assert code == 0, said


def test_without_transformers_nothing_is_imported():
    code = "import sys, clipvip_lib; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert patience.run([sys.executable, "-c", code]).returncode == 0


def test_without_us_transformers_does_not_know_it(ended):
    code, said = ended[WITHOUT_US]
    assert code != 0 and "clip_vip" in said
