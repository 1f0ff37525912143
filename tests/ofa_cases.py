"""Compares our OFA with every vector of a golden case (ofa_format.py).

Everything is built from case.json and the vectors; weights are in weights.safetensors or follow rule_weights.py
from ``weight_seed``. Beams of kind "hf" follow Hugging Face's other rule, which is not ours: only greedy ones are
compared.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import runpy
from collections.abc import Iterator

import torch
from equality import largest, relative, where_large
from golden_files import FOLDER as GOLDENS
from golden_files import Case, Row, read, shared
from ofa_format import BEAM, BEAM_OPTIONS, beams, case_images, kind_of, numbered, trains
from torch import Tensor
from torch.nn import functional as F

from clipvip_lib.captions.captioner_training import label_smoothed_loss
from clipvip_lib.data.transform import resize
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import (
    OFA,
    PAD,
    OFAConfig,
    image_buckets,
    image_position_ids,
    ofa_state_dict,
    token_offset_buckets,
)

FOLDER = GOLDENS / "ofa"
ENCODER, LOGITS, SCORE = 5e-5, 2e-4, 1e-4
HIDDEN = 1e-5  # relative: what is not normalised grows with the depth, above all the ResNet's features
# Of a training step, against a reference in float32; all but the last relative.
TRAINED, GRADIENT, LOSS, STATISTIC = 2e-5, 1e-4, 1e-5, 1e-5
# Statistics of a tiny batch magnify rounding. A gradient may be off by so many times what ours in float32 are: the
# largest of passes that are all right, the batch turned round or not, pixels moved by a rounding error or not. Of
# 60 random models a right gradient was off by more than twice a single pass 12 times (once 1300 times: a ReLU's
# input had another sign), more than twice the largest of these never.
ROUNDING = 2.0
PASSES = ((False, 0), (True, 0), (False, 1), (False, 2), (False, 3), (False, 4))  # turned, seed of what moves

# ------------------------------------------------------------------------------------------- comparisons


def groups(case: Case) -> list[str]:
    """The names of what ``compare`` can compare in this case."""
    found = ["preprocessing"] if case.starting("in.raw_image.") else []
    found += ["position tables"] if case.starting("tab.") else []
    found += ["encoder"]
    found += ["decoder"] if case.starting("out.dec.") else []
    found += ["logits"]
    found += ["text only"] if case.starting("out.text_only.") else []
    for name, raw in beams(case).items():
        if kind_of(raw) != "hf" or raw.get("num_beams") == 1:
            found.append(f"beam {name}")
    return found + (["loss", "gradients", "BatchNorm"] if trains(case) else [])


def compare(case: Case, group: str) -> Iterator[Row]:
    simple = {
        "preprocessing": compare_preprocessing,
        "position tables": compare_tables,
        "loss": compare_losses,
        "gradients": compare_gradients,
        "BatchNorm": compare_statistics,
    }
    if group in simple:
        yield from simple[group](case)
    elif group.startswith("beam "):
        yield from compare_beam(case, group.removeprefix("beam "))
    else:
        yield from compare_outputs(case, group)


def compare_preprocessing(case: Case) -> Iterator[Row]:
    """Resized bytes, and what they become before the network."""
    raw = numbered(case, "in.raw_image.")
    assert len(raw) == len(case["in.resized_u8"]), "expected one resized image for each raw one"
    for number, key in enumerate(raw):
        ours = torch.tensor(resize(case[key].numpy(), case.info["resolution"], antialias=True))
        yield Row(f"resized bytes, image {number}", largest(ours, case["in.resized_u8"][number]), 0.0)
    for key in sorted({"in.patch_corner", "in.patch_images"} & case.keys):
        ours = case_images(case)[:, :, : case[key].shape[2], : case[key].shape[3]]
        yield Row(f"normalised pixels ({key})", largest(ours, case[key]), 1e-6)


def compare_tables(case: Case) -> Iterator[Row]:
    """Position ids, relative buckets, and the biases looked up by them."""
    encoder, config = model(case.name).encoder, model(case.name).config
    stride, length = config.image_bucket_size, case["in.input_ids"].shape[1]
    ids = image_position_ids(*(-(-side // 16) for side in case_images(case).shape[2:]), stride)
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
            ours = encoder.image_bias(int(key.rpartition("layer")[2]), image_buckets(ids, stride))[0]
        else:
            ours = encoder.token_bias(int(key.rpartition("layer")[2]), length)[0]
        yield Row(key.removeprefix("tab.") + " table", largest(ours, reference), 0.0)


def compare_outputs(case: Case, group: str) -> Iterator[Row]:
    """Hidden states, attention weights and logits, whole or in the samples that the case keeps."""
    prefix = {"encoder": ("out.enc.", "out.resnet"), "decoder": ("out.dec.",), "logits": ("out.logits",)}
    text = group == "text only"
    wanted = ("out.text_only.",) if text else prefix[group]
    ours = outputs(case.name, text)
    for key in sorted(key for key in case.keys if key.startswith(wanted)):
        if re.fullmatch(r"out\.enc\.rows|out\.logits\.top\d+\.indices", key):  # read by their neighbours
            continue
        name = key.removeprefix("out.").removeprefix("text_only.")
        pair = at_tokens(case, name, sampled(case, name, ours), case[key])
        quantity = key.removeprefix("out.")
        if "hidden." in name or "resnet" in name:
            yield Row(f"{quantity}, relative", where_large(*pair), HIDDEN)
        else:
            yield Row(quantity, largest(*pair), LOGITS if name.startswith("logits") else ENCODER)


def at_tokens(case: Case, name: str, ours: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Of the decoder only the positions of tokens: the authors' two codes differ at padding."""
    keep = case["in.decoder_input_ids"] != PAD
    if "_attn." in name:  # [B, H, U, .]
        ours, reference = ours.transpose(1, 2), reference.transpose(1, 2)
    decoder = name.startswith(("logits", "dec."))
    return (ours[keep], reference[keep]) if decoder else (ours, reference)


