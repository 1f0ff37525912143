"""AutoConfig and AutoModel find CLIP-ViP after ``import clipvip_lib``, in whatever order things are imported."""

import subprocess
import sys

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


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_find_it(order, folder):
    code = ORDERS[order] + FIND.format(folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_transformers_nothing_is_imported():
    code = "import sys, clipvip_lib; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_us_transformers_does_not_know_it(folder):
    """The other way round: it is the import that registers, nothing that was left in the environment."""
    code = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "clip_vip" in done.stderr
