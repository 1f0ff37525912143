"""Captioners: OFA as released or as saved, equal to the study's captioner, and models from Hugging Face."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import caption_corpus as corpus
import numpy as np
import pytest
import torch
from small_captioner import pairs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from clipvip_lib.captions.captioner import Captioner, postprocess
from clipvip_lib.captions.captioners import (
    HuggingFaceCaptioner,
    cast_once,
    checksum,
    describe,
    load_ofa_captioner,
)
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.ofa import ofa_preprocess
from clipvip_lib.models.weight_names import expect_ofa

torch.set_num_threads(1)


def pictures(count: int) -> list[np.ndarray]:
    """Pictures of several sizes, upright and lying."""
    rng = np.random.default_rng(0)
    sizes = [(40, 48), (48, 32), (32, 32), (90, 60)]
    return [rng.integers(0, 256, (*sizes[i % 4], 3), dtype=np.uint8) for i in range(count)]


# ------------------------------------------------------------------------------------------------------ OFA


@pytest.fixture(scope="module")
def trained() -> Captioner:
    return corpus.trained()


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[Path, Path]:
    return corpus.write_released(tmp_path_factory.mktemp("released"))


def test_captions_do_not_depend_on_the_batch(trained):
    images = [*pairs(6)[0], *pictures(6)]
    assert trained.caption(images) == trained.caption(images, batch=5)
    assert trained.caption([]) == []


def test_a_saved_captioner_keeps_its_size_and_beam_unless_told_otherwise(trained, tmp_path):
    folder = trained.save(tmp_path / "ofa")
    loaded = load_ofa_captioner(folder)
    assert (loaded.image_size, loaded.beam) == (trained.image_size, trained.beam)
    assert load_ofa_captioner(folder, precision="bfloat16").caption(pairs(4)[0]) == trained.caption(
        pairs(4)[0]
    )
    other = load_ofa_captioner(folder, size=16, beam=3, max_tokens=2)
    assert (other.image_size, other.beam.beam_size, other.beam.max_len_b) == (16, 3, 2)
    assert all(len(text.split()) <= 2 for text in other.caption(pairs(4)[0]))
    with pytest.raises(ClipVipError, match="has its own tokenizer"):
        load_ofa_captioner(folder, bpe=folder)


def test_a_model_of_another_kind_is_told_before_its_tokenizer_is_missed(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_vip"}')
    with pytest.raises(ClipVipError, match="is a model of type 'clip_vip': expected OFA's caption weights"):
        expect_ofa(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "ofa"}')
    with pytest.raises(ClipVipError, match="has no vocab.json and no merges.txt"):
        expect_ofa(tmp_path)


def test_released_weights_caption_as_the_authors_do(released):
    captioner = load_ofa_captioner(released[0], bpe=released[1])
    beam = captioner.beam
    assert (captioner.image_size, beam.beam_size, beam.max_len_b) == (480, 5, 16)
    assert beam.no_repeat_ngram_size == 3
    small = load_ofa_captioner(*released[:1], bpe=released[1], size=32)
    found = small.caption(pictures(4))
    assert found == Captioner(small.model, small.tokenizer, 32, beam).caption(pictures(4))
    assert len(set(found)) > 1 and found == [postprocess(text) for text in found]


def test_weights_cast_once_give_the_numbers_of_autocast(released):
    plain = load_ofa_captioner(released[0], bpe=released[1], size=64).model
    once = copy.deepcopy(plain)
    cast_once(once)
    ids, said = torch.tensor([[0, 9, 7, 2]] * 4), torch.tensor([[0, 11, 12]] * 4)
    pixels = ofa_preprocess(pictures(4), 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = plain(ids, pixels, said)
        assert torch.equal(once(ids, pixels, said), wanted)
    with torch.inference_mode():
        assert (plain(ids, pixels, said) - wanted).abs().max() > 0  # in float32 they are others
    assert once.decoder.output_projection.weight.dtype == torch.bfloat16
    assert once.encoder.embed_tokens.weight.dtype == torch.float32


def test_a_tokenizer_that_is_missing_is_asked_for(released, tmp_path):
    weights, bpe = released
    with pytest.raises(ClipVipError, match=r"has no vocab\.json and no merges\.txt; name a folder .* --bpe"):
        load_ofa_captioner(weights)
    (tmp_path / "vocab.json").write_text((bpe / "vocab.json").read_text())
    with pytest.raises(ClipVipError, match=r"has no merges\.txt; name"):
        load_ofa_captioner(weights, bpe=tmp_path)
    with pytest.raises(ClipVipError, match=r"no file or folder .*none\.pt"):
        load_ofa_captioner(tmp_path / "none.pt")
    with pytest.raises(ClipVipError, match=r"none\.pt"):
        load_ofa_captioner(tmp_path / "none.pt", bpe=bpe)
    with pytest.raises(ClipVipError, match="images of 1 to 672 pixels per side, got 700"):
        load_ofa_captioner(weights, bpe=bpe, size=700)


def test_a_tokenizer_of_another_model_is_refused(released, tmp_path):
    entries = json.loads((released[1] / "vocab.json").read_text())
    more = entries | {f"more{i}": len(entries) + i for i in range(3)}
    (tmp_path / "vocab.json").write_text(json.dumps(more))
    (tmp_path / "merges.txt").write_text((released[1] / "merges.txt").read_text())
    with pytest.raises(ClipVipError, match="use the tokenizer that the model was trained with"):
        load_ofa_captioner(released[0], bpe=tmp_path)


def test_what_decides_the_captions_is_described(trained, released):
    ofa = load_ofa_captioner(released[0], bpe=released[1])
    about = describe(ofa)
    assert json.loads(json.dumps(about)) == about
    assert (about["captioner"], about["size"], about["beam_size"], about["max_len_b"]) == ("OFA", 480, 5, 16)
    assert about["weights"] == checksum(load_ofa_captioner(released[0], bpe=released[1]).model)
    assert about["weights"] != checksum(trained.model)
    with torch.no_grad():
        ofa.model.decoder.layer_norm.bias[3] += 1e-3
    assert describe(ofa)["weights"] != about["weights"]


# --------------------------------------------------------------------------------------------- Hugging Face

KIND = "Hugging Face vision-encoder-decoder"
WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}," for i in range(37))]


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0,"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def vit_gpt2(tmp_path_factory) -> Path:
    """A random encoder-decoder of the family of ViT-GPT2, with the length limit that such files bring along."""
    folder = tmp_path_factory.mktemp("vit-gpt2")
    torch.manual_seed(0)
    encoder = ViTModel(
        ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=8, initializer_range=0.5,
        )
    )  # fmt: skip
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(WORDS), n_positions=32, n_embd=32, n_layer=1, n_head=2, add_cross_attention=True,
            bos_token_id=1, eos_token_id=2, initializer_range=0.5,
        )
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.max_length = 4
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def greedy(model: VisionEncoderDecoderModel, pixels: torch.Tensor, steps: int) -> list[int]:
    """The likeliest next token, again and again, by whole forward passes."""
    tokens = [1]
    for _ in range(steps):
        with torch.no_grad():
            logits = model(pixel_values=pixels, decoder_input_ids=torch.tensor([tokens])).logits
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[1:]


def test_a_hugging_face_model_captions_each_picture_by_its_own_pixels(vit_gpt2):
    captioner = HuggingFaceCaptioner(vit_gpt2, beam=1, max_tokens=7)
    images = pictures(6)
    processor = ViTImageProcessor.from_pretrained(vit_gpt2)
    wanted = []
    for image in images:
        pixels = processor(
            images=[image], return_tensors="pt", input_data_format="channels_last"
        ).pixel_values
        tokens = greedy(captioner.model, pixels, 7)
        wanted.append(" ".join(WORDS[token] for token in tokens if token > 2).replace(",", ""))
    found = captioner.caption(images, batch=4)
    assert found == wanted
    assert len(set(found)) > 2 and max(len(text.split()) for text in found) > 4  # not the file's limit
    assert captioner.caption([]) == []


def test_its_beam_length_and_weights_are_described(vit_gpt2):
    captioner = HuggingFaceCaptioner(vit_gpt2, max_tokens=3, precision="bfloat16")
    about = describe(captioner)
    assert (about["captioner"], about["beam"], about["max_tokens"]) == (KIND, 5, 3)
    assert about["precision"] == "bfloat16" and len(about["weights"]) == 16
    assert all(len(text.split()) <= 3 for text in captioner.caption(pictures(4)))


def test_blip_captions_too(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = {
        **sizes, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "bos_token_id": 1, "sep_token_id": 2,
        "pad_token_id": 0, "eos_token_id": 2, "initializer_range": 0.5, "max_position_embeddings": 32,
    }  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8, "initializer_range": 0.5}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    BlipForConditionalGeneration(config).eval().half().save_pretrained(tmp_path)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    captioner = HuggingFaceCaptioner(tmp_path, beam=2)
    assert captioner.model.dtype == torch.float32  # also of a file in half precision
    images = pictures(4)
    found = captioner.caption(images)
    assert len(set(found)) > 1 and found == captioner.caption(images[:2]) + captioner.caption(images[2:])
    assert all(len(text.split()) <= 16 for text in found)


@pytest.mark.bad_input("captioner: a name or a model that is none", says="`cannot load the captioner`")
def test_what_is_no_captioner_is_refused_before_a_corpus(tmp_path, vit_gpt2):
    with pytest.raises(ClipVipError, match="cannot load the captioner .*none .*check the name"):
        HuggingFaceCaptioner(tmp_path / "none")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    clip = CLIPModel(CLIPConfig(text_config=sizes | {"vocab_size": 40}, vision_config=sizes))
    clip.save_pretrained(tmp_path / "clip")
    ViTImageProcessor().save_pretrained(tmp_path / "clip")
    save_tokenizer(tmp_path / "clip")
    with pytest.raises(ClipVipError, match="cannot load the captioner .*clip .*vision-to-text"):
        HuggingFaceCaptioner(tmp_path / "clip")
    with pytest.raises(ClipVipError, match="a beam and a length of at least 1, got 0 and 16"):
        HuggingFaceCaptioner(vit_gpt2, beam=0)


@pytest.mark.bad_input(
    "captioner: a model that brings code", says="`cannot load the captioner`; it is not run"
)
def test_code_that_comes_with_a_model_is_not_run_even_if_somebody_would_say_yes(tmp_path, monkeypatch):
    ran, folder = tmp_path / "ran", tmp_path / "model"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Its:\n    pass\n")
    about = {"model_type": "its", "image_processor_type": "Its"}
    about["auto_map"] = {"AutoConfig": "code.Its", "AutoImageProcessor": "code.Its"}
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ClipVipError, match="cannot load the captioner"):
        HuggingFaceCaptioner(folder)
    assert not ran.exists()