def sampled(case: Case, name: str, ours: dict[str, Tensor]) -> Tensor:
    """Our value of a vector of which the case perhaps keeps only some rows or columns."""
    if name in ours:
        return ours[name]
    if name == "enc.last_hidden_state.rows":
        return ours["enc.last_hidden_state"][:, case["out.enc.rows"]]
    if name.endswith(".first_last"):
        hidden = ours[name.removesuffix(".first_last")]
        cells = hidden.shape[1] - case["in.input_ids"].shape[1]
        return hidden[:, [0, 1, cells, -1]]  # two cells, <s>, the last token
    if name.startswith("resnet."):
        return sampled_features(case, name, ours["resnet_out"])
    logits = ours["logits"]
    if name == "logits.logsumexp":
        return logits.logsumexp(-1)
    if name.startswith("logits.top"):
        return logits.gather(-1, case[f"out.{name.removesuffix('values')}indices"])
    columns = case[f"out.{name}"].shape[-1]
    return logits[..., :columns] if name == "logits.head" else logits[..., -columns:]


def sampled_features(case: Case, name: str, features: Tensor) -> Tensor:
    """A corner of the ResNet's features, or mean and deviation of its first channels."""
    shape = case[f"out.{name}"].shape
    if name == "resnet.slice":
        return features[:, : shape[1], : shape[2], : shape[3]]
    some = features[:, : shape[1]].double().flatten(2)
    return torch.stack([some.mean(2), some.std(2)], 2)


@torch.no_grad()
def compare_beam(case: Case, name: str) -> Iterator[Row]:
    """Tokens of every image and hypothesis, scores, and the log-probability of every token."""
    raw = beams(case)[name]
    found = beam_search(model(case.name), case["in.input_ids"], case_images(case), settings(raw))
    ours = [[one.tokens for one in hypotheses] for hypotheses in found]
    if kind_of(raw) == "hf":
        theirs = [[words(row)[1:]] for row in case[f"gen.{name}.sequences"].tolist()]
    else:
        tokens = case[f"gen.{name}.tokens"].tolist()
        theirs = [[words(row) for row in rows if words(row)] for rows in tokens]
    wrong = [image for image in range(max(len(ours), len(theirs))) if ours[image:][:1] != theirs[image:][:1]]
    where = (
        f"image {wrong[0]}: got {ours[wrong[0] :][:1]}, expected {theirs[wrong[0] :][:1]}" if wrong else ""
    )
    yield Row(f"beam {name}, images with other tokens", len(wrong), 0, where)
    if kind_of(raw) == "hf":
        return
    scores, positional = case[f"gen.{name}.scores"], case[f"gen.{name}.positional_scores"]
    pairs = [(i, k, one) for i, hypotheses in enumerate(found) for k, one in enumerate(hypotheses)]
    ours = torch.tensor([one.score for _, _, one in pairs])
    yield Row(f"beam {name}, scores", largest(ours, torch.stack([scores[i, k] for i, k, _ in pairs])), SCORE)
    ours = torch.tensor([value for _, _, one in pairs for value in one.token_scores])
    theirs = torch.cat([positional[i, k, : len(one.tokens)] for i, k, one in pairs])
    yield Row(f"beam {name}, scores of tokens", largest(ours, theirs), SCORE)


def words(row: list[int]) -> list[int]:
    """A row without what fills it up."""
    return [token for token in row if token not in (-1, PAD)]


