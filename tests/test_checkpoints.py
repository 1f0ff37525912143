"""Weights are loaded whole or not at all, and every bad file is called by its name."""

import json
import pickle
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from equality import largest
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.checkpoints import LoadReport, adapt, build, load_clip_vip, load_weights
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig, is_added
from clipvip_lib.models.open_clip_weights import from_open_clip

# Heads 64 wide and QuickGELU, as in all released CLIPs, so that a bare file tells all sizes.
SIZES = {
    "width": 64,
    "layers": 2,
    "heads": 1,
    "image_size": 16,
    "patch_size": 8,
    "vocab_size": 40,
    "context_length": 12,
    "embed_dim": 64,
}
X = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[38, 3, 7, 9, 39, 0], [38, 5, 39, 0, 0, 0]])
ADDED = ["vision_model.embeddings.added_cls", "vision_model.embeddings.temporal_embedding"]


def make(**changes):
    torch.manual_seed(0)
    return ClipViP(ClipViPConfig.small(**(SIZES | changes))).eval()


def released(model):
    """The model's weights as the authors' files have them: prefixed, with position_ids."""
    state = {f"clipmodel.{k}": v.clone() for k, v in model.state_dict().items()}
    state["clipmodel.text_model.embeddings.position_ids"] = torch.arange(12)[None]
    state["clipmodel.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    return state


def same(a, b):
    with torch.no_grad():
        torch.testing.assert_close(a.encode_video(X), b.encode_video(X))
        torch.testing.assert_close(a.encode_text(IDS), b.encode_text(IDS))


@pytest.fixture(scope="module")
def open_clip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what timm and torch say while open_clip is imported is not ours
        import open_clip
    return open_clip


# ---- sources ----


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_authors_file_needs_no_configuration(suffix, tmp_path):
    model, path = make(proxies=3, frames=5, hidden_act="quick_gelu"), tmp_path / f"pretrain_clipvip.{suffix}"
    (torch.save if suffix == "pt" else save_file)(released(model), path)
    loaded, report = load_clip_vip(path)
    assert (loaded.config.proxies, loaded.config.temporal_size) == (3, 5) and not loaded.training
    assert set(report.dropped) == {f"{t}_model.embeddings.position_ids" for t in ("text", "vision")}
    assert not report.added and not report.changed and len(report.loaded) == len(model.state_dict())
    same(loaded, model)


def test_one_proxy_may_be_stored_as_no_added_ones(tmp_path):
    model = make(proxies=1, frames=5, hidden_act="quick_gelu")
    torch.save(released(model) | {f"clipmodel.{ADDED[0]}": torch.empty(0, 64)}, tmp_path / "one.pt")
    loaded, report = load_clip_vip(tmp_path / "one.pt")
    assert loaded.config.proxies == 1 and "empty" in report.dropped[ADDED[0]] and not report.added
    same(loaded, model)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_our_own_folder(attention, tmp_path):
    model = make(attention=attention)
    model.save_pretrained(tmp_path)
    loaded, report = load_clip_vip(tmp_path, attention=attention)
    assert not (report.added or report.dropped or report.changed)
    same(loaded, model)


@pytest.mark.parametrize("shards", [False, True])
def test_a_huggingface_clip_folder(shards, tmp_path):
    torch.manual_seed(1)
    sizes = make(attention="mean_pool").config.to_dict()
    clip = CLIPModel(
        CLIPConfig(text_config=sizes["text_config"], vision_config=sizes["vision_config"], projection_dim=64)
    )
    clip.eval().save_pretrained(tmp_path, **({"max_shard_size": "100KB"} if shards else {}))
    assert (tmp_path / "model.safetensors.index.json").is_file() == shards
    loaded, report = load_clip_vip(tmp_path, proxies=1, frames=6)
    assert list(report.added) == ADDED[1:] and "zero" in str(report)
    frames = X[:, :1]
    theirs = F.normalize(clip.get_image_features(frames[:, 0]).pooler_output, dim=-1)
    torch.testing.assert_close(loaded.encode_video(frames), theirs)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip_gives_the_same_features(open_clip, quick_gelu):
    torch.manual_seed(2)
    theirs = open_clip.model.CLIP(
        embed_dim=48,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        text_cfg={"context_length": 12, "vocab_size": 40, "width": 32, "heads": 4, "layers": 3},
        quick_gelu=quick_gelu,
    ).eval()
    config, state = from_open_clip(theirs)
    config.attention = "mean_pool"
    assert config.vision_config.hidden_act == ("quick_gelu" if quick_gelu else "gelu")
    ours = build(config)
    report = load_weights(ours, state)
    assert not report.added and not report.dropped
    x, ids = torch.randn(2, 1, 3, 32, 32), torch.nn.functional.pad(IDS, (0, 6))
    torch.testing.assert_close(ours.encode_video(x), F.normalize(theirs.encode_image(x[:, 0]), dim=-1))
    torch.testing.assert_close(ours.encode_text(ids), F.normalize(theirs.encode_text(ids), dim=-1))


def test_open_clip_by_name_and_file(open_clip, tmp_path, caplog):
    torch.manual_seed(3)
    theirs = open_clip.create_model("ViT-S-32-alt").eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours, report = load_clip_vip(
        "ViT-S-32-alt", attention="mean_pool", pretrained_tag=tmp_path / "weights.pt"
    )
    assert not report.added and not report.dropped
    x = torch.randn(1, 1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_video(x), F.normalize(theirs.encode_image(x[:, 0]), dim=-1))
    with pytest.raises(ClipVipError, match=r"weights.pt does not fit open_clip model ViT-S-32 "):
        load_clip_vip("ViT-S-32", pretrained_tag=tmp_path / "weights.pt")


def test_open_clips_b32_at_full_size(open_clip, caplog, equals):
    torch.manual_seed(3)
    theirs = open_clip.create_model("ViT-B-32").eval()
    config, state = from_open_clip(theirs)
    ours = build(config)
    assert list(load_weights(ours, state, allow_added=True, own=True).added) == ADDED
    ours = adapt(ours, attention="mean_pool")
    x, ids = torch.randn(2, 1, 3, 224, 224), open_clip.tokenize(["a red circle grows", "a star slides left"])
    against = "open_clip's ViT-B-32, random weights, float32"
    with torch.no_grad():
        image, text = (
            F.normalize(y, dim=-1) for y in (theirs.encode_image(x[:, 0]), theirs.encode_text(ids))
        )
        equals("feature of one frame", against, largest(ours.encode_video(x), image), 1e-6)
        equals("text feature", against, largest(ours.encode_text(ids), text), 1e-6)


# ---- another attention ----


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_adapt_keeps_clip_and_adds_by_the_seed(attention):
    clip = make(attention="mean_pool")
    a, b, other = (adapt(clip, attention=attention, proxies=3, frames=5, seed=s) for s in (1, 1, 2))
    for name, value in clip.state_dict().items():
        assert torch.equal(a.state_dict()[name], value)
        assert a.state_dict()[name].data_ptr() != value.data_ptr()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    if attention in ("proxy", "full"):
        embeddings = a.vision_model.embeddings
        assert (
            embeddings.added_cls.shape == (2, 64) and 0.7 < float(embeddings.added_cls.detach().std()) < 1.3
        )
        assert embeddings.temporal_embedding.abs().sum() == 0
        assert not torch.equal(embeddings.added_cls, other.vision_model.embeddings.added_cls)
    assert torch.isfinite(a.encode_video(X)).all()


def test_adapt_starts_sequential_from_the_text_tower():
    clip = make(attention="mean_pool")
    start = adapt(clip, attention="sequential", frames=5).frame_transformer
    assert torch.equal(start.positions, clip.text_model.embeddings.position_embedding.weight[:5])
    ours, theirs = start.encoder.layers[1].state_dict(), clip.text_model.encoder.layers[1].state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    narrow = adapt(make(attention="mean_pool", embed_dim=32), attention="sequential", frames=5)
    assert torch.isfinite(narrow.encode_video(X)).all()


def test_adapt_leaves_the_random_state_alone():
    clip = make(attention="mean_pool")
    torch.manual_seed(5)
    adapt(clip, attention="proxy", seed=9)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_a_proxy_checkpoint_as_mean_pool_reports_what_it_drops(tmp_path):
    make().save_pretrained(tmp_path)
    _, report = load_clip_vip(tmp_path, attention="mean_pool")
    assert sorted(report.dropped) == ADDED and "no such weight" in str(report)


# ---- strictness ----


def edited(edit):
    state = released(make())
    edit(state)
    return state


def rename(state, old, new):
    state[f"clipmodel.{new}"] = state.pop(f"clipmodel.{old}")


SCALE, PROJECTION = "clipmodel.logit_scale", "clipmodel.visual_projection.weight"
PARTS = [
    (lambda s: s.pop(SCALE), r"1 missing: logit_scale"),
    (lambda s: s.pop("clipmodel." + ADDED[0]), r"1 missing: vision_model.embeddings.added_cls"),
    (lambda s: s.update({"clipmodel.head.bias": torch.ones(1)}), r"1 left over: head.bias"),
    (
        lambda s: rename(s, "text_projection.weight", "text_projectoin.weight"),
        r"left over: text_projectoin.weight \(nearest: text_projection.weight\)",
    ),
    (
        lambda s: s.update({PROJECTION: torch.ones(64, 32)}),
        r"visual_projection.weight \[64, 32\] instead of \[64, 64\]",
    ),
    (
        lambda s: s[PROJECTION].view(-1)[3:4].fill_(float("nan")),
        r"not finite in 1 weights \(visual_projection",
    ),
    (lambda s: s[PROJECTION].view(-1)[3:4].fill_(float("inf")), r"not finite"),
    (lambda s: s.update({"module.x": torch.ones(1)}), r"DistributedDataParallel"),
    (lambda s: s.update({"clip.visual.proj": torch.ones(1)}), r"CLIP4Clip"),
    (lambda s: s.update({"visual.proj": torch.ones(1)}), r"open_clip or OpenAI state dict"),
]


@pytest.mark.bad_input(
    "weights: names missing, left over, of another shape, or not finite", says="which ones; nothing is loaded"
)
@pytest.mark.parametrize(("edit", "message"), PARTS, ids=[m for _, m in PARTS])
def test_strict_and_nothing_half_loaded(edit, message):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ClipVipError, match=message) as caught:
        load_weights(model, edited(edit))
    said = str(caught.value)
    assert "\n" not in said and ("nothing was loaded" in said or "expected" in said)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_added_weights_may_be_missing_only_when_allowed():
    state = {k: v for k, v in make().state_dict().items() if not is_added(k)}
    with pytest.raises(ClipVipError, match="2 missing"):
        load_weights(make(), state)
    assert list(load_weights(make(), state, allow_added=True).added) == ADDED
    half = make().state_dict()
    del half[ADDED[0]]
    with pytest.raises(ClipVipError, match=r"1 missing: vision_model.embeddings.added_cls"):
        load_weights(make(), half, allow_added=True)


