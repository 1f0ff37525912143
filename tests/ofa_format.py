"""What a golden case of OFA holds and needs: settings, vectors, images.

A case keeps its outputs whole (a small model), or samples of them (a released size); if it holds anything of a
training step, it holds all of it. What nothing compares is a fault too.
"""

from __future__ import annotations

import functools
import re

from golden_files import Case, is_a, read
from torch import Tensor

from clipvip_lib.models.ofa import PAD, ofa_preprocess

SIZES = {
    "d_model": int,
    "encoder_layers": int,
    "decoder_layers": int,
    "encoder_ffn_dim": int,
    "decoder_ffn_dim": int,
    "encoder_attention_heads": int,
    "decoder_attention_heads": int,
    "vocab_size": int,
    "resnet_type": str,
}
BEAM = {"beam_size": int, "max_len_b": int, "min_len": int, "no_repeat_ngram_size": int}
BEAM_OPTIONS = {"max_len_a", "lenpen", "len_penalty", "temperature"}
#: Of fairseq's generator, and not written here: a case that names one would be compared with another search.
BEAM_UNKNOWN = {"unk_penalty", "unkpen", "normalize_scores", "match_source_len", "prefix_tokens", "max_len"}
TABLES = [  # all of which a case with whole outputs has
    r"tab\.encoder\.token_rp_by_offset",
    r"tab\.decoder\.token_rp_by_offset",
    r"tab\.image_position_ids",
    r"tab\.image_rp_for_grid",
    r"tab\.image_rp_bucket\.head",
    r"tab\.enc_image_rel_bias\.layer\d+",
    r"tab\.enc_token_rel_bias\.layer\d+",
]
WHOLE = [
    r"out\.(text_only\.)?(resnet_out|logits)",
    r"out\.(text_only\.)?enc\.(last_hidden_state|padding_mask|position_embedding|(attn|hidden)\.\d+)",
    r"out\.(text_only\.)?dec\.(hidden|self_attn|cross_attn)\.\d+",
]
SAMPLED = [
    r"out\.resnet\.(slice|mean_std)",
    r"out\.enc\.(rows|last_hidden_state\.rows|hidden\.\d+\.first_last)",
    r"out\.logits\.(head|tail|logsumexp|top\d+\.(values|indices))",
]
INPUTS = [
    r"in\.(input_ids|decoder_input_ids|labels|patch_images)",
    r"in\.(raw_image\.\d+|resized_u8|patch_corner)",
]
TRAINING = [r"train\.(logits|[\w.]+\.running_(mean|var)_after)", r"grad\.[\w.]+"]
KNOWN = re.compile("|".join([*INPUTS, *TABLES, *WHOLE, *SAMPLED, *TRAINING]))


def faults(case: Case) -> list[str]:
    """What the case lacks, what nothing compares, and what does not fit together."""
    found = [*case.lacks_info(SIZES, "config"), *faults_of_beams(case), *faults_of_vectors(case)]
    if not (case.folder / "weights.safetensors").is_file() and not is_a(case.info.get("weight_seed"), int):
        found.append("neither weights.safetensors nor a weight_seed in case.json")
    if trains(case):
        found += faults_of_training(case)
    unknown = {key for key in case.keys if not KNOWN.fullmatch(key)} - set(vectors_of_beams(case))
    found += [f"nothing compares the vector {key}" for key in sorted(unknown)]
    return found or contradictions(case)


def faults_of_beams(case: Case) -> list[str]:
    """Beam settings and their vectors."""
    found = case.lacks(vectors_of_beams(case))
    for name, raw in beams(case).items():
        kinds = {"num_beams": int, "max_length": int} if kind_of(raw) == "hf" else BEAM
        found += case.lacks_info(kinds, "gen", name)
        found += [f"the beam {name} asks for {key}, which is not compared" for key in BEAM_UNKNOWN & set(raw)]
        if kind_of(raw) not in ("fairseq", "hf"):
            found.append(f"the beam {name} is of the unknown kind {kind_of(raw)!r}")
    if "fairseq" not in map(kind_of, beams(case).values()):
        found.append("case.json has no beam setting by fairseq's rule (gen)")
    return found