def settings(raw: dict) -> BeamSettings:
    """Settings of a beam; a greedy one of Hugging Face is a beam of one hypothesis by fairseq's rule."""
    if kind_of(raw) == "hf":
        ngram, longest = raw.get("no_repeat_ngram_size", 0), raw["max_length"] - 2  # without <s> and </s>
        return BeamSettings(1, longest, min_len=0, no_repeat_ngram_size=ngram)
    known = {key: value for key, value in raw.items() if key in BEAM.keys() | BEAM_OPTIONS}
    if "len_penalty" in known:
        known["lenpen"] = known.pop("len_penalty")
    return BeamSettings(**known)


def compare_losses(case: Case) -> Iterator[Row]:
    """Logits of a training step, and the two losses."""
    logits = trained(case.name)[1]
    ours, theirs = at_tokens(case, "logits", logits, case["train.logits"])
    yield Row("training logits, relative", relative(ours, theirs), TRAINED)
    logits, labels = logits.flatten(0, 1), case_labels(case).flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=PAD)
    told = case.info["train.ce_mean_ignore_pad"]
    yield Row("cross-entropy, relative", abs(float(loss) / told - 1), LOSS)
    for key in sorted(key for key in case.info if key.startswith("train.label_smoothed_eps")):
        told, epsilon = case.info[key], key.removeprefix("train.label_smoothed_eps")
        loss, nll, tokens = label_smoothed_loss(logits, labels, float(epsilon))
        assert int(tokens) == told["ntokens"], f"{key} expected {told['ntokens']} tokens, got {int(tokens)}"
        quantity = f"label-smoothed loss, epsilon {epsilon}"
        yield Row(f"{quantity}, relative", abs(float(loss) / told["loss_sum"] - 1), LOSS)
        yield Row(f"{quantity}, unsmoothed part, relative", abs(float(nll) / told["nll_sum"] - 1), LOSS)


def compare_gradients(case: Case) -> Iterator[Row]:
    """Whole gradients, and the norms of all others whose gradient is not zero in exact arithmetic."""
    ours, rounded = gradients(trained(case.name)[0]), rounding(case.name)
    whole = {}
    for key in case.starting("grad."):
        name = key.removeprefix("grad.")
        assert name in ours, f"{key}: our {name} has no gradient"
        whole[name] = relative(ours[name], case[key])
    allowed = {name: max(GRADIENT, ROUNDING * rounded[name][0]) for name in whole}
    yield worst(f"gradients of {len(whole)} parameters, relative", whole, allowed)
    noise, norms = set(case.info["train.grad_noise_only"]), case.info["train.grad_norm"]
    told = {name: value for name, value in norms.items() if name not in noise and value}
    learning = {name for name, gradient in ours.items() if gradient.any()} - noise
    names = {name for name, _ in model(case.name).named_parameters()}
    other = set(norms) ^ names | set(told) ^ learning
    assert not other, f"train.grad_norm and our model differ in what has a gradient: {sorted(other)}"
    found = {name: abs(float(ours[name].norm()) / value - 1) for name, value in told.items()}
    allowed = {name: max(GRADIENT, ROUNDING * rounded[name][1]) for name in found}
    yield worst(f"norms of {len(found)} gradients, relative", found, allowed)
    still = {name: float(ours[name].norm()) for name in noise & set(ours)}
    if still:
        yield worst(f"norms of {len(still)} gradients that are zero", still, dict.fromkeys(still, GRADIENT))


def worst(quantity: str, differences: dict[str, float], allowed: dict[str, float]) -> Row:
    """The row of the weight that is nearest to its tolerance, or farthest beyond; NaN is beyond all."""
    shares = {name: difference / allowed[name] for name, difference in differences.items()}
    name = max(shares, key=lambda name: (shares[name] != shares[name], shares[name]))
    return Row(quantity, differences[name], allowed[name], name)


def compare_statistics(case: Case) -> Iterator[Row]:
    """Running statistics of BatchNorm after one training step."""
    stem = trained(case.name)[0].encoder.embed_images
    for key in case.starting("train."):
        if match := re.fullmatch(r"train\.(.+)\.(running_mean|running_var)_after", key):
            ours = getattr(stem.get_submodule(match[1]), match[2])
            yield Row(f"{match[1]}.{match[2]} after a step", largest(ours, case[key]), STATISTIC)


# ------------------------------------------------------------------------------- our side, made once per case


def weights(layout: dict[str, list[int]], case: Case) -> dict[str, Tensor]:
    """The case's weights, or those of the rule for this layout."""
    if (case.folder / "weights.safetensors").is_file():
        return case.weights()
    rule = runpy.run_path(str(shared("rule_weights.py")))["det_state_dict"]
    return rule(layout, case.info["weight_seed"])


