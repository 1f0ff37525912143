"""Reads golden OFA cases (vectors made by the authors' code) and compares our OFA with every vector in them.

A case is a folder with case.json and vectors.safetensors; weights are in weights.safetensors or follow
rule_weights.py from ``weight_seed``. Everything is built from these files alone; a vector that no comparison
knows is an error, and so is a missing one, so no case can pass by being empty.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from clipvip_lib.captioner_training import label_smoothed_loss
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import (
    OFA,
    OFAConfig,
    image_buckets,
    image_position_ids,
    ofa_preprocess,
    ofa_resize,
    ofa_state_dict,
    token_offset_buckets,
)

FOLDER = Path(os.environ.get("CLIPVIP_GOLDENS") or Path(__file__).parent / "goldens") / "ofa"
TOLERANCE = {"encoder": 5e-5, "logits": 2e-4, "score": 1e-4, "gradient": 1e-4, "exact": 0.0}


class Row(NamedTuple):
    """One compared quantity: its largest difference and the one allowed."""

    quantity: str
    difference: float
    tolerance: float


def names() -> list[str]:
    """Folders with a case.json, sorted; raises when there is none."""
    found = sorted(path.parent.name for path in FOLDER.glob("*/case.json"))
    if not found:
        raise AssertionError(f"no golden case under {FOLDER}")
    return found


def rule_weights(layout: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Weights of a layout by the rule of rule_weights.py."""
    spec = importlib.util.spec_from_file_location("rule_weights", FOLDER / "rule_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.det_state_dict(layout, seed)


def layouts() -> dict[str, dict]:
    """Per released size: config, unique_parameters, buffers, state_dict (key -> [shape, dtype])."""
    return json.loads((FOLDER / "state_dict_layouts.json").read_text())


class Case:
    """One case: its configuration, inputs and reference vectors, and our model with its weights."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, FOLDER / name
        self.info = json.loads((self.folder / "case.json").read_text())
        self.vectors = load_file(self.folder / "vectors.safetensors")
        self.config = OFAConfig.from_dict({"dropout": 0.0, **self.info["config"]})
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(key)
        return self.vectors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.vectors

    def starting(self, prefix: str) -> list[str]:
        return sorted(key for key in self.vectors if key.startswith(prefix))

    def model(self) -> OFA:
        model = OFA(self.config).eval()
        model.load_state_dict(self.weights(model))
        return model

    def weights(self, model: OFA) -> dict[str, Tensor]:
        if (self.folder / "weights.safetensors").exists():
            raw = load_file(self.folder / "weights.safetensors")
        else:
            own = {key: list(value.shape) for key, value in model.state_dict().items()}
            raw = rule_weights(own, self.info["weight_seed"])
        return ofa_state_dict(raw)[0]

    @functools.cached_property
    def images(self) -> Tensor:
        if "in.patch_images" in self:
            return self["in.patch_images"]
        raw = [self[key].numpy() for key in self.starting("in.raw_image.")]
        return ofa_preprocess(raw, self.info["resolution"])

    def settings(self) -> dict[str, BeamSettings]:
        """The beam settings by fairseq's rule; Hugging Face's other rule is not ours."""
        names = {"len_penalty": "lenpen"}
        known = {
            "beam_size",
            "max_len_a",
            "max_len_b",
            "min_len",
            "lenpen",
            "no_repeat_ngram_size",
            "temperature",
        }
        found = {}
        for name, raw in self.info["gen"].items():
            if isinstance(raw, dict) and raw.get("kind", "fairseq") == "fairseq":
                named = {names.get(key, key): value for key, value in raw.items()}
                found[name] = BeamSettings(**{key: value for key, value in named.items() if key in known})
        return found


def difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference; shapes must be equal."""
    assert ours.shape == reference.shape, f"{list(ours.shape)} against {list(reference.shape)}"
    return float((ours.double() - reference.double()).abs().max())


def compare(case: Case) -> list[Row]:
    """Every quantity of a case. Raises when the case lacks one it needs or holds one that is not known."""
    with torch.no_grad():
        model = case.model()
        rows = [
            *compare_preprocessing(case),
            *compare_tables(case, model),
            *compare_outputs(case, model),
            *compare_beams(case, model),
        ]
    rows += compare_training(case)
    ignored = {
        key for key in case.vectors if key.startswith("gen.") and key.split(".")[1] not in case.settings()
    }
    unknown = set(case.vectors) - case.seen - ignored
    assert not unknown, f"case {case.name} has vectors that nothing compares: {sorted(unknown)}"
    return rows


def compare_preprocessing(case: Case) -> list[Row]:
    rows = []
    for number, key in enumerate(case.starting("in.raw_image.")):
        resized = torch.tensor(ofa_resize(case[key].numpy(), case.info["resolution"]))
        rows.append(Row(f"resize {number}", difference(resized, case["in.resized_u8"][number]), 0.0))
    if "in.patch_corner" in case:
        corner = case["in.patch_corner"]
        ours = case.images[:, :, : corner.shape[2], : corner.shape[3]]
        rows.append(Row("normalised pixels", difference(ours, corner), 1e-6))
    return rows


def compare_tables(case: Case, model: OFA) -> list[Row]:
    """Position ids, relative buckets and biases."""
    encoder, config, rows = model.encoder, case.config, []
    stride = config.image_bucket_size
    ids = image_position_ids(*[-(-side // 16) for side in case.images.shape[2:]], stride)
    length = case["in.input_ids"].shape[1]
    for key in case.starting("tab."):
        reference = case[key]
        if key.endswith("token_rp_by_offset"):
            ours = token_offset_buckets(config.token_bucket_size)
        elif key == "tab.image_position_ids":
            ours = ids
        elif key == "tab.image_rp_for_grid":
            ours = image_buckets(ids, stride)
        elif key == "tab.image_rp_bucket.head":
            ours = image_buckets(torch.arange(len(reference)), stride)
        elif key.startswith("tab.enc_image_rel_bias.layer"):
            ours = encoder.image_bias(int(key.rsplit("layer", 1)[1]), image_buckets(ids, stride))[0]
        elif key.startswith("tab.enc_token_rel_bias.layer"):
            ours = encoder.token_bias(int(key.rsplit("layer", 1)[1]), length)[0]
        else:
            raise AssertionError(f"unknown table {key}")
        rows.append(Row(key, difference(ours, reference), 0.0))
    return rows


def record(model: OFA, ids: Tensor, images: Tensor | None, decoder_ids: Tensor) -> dict[str, Tensor]:
    """Run the model and keep all intermediate results under the names of the golden vectors."""
    kept: dict[str, Tensor] = {}
    hooks = []

    def layer_hook(side: str, number: int):
        def hook(module, inputs, output):
            kept[f"{side}.hidden.{number}"] = inputs[0]
            kept[f"{side}.hidden.{number + 1}"] = output

        return hook

    def attention_hook(name: str):
        def hook(module, inputs):
            x, keys, _, bias = inputs
            kept[name] = module.weights(x, keys, bias)

        return hook

    for side, part in (("enc", model.encoder), ("dec", model.decoder)):
        for number, layer in enumerate(part.layers):
            hooks.append(layer.register_forward_hook(layer_hook(side, number)))
            name = f"{side}.attn.{number}" if side == "enc" else f"{side}.self_attn.{number}"
            hooks.append(layer.self_attn.register_forward_pre_hook(attention_hook(name)))
            if side == "dec":
                hook = attention_hook(f"dec.cross_attn.{number}")
                hooks.append(layer.cross_attn.register_forward_pre_hook(hook))
    hooks.append(
        model.encoder.embed_images.register_forward_hook(lambda m, i, out: kept.update({"resnet_out": out}))
    )
    encoded = model.encode(ids, images)
    kept["logits"] = model.decode(decoder_ids, encoded)
    for hook in hooks:
        hook.remove()
    kept["enc.last_hidden_state"], kept["enc.padding_mask"] = encoded.hidden, encoded.padding
    kept["enc.position_embedding"] = encoded.positions.expand(len(ids), -1, -1)
    return kept


def compare_outputs(case: Case, model: OFA) -> list[Row]:
    """Hidden states, attention weights and logits, whole or in the samples that a large case keeps."""
    ids, decoder_ids = case["in.input_ids"], case["in.decoder_input_ids"]
    ours = record(model, ids, case.images, decoder_ids)
    text_keys = case.starting("out.text_only.")
    text = record(model, ids, None, decoder_ids) if text_keys else {}
    rows = []
    for key in case.starting("out."):
        if key in ("out.enc.rows", "out.logits.top50.indices"):  # read by their neighbours
            continue
        if key.startswith("out.text_only."):
            value = text[key.removeprefix("out.text_only.")]
        else:
            value = sampled(case, key.removeprefix("out."), ours)
        rows.append(Row(key, difference(*at_tokens(key, value, case[key], decoder_ids)), tolerance(key)))
    compared = {row.quantity for row in rows}
    for needed in ("out.enc.last_hidden_state", "out.logits"):
        assert any(key.startswith(needed) for key in compared), f"case {case.name} lacks {needed}"
    return rows


def tolerance(key: str) -> float:
    """Hidden states inside the stack are about four times as large as the normalised output."""
    if "logits" in key:
        return TOLERANCE["logits"]
    return 1e-4 if "hidden." in key or "resnet" in key else TOLERANCE["encoder"]


def at_tokens(key: str, ours: Tensor, reference: Tensor, decoder_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Only the decoder's non-pad positions: the two authors' codes differ at padding."""
    if "logits" in key or ".dec.hidden" in key:
        keep = decoder_ids != 1
        return ours[keep], reference[keep]
    return ours, reference


def sampled(case: Case, key: str, ours: dict[str, Tensor]) -> Tensor:
    """Our value of a vector of which the case keeps only some rows or columns."""
    if key in ours:
        return ours[key]
    logits, features = ours["logits"], ours["resnet_out"]
    if key == "enc.last_hidden_state.rows":
        return ours["enc.last_hidden_state"][:, case["out.enc.rows"]]
    if key.endswith(".first_last"):
        hidden = ours[key.removesuffix(".first_last")]
        cells = hidden.shape[1] - case["in.input_ids"].shape[1]
        return hidden[:, [0, 1, cells, -1]]  # two cells, <s>, the last token
    if key == "resnet.slice":
        shape = case["out.resnet.slice"].shape
        return features[:, : shape[1], : shape[2], : shape[3]]
    if key == "resnet.mean_std":
        some = features[:, : case["out.resnet.mean_std"].shape[1]].double().flatten(2)
        return torch.stack([some.mean(2), some.std(2)], 2)
    columns = {
        "logits.head": lambda: logits[..., : case["out.logits.head"].shape[-1]],
        "logits.tail": lambda: logits[..., -case["out.logits.tail"].shape[-1] :],
        "logits.logsumexp": lambda: logits.logsumexp(-1),
        "logits.top50.values": lambda: logits.gather(-1, case["out.logits.top50.indices"]),
    }
    return columns[key]()


def compare_beams(case: Case, model: OFA) -> list[Row]:
    """Tokens equal and scores near for every setting, every image and every hypothesis."""
    settings = case.settings()
    assert settings, f"case {case.name} has no beam setting by fairseq's rule"
    rows = []
    for name, setting in settings.items():
        found = beam_search(model, case["in.input_ids"], case.images, setting)
        tokens, scores = case[f"gen.{name}.tokens"], case[f"gen.{name}.scores"]
        positional = case[f"gen.{name}.positional_scores"]
        for image, hypotheses in enumerate(found):
            reference = [[token for token in row if token not in (-1, 1)] for row in tokens[image].tolist()]
            ours = [hypothesis.tokens for hypothesis in hypotheses]
            assert ours == reference, f"{case.name} {name}: image {image} gives {ours}, expected {reference}"
        ours = torch.tensor([[hypothesis.score for hypothesis in one] for one in found])
        rows.append(Row(f"gen.{name}.scores", difference(ours, scores), TOLERANCE["score"]))
        ours = torch.zeros_like(positional)
        for image, hypotheses in enumerate(found):
            for rank, hypothesis in enumerate(hypotheses):
                ours[image, rank, : len(hypothesis.tokens)] = torch.tensor(hypothesis.token_scores)
        ours[tokens < 2] = positional[tokens < 2]
        rows.append(Row(f"gen.{name}.positional_scores", difference(ours, positional), TOLERANCE["score"]))
    return rows


def compare_training(case: Case) -> list[Row]:
    """Loss, gradients and running statistics of one training step; nothing for a case without labels.

    In float64, so that only the reference's own rounding is left: statistics of a tiny batch magnify it.
    """
    given = [key for key in case.info if key.startswith("train.")]
    if not given + case.starting("train.") + case.starting("grad."):
        return []
    ids, decoder_ids = case["in.input_ids"], case["in.decoder_input_ids"]
    labels = case["in.labels"].masked_fill(case["in.labels"] < 0, 1).flatten()
    model = case.model().double().train()
    logits = model(ids, case.images.double(), decoder_ids)
    loss = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=1)
    loss.backward()
    compared = at_tokens("logits", logits.detach(), case["train.logits"], decoder_ids)
    return [
        Row("train.logits", difference(*compared), TOLERANCE["logits"]),
        Row("train.ce", abs(loss.item() - case.info["train.ce_mean_ignore_pad"]), 1e-4),
        *compare_smoothed(case, logits.detach().flatten(0, 1), labels),
        *compare_gradients(case, model),
        *compare_statistics(case, model),
    ]


def compare_gradients(case: Case, model: OFA) -> list[Row]:
    """Whole gradients, and the norms of all others whose gradient is not zero in exact arithmetic."""
    gradient = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    rows = []
    for key in case.starting("grad."):
        reference = case[key]
        ours = gradient[key.removeprefix("grad.")]
        rows.append(
            Row(key, difference(ours, reference) / float(reference.abs().max()), TOLERANCE["gradient"])
        )
    noise = set(case.info["train.grad_noise_only"])
    norms = {key: value for key, value in case.info["train.grad_norm"].items() if key not in noise and value}
    worst = max(abs(float(gradient[key].norm()) / value - 1) for key, value in norms.items())
    return [*rows, Row(f"{len(norms)} gradient norms", worst, TOLERANCE["gradient"])]


def compare_statistics(case: Case, model: OFA) -> list[Row]:
    """BatchNorm's running statistics of the stem after the step."""
    rows = []
    for statistic in ("running_mean", "running_var"):
        ours = getattr(model.encoder.embed_images.bn1, statistic)
        rows.append(Row(f"bn1.{statistic}", difference(ours, case[f"train.bn1.{statistic}_after"]), 1e-5))
    return rows


def compare_smoothed(case: Case, logits: Tensor, labels: Tensor) -> list[Row]:
    rows = []
    for key in case.info:
        if key.startswith("train.label_smoothed_eps"):
            reference = case.info[key]
            loss, nll, tokens = label_smoothed_loss(
                logits, labels, float(key.removeprefix("train.label_smoothed_eps"))
            )
            assert int(tokens) == reference["ntokens"]
            rows.append(Row(key, abs(float(loss) / reference["loss_sum"] - 1), 1e-5))
            rows.append(Row(key + " nll", abs(float(nll) / reference["nll_sum"] - 1), 1e-5))
    return rows