def test_other_numbers_of_frames_and_patches_are_interpolated_only_when_asked():
    state = make(frames=6, image_size=32).state_dict()
    with pytest.raises(ClipVipError, match=r"2 of another shape.*interpolate=True"):
        load_weights(make(frames=3), state)
    model = make(frames=3)
    report = load_weights(model, state, interpolate=True)
    assert set(report.changed) == {ADDED[1], "vision_model.embeddings.position_embedding.weight"}
    old, new = (s["vision_model.embeddings.position_embedding.weight"] for s in (state, model.state_dict()))
    assert torch.equal(new[0], old[0]) and new.shape == (5, 64)
    pairs = state[ADDED[1]].view(1, 3, 2, 64).mean(2)
    torch.testing.assert_close(model.state_dict()[ADDED[1]], pairs)


def test_half_precision_is_widened_and_said():
    model = make()
    half = {k: v.half() for k, v in make().state_dict().items()}
    report = load_weights(model, half)
    assert report.changed["logit_scale"] == "float16 to float32"
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_another_model_of_b16_into_b32(tmp_path):
    save_file(released(make(patch_size=4)), tmp_path / "b16.safetensors")
    with pytest.raises(
        ClipVipError, match=r"2 of another shape: .*patch_embedding.weight \[64, 3, 4, 4\] instead of"
    ):
        load_clip_vip(tmp_path / "b16.safetensors", config=make().config)