@functools.lru_cache(maxsize=1)  # a case's comparisons follow each other
def model(name: str) -> OFA:
    """Our model in evaluation mode, by the case's description, with its weights."""
    case = read("ofa", name)
    # Nothing random can be compared; a case that leaves dropout out was made without it.
    net = OFA(OFAConfig.from_dict({"dropout": 0.0, **case.info["config"]})).eval()
    layout = {key: list(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict(ofa_state_dict(weights(layout, case))[0])
    return net


@functools.lru_cache(maxsize=2)
@torch.no_grad()
def outputs(name: str, text_only: bool) -> dict[str, Tensor]:
    """Our outputs and intermediate results, under the names of the vectors."""
    case = read("ofa", name)
    net, kept = model(name), {}
    hooks = list(
        attach(net, kept, {key.removeprefix("out.").removeprefix("text_only.") for key in case.keys})
    )
    ids = case["in.input_ids"]
    encoded = net.encode(ids, None if text_only else case_images(case))
    kept["logits"] = net.decode(case["in.decoder_input_ids"], encoded)
    for hook in hooks:
        hook.remove()
    kept["enc.last_hidden_state"], kept["enc.padding_mask"] = encoded.hidden, encoded.padding
    kept["enc.position_embedding"] = encoded.positions.expand(len(ids), -1, -1)
    return kept


def attach(net: OFA, kept: dict[str, Tensor], wanted: set[str]) -> Iterator:
    """Hooks that keep hidden states, and those attention weights that are wanted."""

    def layer_hook(side: str, number: int):
        def hook(module, inputs, output):
            kept[f"{side}.hidden.{number}"], kept[f"{side}.hidden.{number + 1}"] = inputs[0], output

        return hook

    def attention_hook(name: str):
        def hook(module, inputs):
            x, keys, _, bias = inputs
            kept[name] = module.weights(x, keys, bias)

        return hook

    for side, part in (("enc", net.encoder), ("dec", net.decoder)):
        for number, layer in enumerate(part.layers):
            yield layer.register_forward_hook(layer_hook(side, number))
            attentions = {f"{side}.{'self_' if side == 'dec' else ''}attn.{number}": layer.self_attn}
            if side == "dec":
                attentions[f"dec.cross_attn.{number}"] = layer.cross_attn
            for name, attention in attentions.items():
                if name in wanted:
                    yield attention.register_forward_pre_hook(attention_hook(name))
    yield net.encoder.embed_images.register_forward_hook(lambda m, i, out: kept.update(resnet_out=out))


def case_labels(case: Case) -> Tensor:
    """Labels int64 [B, U]; whatever stands for "ignore" becomes padding."""
    return case["in.labels"].masked_fill(case["in.labels"] < 0, PAD)


def training_step(case: Case, dtype: torch.dtype, turned: bool = False, moved: int = 0) -> tuple[OFA, Tensor]:
    """Our model after one training step's backward pass, and the step's logits.

    ``turned``: the batch from its end, the same sum in another order. ``moved``: pixels off by a rounding error.
    """
    images, labels = case_images(case), case_labels(case)
    if moved:
        draw = torch.Generator().manual_seed(moved)
        images = images * (1 + torch.finfo(torch.float32).eps / 2 * torch.randn(images.shape, generator=draw))
    batch = (case["in.input_ids"], images.to(dtype), case["in.decoder_input_ids"], labels)
    if turned:
        batch = tuple(each.flip(0) for each in batch)
    net = copy.deepcopy(model(case.name)).to(dtype).train()
    logits = net(*batch[:3])
    F.cross_entropy(logits.flatten(0, 1), batch[3].flatten(), ignore_index=PAD).backward()
    return net, logits.detach()


def gradients(net: OFA) -> dict[str, Tensor]:
    return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}


@functools.lru_cache(maxsize=1)
def trained(name: str) -> tuple[OFA, Tensor]:
    """A training step in float64, so that only the reference's own rounding is left."""
    return training_step(read("ofa", name), torch.float64)


@functools.lru_cache(maxsize=1)
def rounding(name: str) -> dict[str, tuple[float, float]]:
    """How far our gradients in float32 are at most from those in float64, by weight, both relative.

    First the largest difference, as whole gradients are compared. Then the norm of the difference, which no
    difference of two norms exceeds: a single norm may come near by chance.
    """
    exact, found = gradients(trained(name)[0]), {}
    for turned, moved in PASSES:
        for weight, ours in gradients(
            training_step(read("ofa", name), torch.float32, turned, moved)[0]
        ).items():
            size = float(exact[weight].norm()) or 1.0
            each = relative(ours, exact[weight]), float((ours.double() - exact[weight]).norm()) / size
            found[weight] = tuple(map(max, found.get(weight, (0.0, 0.0)), each))
    return found


# ------------------------------------------------------------------------------------------ shared files


def layouts() -> dict[str, dict]:
    """Per released size: config, unique_parameters, buffers, state_dict (key -> [shape, dtype])."""
    return json.loads(shared("state_dict_layouts.json").read_text(encoding="utf-8"))