def faults_of_vectors(case: Case) -> list[str]:
    """Inputs, position tables and outputs."""
    needed, found = ["in.input_ids", "in.decoder_input_ids"], []
    if case.starting("in.raw_image."):
        found = case.lacks_info({"resolution": int})
        needed += ["in.resized_u8"] + ["in.patch_corner"] * ("in.patch_images" not in case.keys)
    else:
        needed.append("in.patch_images")
    if "out.logits" in case.keys or "out.enc.last_hidden_state" in case.keys:
        patterns = TABLES
        # The case says itself of which vectors it measured the rounding.
        needed += [f"out.{name}" for name in case.info.get("fp32_vs_fp64_maxabs", ())]
        needed += ["out.enc.last_hidden_state", "out.logits"]
        if case.starting("out.text_only."):
            needed += ["out.text_only.enc.last_hidden_state", "out.text_only.logits"]
    else:
        patterns = [r"out\.logits\.top\d+\.values", r"out\.logits\.top\d+\.indices"]
        layers = range(case.info.get("config", {}).get("encoder_layers", 0) + 1)
        needed += [f"out.enc.hidden.{number}.first_last" for number in layers]
        needed += ["out.enc.last_hidden_state.rows", "out.enc.rows"]
        needed += [f"out.logits.{part}" for part in ("head", "tail", "logsumexp")]
        needed += ["out.resnet.slice", "out.resnet.mean_std"]
    missing = [p for p in patterns if not any(re.fullmatch(p, key) for key in case.keys)]
    return [*found, *case.lacks(needed), *(f"no vector like {pattern} is there" for pattern in missing)]


def faults_of_training(case: Case) -> list[str]:
    """If there is anything of a training step, all of it."""
    kinds = {"train.ce_mean_ignore_pad": float | int, "train.grad_norm": dict, "train.grad_noise_only": list}
    found = case.lacks_info(kinds)
    found += case.lacks(["in.labels", "train.logits"])
    found += case.lacks(f"train.bn1.running_{kind}_after" for kind in ("mean", "var"))
    if not case.starting("grad."):
        found.append("no gradient (grad.*) is there")
    smoothed = [key for key in case.info if key.startswith("train.label_smoothed_eps")]
    if not smoothed:
        found.append("case.json lacks train.label_smoothed_eps<epsilon>")
    for key in smoothed:
        found += case.lacks_info({"loss_sum": float | int, "nll_sum": float | int, "ntokens": int}, key)
    return found


def contradictions(case: Case) -> list[str]:
    """What case.json tells of the vectors, where it does."""
    ids, decoder_ids = case["in.input_ids"], case["in.decoder_input_ids"]
    images = case_images(case)
    grid = [-(-side // 16) for side in images.shape[2:]]
    told = {
        "src_lens": ids.ne(PAD).sum(1).tolist(),
        "tgt_lens": decoder_ids.ne(PAD).sum(1).tolist(),
        "grid": grid,
        "n_encoder_positions": grid[0] * grid[1] + ids.shape[1],
    }
    found = [
        f"case.json says {name} = {case.info[name]}, the vectors have {value}"
        for name, value in told.items()
        if case.info.get(name, value) != value
    ]
    if not len(ids) == len(decoder_ids) == len(images):
        found.append(f"expected one image and one caption for each of {len(ids)} prompts")
    if not decoder_ids.ne(PAD).any() or not ids.ne(PAD).any():
        found.append("every token is padding")
    return found


def beams(case: Case) -> dict[str, dict]:
    """The beam settings by name; remarks that stand beside them are left out."""
    given = case.info.get("gen")
    items = given.items() if isinstance(given, dict) else ()
    return {name: raw for name, raw in items if isinstance(raw, dict)}


def kind_of(raw: dict) -> str:
    return raw.get("kind", "fairseq")


def vectors_of_beams(case: Case) -> list[str]:
    parts = {"hf": ("sequences",)}
    fairseq = ("tokens", "scores", "positional_scores")
    named = beams(case).items()
    return [f"gen.{name}.{part}" for name, raw in named for part in parts.get(kind_of(raw), fairseq)]


def trains(case: Case) -> bool:
    return any(key.startswith(("train.", "grad.")) for key in [*case.info, *case.keys])


@functools.lru_cache(maxsize=1)
def images_of(name: str) -> Tensor:
    case = read("ofa", name)
    raw = numbered(case, "in.raw_image.")
    if not raw:
        return case["in.patch_images"]
    return ofa_preprocess([case[key].numpy() for key in raw], case.info["resolution"])


def case_images(case: Case) -> Tensor:
    """Images float [B, 3, h, w]: as the case keeps them, or made from its photographs."""
    return images_of(case.name)


def numbered(case: Case, prefix: str) -> list[str]:
    return sorted(case.starting(prefix), key=lambda key: int(key.removeprefix(prefix)))