# ---- files that are something else ----


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (self.path,)


@pytest.mark.bad_input(
    "weights: a pickle that would run code", says="`would run code, and were not run`; it is not run"
)
def test_a_pickle_that_would_run_code_does_not(tmp_path):
    for name, save in (
        ("zip.pt", torch.save),
        ("bare.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        save({"clipmodel.logit_scale": Bomb(tmp_path / "exploded")}, tmp_path / name)
        with pytest.raises(ClipVipError, match="would run code, and were not run"):
            load_clip_vip(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 600000000\n"
FILES = {
    "empty.pt": (b"", "is empty"),
    "pointer.pt": (LFS, "git-LFS pointer"),
    "pointer.safetensors": (LFS, "git-LFS pointer"),
    "page.pt": (b"\n<!DOCTYPE html><html><body>Sign in", "web page"),
    "noise.pt": (bytes(range(256)) * 4, "expected tensors only"),
    "text.pt": (b"hello there", "not a file of weights"),
    "list.pt": (None, "expected a state dict of named tensors, got list"),
    "steps.pt": (None, "a dict with step: int"),
    "other.pt": (None, "expected the weights of a CLIP-ViP, .*patch_embedding.weight"),
}


@pytest.mark.bad_input(
    "weights: empty, a git-LFS pointer, a web page, noise, text, or no weights",
    says="what it is, such as `git-LFS pointer`",
)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_is_named(name, tmp_path):
    content, message = FILES[name]
    path = tmp_path / name
    values = {"list.pt": [torch.ones(1)], "steps.pt": {"step": 3}, "other.pt": {"fc.weight": torch.ones(1)}}
    path.write_bytes(content) if content is not None else torch.save(values[name], path)
    with pytest.raises(ClipVipError, match=message) as caught:
        load_clip_vip(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.bad_input("weights: cut", says="`damaged`")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_a_file_cut_short_is_named(suffix, keep, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    (torch.save if suffix == "pt" else save_file)(released(make()), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ClipVipError, match="damaged") as caught:
        load_clip_vip(path)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_nothing(open_clip, tmp_path):
    with pytest.raises(ClipVipError, match=r"no file or folder 'ViT-B-33'.*did you mean 'ViT-B-32'"):
        load_clip_vip("ViT-B-33")
    with pytest.raises(
        ClipVipError, match=r"expected pretrained_tag, its weights; tags: .*laion2b_s34b_b79k"
    ):
        load_clip_vip("ViT-B-32")
    with pytest.raises(ClipVipError, match=r"config.json"):
        load_clip_vip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ClipVipError, match=r"expected model.safetensors or pytorch_model.bin"):
        load_clip_vip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file(released(make()), tmp_path / "model.safetensors")
    with pytest.raises(ClipVipError, match=r"of type clip or clip_vip, its config.json says 'bert'"):
        load_clip_vip(tmp_path)


def test_open_clip_models_of_another_kind_are_refused(open_clip):
    resnet = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        text_cfg={"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1},
    )
    with pytest.raises(ClipVipError, match=r"two plain ViT towers.*ModifiedResNet"):
        from_open_clip(resnet)


def test_open_clips_other_text_towers_are_refused_before_anything_is_fetched(open_clip):
    with pytest.raises(ClipVipError, match="another text tower than CLIP's"):
        load_clip_vip("roberta-ViT-B-32", pretrained_tag="laion2b_s12b_b32k")


def test_the_report_reads_well():
    report = LoadReport("x.pt", ["a"], {"b": "zero"}, {"c": "a constant"}, {"d": "float16 to float32"})
    assert str(report).splitlines() == [
        "x.pt: 1 weights loaded",
        "  added b: zero",
        "  dropped c: a constant",
        "  changed d: float16 to float32",
    ]


# ---- what transformers' users call ----


def test_save_and_load_as_transformers_users_do(tmp_path):
    model = make(attention="full", proxies=3, frames=5)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = ClipViP.from_pretrained(tmp_path)
    assert loaded.config.to_dict()["attention"] == "full" and not loaded.training
    same(loaded, model)
    ours, report = load_clip_vip(tmp_path)  # the folder's own attention, unless another is asked for
    assert ours.config.attention == "full" and not report.added
    same(ours, model)


def test_the_model_card_says_what_the_model_is_and_is_not_overwritten(tmp_path):
    model = make(proxies=3, frames=5)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert (
        "library_name: transformers" in card and "| Proxies | 3 |" in card and "pixels, patches of 8" in card
    )
    assert "| Resizing in training | not recorded |" in card
    assert f"| Parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def break_weights(edit):
    def broken(folder):
        state = make().state_dict()
        edit(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return broken


SCALE_NAME, PATCH = "logit_scale", "vision_model.embeddings.patch_embedding.weight"
BROKEN = {
    "missing": (break_weights(lambda s: s.pop(SCALE_NAME)), r"does not fit .*1 missing: logit_scale"),
    "left over": (
        break_weights(lambda s: s.update(head=torch.ones(1))),
        r"does not fit .*1 left over: head",
    ),
    "shape": (
        break_weights(lambda s: s.update({PATCH: torch.ones(64, 3, 4, 4)})),
        r"does not fit .*patch_emb",
    ),
    "NaN": (
        break_weights(lambda s: s[SCALE_NAME].fill_(float("nan"))),
        r"not finite in 1 weights \(logit_scale",
    ),
    "pointer": (lambda f: (f / "model.safetensors").write_bytes(LFS), "git-LFS pointer"),
    "page": (lambda f: (f / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>"), "web page"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:9000]),
        "damaged or cut short",
    ),
}


@pytest.mark.bad_input("weights: a folder with one fault, on two ways of loading", says="one sentence")
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("load", [ClipViP.from_pretrained, load_clip_vip], ids=["transformers", "ours"])
def test_a_broken_folder_is_one_sentence(load, fault, tmp_path, caplog):
    make().save_pretrained(tmp_path)
    edit, message = BROKEN[fault]
    edit(tmp_path)
    if load is load_clip_vip:
        message = r"does not fit the model|" + message
    with pytest.raises(ClipVipError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


# ---- sizes and tags ----


def test_another_image_size_by_interpolation(tmp_path):
    make(image_size=32).save_pretrained(tmp_path)
    loaded, report = load_clip_vip(tmp_path, image_size=16, interpolate=True)
    assert loaded.encode_video(X).shape == (2, 64)
    assert (
        "from 4 x 4 to 2 x 2 patches" in report.changed["vision_model.embeddings.position_embedding.weight"]
    )
    with pytest.raises(ClipVipError, match=r"1 of another shape: .*position_embedding.*interpolate=True"):
        load_clip_vip(tmp_path, image_size=16)


@pytest.mark.bad_input(
    "weights: a TorchScript program", says="`TorchScript program, as OpenAI released CLIP`"
)
def test_torchscript_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(ClipVipError, match=r"TorchScript program, as OpenAI released CLIP.*tag \"openai\""):
        load_clip_vip(tmp_path / "ViT-B-32.pt")


def cached_tag(open_clip, cache, name, tag, state):
    """The weights of a tag where the hub's cache keeps what was downloaded once."""
    repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rstrip("/")
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, folder / "snapshots" / ("0" * 40) / "open_clip_model.safetensors")


@pytest.mark.slow
def test_a_tag_of_open_clip_brings_its_own_activation(open_clip, tmp_path, monkeypatch):
    """OpenAI's weights want QuickGELU and the name ViT-B-32 has GELU: open_clip warns and computes another model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    torch.manual_seed(4)
    theirs = open_clip.create_model("ViT-B-32-quickgelu").eval()
    cached_tag(open_clip, tmp_path, "ViT-B-32", "openai", theirs.state_dict())
    ours, report = load_clip_vip("ViT-B-32", pretrained_tag="openai", attention="mean_pool")
    assert ours.config.vision_config.hidden_act == "quick_gelu" and not report.added
    x = torch.randn(1, 1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_video(x), F.normalize(theirs.encode_image(x[:, 0]), dim=-1))
    with pytest.raises(ClipVipError, match=r"has no weights 'opanai'.*tags: .*laion2b"):
        load_clip_vip("ViT-B-32", pretrained_tag="opanai")
    with pytest.raises(ClipVipError, match=r"could not be downloaded"):
        load_clip_vip("ViT-B-32", pretrained_tag="laion2b_s34b_b79k")


def test_large_finite_weights_are_not_taken_for_infinite():
    state = make().state_dict()
    state[ADDED[0]] = torch.full_like(state[ADDED[0]], 3e38)  # whose sum is infinite
    load_weights(make(), state)


# ---- what looked right and was not ----


SILENT = {
    "twice": (lambda s: s.update({"logit_scale": torch.tensor(99.0)}), "holds logit_scale twice, under two spellings"),
    "infinite once cast": (
        lambda s: s.update({SCALE: torch.tensor(1e300, dtype=torch.float64)}),
        r"not finite in 1 weights \(logit_scale",
    ),
    "whole numbers": (lambda s: s.update({SCALE: torch.tensor(3)}), r"1 of a type .*: logit_scale int64"),
    "complex": (lambda s: s.update({SCALE: torch.tensor(3 + 1j)}), r"1 of a type .*: logit_scale complex64"),
    "sparse": (lambda s: s.update({PROJECTION: s[PROJECTION].to_sparse()}), r"1 of a type .*visual_projection"),
    "an empty stranger": (lambda s: s.update({"clipmodel.head.bias": torch.empty(0)}), "1 left over: head.bias"),
    "positions that do not count": (
        lambda s: s.update({"clipmodel.vision_model.embeddings.position_ids": torch.ones(5, 5)}),
        "1 left over: vision_model.embeddings.position_ids",
    ),
    "torch.compile's prefix": (lambda s: s.update({"_orig_mod.x": torch.ones(1)}), "torch.compile"),
    "CLIP4Clip in DistributedDataParallel": (lambda s: s.update({"module.clip.x": torch.ones(1)}), "CLIP4Clip"),
    "a name in two lines": (lambda s: s.update({"a\nb": torch.ones(1)}), "1 left over: a b"),
}  # fmt: skip


@pytest.mark.bad_input(
    "weights: doubled names, other types, empty strangers, other prefixes",
    says="which ones; nothing is loaded",
)
@pytest.mark.parametrize("fault", SILENT)
def test_nothing_is_taken_silently(fault):
    edit, message = SILENT[fault]
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ClipVipError, match=message) as caught:
        load_weights(model, edited(edit), own=True)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_trained_proxies_are_not_dropped_for_fewer(tmp_path):
    make(proxies=4).save_pretrained(tmp_path)
    with pytest.raises(ClipVipError, match=r"1 left over: vision_model.embeddings.added_cls"):
        load_clip_vip(tmp_path, proxies=1)
    with pytest.raises(ClipVipError, match="proxies= for the network"):
        ClipViP.from_pretrained(tmp_path, proxies=2)
    with pytest.raises(ClipVipError, match="attention is part of the model"):
        ClipViP.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_weights_that_shared_memory_in_the_file_do_not_in_the_model(tmp_path):
    state = released(make(frames=5, hidden_act="quick_gelu"))
    bias = "clipmodel.vision_model.encoder.layers.{}.layer_norm1.bias"
    state[bias.format(0)] = state[bias.format(1)] = torch.zeros(64)
    state["clipmodel.vision_model.post_layernorm.bias"] = torch.zeros(1).expand(64)
    torch.save(state, tmp_path / "shared.pt")
    loaded, _ = load_clip_vip(tmp_path / "shared.pt")
    layers = loaded.vision_model.encoder.layers
    with torch.no_grad():
        layers[0].layer_norm1.bias.add_(1)
        loaded.vision_model.post_layernorm.bias[0] = 7
    assert layers[1].layer_norm1.bias.sum() == 0 and loaded.vision_model.post_layernorm.bias.sum() == 7
    loaded.save_pretrained(tmp_path / "again")


def test_what_a_bare_file_does_not_tell_is_asked_for_or_said(tmp_path):
    torch.save(released(make(hidden_act="quick_gelu")), tmp_path / "a.pt")
    _, report = load_clip_vip(tmp_path / "a.pt")
    assert set(report.assumed) == {"heads", "activation", "proxies"} and "assumed activation" in str(report)
    torch.save(released(make(width=96, heads=3)), tmp_path / "b.pt")
    with pytest.raises(ClipVipError, match=r"96 and 96 wide.*give config="):
        load_clip_vip(tmp_path / "b.pt")
    loaded, report = load_clip_vip(tmp_path / "b.pt", config=make(width=96, heads=3).config)
    assert loaded.config.vision_config.num_attention_heads == 3 and not report.assumed


@pytest.mark.parametrize("size", [-16, 4, "16", [16, 16]])
def test_an_image_size_that_is_none(size, tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ClipVipError, match="image_size= expected the side of a square image"):
        load_clip_vip(tmp_path, image_size=size)


def test_a_clip_with_another_end_of_text_is_refused(tmp_path):
    model = make()
    model.config.text_config.eos_token_id = 5
    model.save_pretrained(tmp_path)
    with pytest.raises(ClipVipError, match="ends its texts with token 5"):
        load_clip_vip(tmp_path)


MALFORMED = {
    "patch": {PATCH: torch.ones(64, 3)},
    "projection": {"visual_projection.weight": torch.tensor(1.0)},
    "layer": {"vision_model.encoder.layers.x.foo": torch.ones(1)},
}


@pytest.mark.bad_input("weights: of a malformed shape or name", says="one sentence")
@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_weights_are_one_sentence(what, tmp_path):
    torch.save(make().state_dict() | MALFORMED[what], tmp_path / "bad.pt")
    with pytest.raises(ClipVipError, match="bad.pt") as caught:
        load_clip_vip(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.bad_input(
    "weights: an index that is none, or leads out of the folder",
    says="`expected a weight_map from names to files of this folder`",
)
@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"logit_scale": "../x.bin"}}']
)
def test_an_index_that_is_none(content, tmp_path):
    make().save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ClipVipError, match="expected a weight_map from names to files of this folder"):
        load_clip_vip(tmp_path)


@pytest.mark.bad_input(
    "weights: a web page, a gzip archive or a GGUF file", says="`web page`, `a gzip archive` or `a GGUF file`"
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf<!DOCTYPE html>", "web page"),
        (b"<!-- gone --><html>", "web page"),
        (b'{"error": "Repository not found"}', "web page"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "a gzip archive"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    ],
)
def test_more_files_that_are_something_else(content, message, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ClipVipError, match=message):
        load_clip_vip(tmp_path / "weights.pt")


@pytest.mark.bad_input("weights: two models in one file", says="`more than one place (state_dict, model)`")
def test_two_state_dicts_in_one_file_are_not_chosen_from(tmp_path):
    state = make().state_dict()
    torch.save({"model": state, "state_dict": state}, tmp_path / "two.pt")
    with pytest.raises(ClipVipError, match=r"more than one place \(state_dict, model\)"):
        load_clip_vip(tmp_path / "two.pt")


def test_half_precision_reports_in_one_line():
    report = load_weights(make(), {k: v.half() for k, v in make().state_dict().items()})
    changed = [line for line in str(report).splitlines() if "changed" in line]
    assert len(changed) == 1 and f"and {len(report.changed) - 3} more: float16 to float32" in changed[0]


# ---- configurations that nothing could build ----


@pytest.mark.bad_input(
    "weights: a configuration of a million layers, or of enormous widths",
    says="`layers: expected at most 1000` or `expected about as many`, within 20 seconds",
)
@pytest.mark.parametrize(
    ("part", "field", "number", "words"),
    [
        (
            "vision_config",
            "num_hidden_layers",
            1_000_000,
            "a configuration of 1000000 layers: expected at most 1000",
        ),
        ("text_config", "num_hidden_layers", 10**30, "layers: expected at most 1000"),
        (None, "sequence_layers", 1_000_000, "layers: expected at most 1000"),
        ("vision_config", "hidden_size", 64 * 10**6, "would hold about [0-9,]+: expected about as many"),
        ("text_config", "intermediate_size", 10**9, "expected about as many"),
        ("text_config", "max_position_embeddings", 10**12, "expected about as many"),
        ("vision_config", "image_size", 8 * 10**8, "expected about as many"),
        (None, "proxies", 10**9, "expected about as many"),
        (None, "temporal_size", 10**9, "expected about as many"),
    ],
)
def test_a_configuration_without_bounds_is_refused_at_once(tmp_path, part, field, number, words):
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    (config if part is None else config[part])[field] = number
    path.write_text(json.dumps(config))
    start = time.monotonic()
    with pytest.raises(ClipVipError, match=words):
        load_clip_vip(tmp_path)
    assert time.monotonic() - start < 20


@pytest.mark.bad_input(
    "weights: a name of layer 999,999,999",
    says="`a configuration of 1000000000 layers: expected at most 1000`",
)
def test_a_files_name_of_a_layer_does_not_set_the_depth_without_bounds(tmp_path):
    state = released(make(hidden_act="quick_gelu"))
    state["clipmodel.vision_model.encoder.layers.999999999.mlp.fc1.bias"] = torch.zeros(1)
    torch.save(state, tmp_path / "deep.pt")
    with pytest.raises(ClipVipError, match="a configuration of 1000000000 layers: expected at most 1000"):
        load_clip_vip(tmp_path / "deep.pt")


# ---- what a file does not tell, and what other programs put before names ----


@pytest.fixture(scope="module")
def plain(open_clip):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_clip.create_model("ViT-S-32").state_dict()


@pytest.mark.parametrize("prefix", ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."))
def test_an_open_clip_file_may_be_wrapped_and_its_activation_is_assumed(plain, tmp_path, prefix):
    torch.save({prefix + name: value for name, value in plain.items()}, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = load_clip_vip("ViT-S-32", pretrained_tag=tmp_path / "w.pt", attention="mean_pool")
    assert report.assumed["activation"].startswith("GELU, by the name ViT-S-32; a file does not tell")
    assert "activation" in str(report) and torch.equal(
        model.state_dict()["visual_projection.weight"], plain["visual.proj"].T
    )


@pytest.mark.bad_input(
    "weights: names with a wrapper's prefix", says="`names that start with`, and how to save them without it"
)
@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("_orig_mod.", "save model._orig_mod.state_dict"),
        ("module.", "save model.module.state_dict"),
        ("module._orig_mod.", "save model.module._orig_mod.state_dict"),
        ("_orig_mod.module.", "save model._orig_mod.module.state_dict"),
    ],
)
def test_the_advice_on_a_prefix_is_the_one_that_helps(tmp_path, prefix, advice):
    torch.save({prefix + name: value for name, value in released(make()).items()}, tmp_path / "w.pt")
    with pytest.raises(ClipVipError, match=f"names that start with '{prefix}': .*{advice}"):
        load_clip_vip(tmp_path / "w.pt")
