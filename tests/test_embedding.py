"""Videos and texts to features: the same as by hand, resumed, never a row under another's id."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import videos
from patience import STILL
from PIL import Image
from small_clip import FRAMES, SIZE, WORDS, save_small, small_model, write_videos
from test_clips import write_pictures
from transformers import CLIPConfig, CLIPModel

from clipvip_lib.data.clips import Clip, list_clips
from clipvip_lib.data.transform import preprocess, resize
from clipvip_lib.data.video import VideoError, read_frames, uniform_indices
from clipvip_lib.data.windows import Windows
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.embedding import embed_texts, embed_videos, load_encoder
from clipvip_lib.features.folder import Features, read_part
from clipvip_lib.models import encoding
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.clip_tokenizer import CLIP_VOCAB, ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP
from clipvip_lib.models.encoding import TOKENIZER, fingerprint

ROUNDING = 1e-6  # float32 sums in another order


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    return write_videos(tmp_path_factory.mktemp("videos"), 7)


def frames_of(path: Path) -> np.ndarray:
    return read_frames(path, lambda total: uniform_indices(total, FRAMES))


def near(a: np.ndarray, b: np.ndarray, tolerance: float = ROUNDING) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance)


# ------------------------------------------------------------------------------------------- ClipViP's methods


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_videos_are_encoded_as_by_hand(clips, attention):
    model = small_model(attention=attention)
    features = model.encode_videos(clips[:3], batch=2)
    assert features.dtype == np.float32 and near(np.linalg.norm(features, axis=1), np.ones(3))
    with torch.no_grad():
        for path, feature in zip(clips, features, strict=False):
            shown = frames_of(path)
            as_bytes = model.encode_video(torch.from_numpy(resize(shown, SIZE, False))[None])[0].numpy()
            as_floats = model.encode_video(preprocess(shown, SIZE)[None])[0].numpy()
            assert near(feature, as_bytes)
            assert feature @ as_floats > 0.9999  # the authors' floats are rounded to 8 bits


def test_order_batches_and_threads_do_not_matter(clips):
    model = small_model()
    alone = np.concatenate([model.encode_videos([path], workers=0) for path in clips])
    assert np.abs(alone[:, None] - alone).max(-1)[~np.eye(len(clips), dtype=bool)].min() > 1e-3
    for options in ({"batch": 3, "workers": 2}, {"batch": 1, "workers": 4}, {"batch": 20}):
        turned = model.encode_videos([*reversed(clips), clips[2]], **options)
        assert near(turned, np.concatenate([alone[::-1], alone[2:3]]))


def test_frames_antialias_and_precision_are_passed_on(clips):
    model = small_model()
    shown = read_frames(clips[0], lambda total: uniform_indices(total, 4))
    with torch.no_grad():
        expected = model.encode_video(torch.from_numpy(resize(shown, SIZE, True))[None]).numpy()
    assert near(model.encode_videos([clips[0]], frames=4, antialias=True), expected)
    assert not near(model.encode_videos([clips[0]], frames=4), expected)
    model.config.antialias = True  # what a training writes
    assert near(model.encode_videos([clips[0]], frames=4), expected)
    assert not near(model.encode_videos([clips[0]], frames=4, antialias=False), expected)
    rough = model.encode_videos([clips[0]], frames=4, antialias=True, precision="bfloat16")
    assert rough.dtype == np.float32 and 0 < np.abs(rough - expected).max() < 0.05


def test_decoding_leaves_the_callers_threads_alone(clips):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        small_model().encode_videos(clips[:2], workers=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_decoding_and_copying_run_beside_the_model(clips, monkeypatch):
    model = small_model()
    encode, batches = model.encode_video, encoding._batches
    copied, encoded = [threading.Event() for _ in clips], []

    def noted_batches(*rest):
        for event, found in zip(copied, batches(*rest), strict=True):
            event.set()
            yield found

    def noted_encode(pixels):
        encoded.append(threading.current_thread())
        assert copied[min(len(encoded), len(clips) - 1)].wait(STILL)  # the next one, while this is encoded
        return encode(pixels)

    monkeypatch.setattr(encoding, "_batches", noted_batches)
    monkeypatch.setattr(model, "encode_video", noted_encode)
    listed = [Clip(str(path), str(path)) for path in clips]
    with contextlib.closing(encoding.encode_clips(model, listed, batch=1)) as found:
        shown = list(found)
    assert encoded == [threading.current_thread()] * len(clips)
    assert [clip.clip for clip, _ in shown] == listed
    monkeypatch.undo()
    assert near(np.stack([feature for _, feature in shown]), small_model().encode_videos(clips))
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_unreadable_and_absent_videos_are_named(clips, tmp_path):
    model, bad = small_model(), tmp_path / "bad.mp4"
    bad.write_bytes(clips[0].read_bytes()[:500])
    for path in (bad, tmp_path / "absent.mp4"):
        with pytest.raises(VideoError, match=path.name):
            model.encode_videos([clips[0], path, clips[1]])
    for paths in ([], "v.mp4", clips[0]):
        with pytest.raises(ClipVipError, match="a list of one or more paths"):
            model.encode_videos(paths)
    with pytest.raises(ClipVipError, match="at least 1, got 0"):
        model.encode_videos(clips, frames=0)


def test_five_lines_from_a_folder(weights, clips):
    """What the README shows; the tokenizer beside the weights is found."""
    model = ClipViP.from_pretrained(weights).eval()
    scores = model.encode_texts(list(WORDS)) @ model.encode_videos(clips[:2]).T
    ids, mask = ClipTokenizer.load(weights / TOKENIZER)(WORDS)
    with torch.no_grad():
        expected = model.encode_text(ids, mask).numpy()
    assert scores.shape == (4, 2) and near(model.encode_texts(list(WORDS), batch=3), expected)


def test_without_a_saved_tokenizer_it_is_clips_own(weights, tmp_path):
    large = small_model(vocab_size=CLIP_VOCAB, width=16, text_width=16)
    large.save_pretrained(tmp_path / "large")
    large = ClipViP.from_pretrained(tmp_path / "large")
    ids, mask = ClipTokenizer(16)(["a dog runs after the ball"])
    with torch.no_grad():
        assert near(large.encode_texts(["a dog runs after the ball"]), large.encode_text(ids, mask).numpy())
    with pytest.raises(ClipVipError, match=f"expected {TOKENIZER} beside the weights"):
        small_model().encode_texts(["a dog"])
    shutil.copy(weights / TOKENIZER, tmp_path / "large" / TOKENIZER)
    with pytest.raises(ClipVipError, match="expected the one of its training"):
        large.encode_texts(["a dog"])
    (tmp_path / "large").rename(tmp_path / "gone")  # by now: no hub is asked for a path
    assert large.encode_texts(["a dog"]).shape == (1, 24)
    for texts in ([], "a dog", [3]):
        with pytest.raises(ClipVipError, match="list of one or more strings"):
            ClipViP.from_pretrained(weights).encode_texts(texts)


def test_the_fingerprint_is_the_models_not_the_files(weights, tmp_path):
    model, tokenizer = ClipViP.from_pretrained(weights), ClipTokenizer.load(weights / TOKENIZER)
    first = fingerprint(model, tokenizer)
    shutil.copytree(weights, tmp_path / "elsewhere")
    assert fingerprint(ClipViP.from_pretrained(tmp_path / "elsewhere"), tokenizer) == first
    others = {fingerprint(model, ClipTokenizer.for_texts(WORDS[:2])), fingerprint(small_model(1), tokenizer)}
    with torch.no_grad():
        model.vision_model.embeddings.added_cls[0, 0] += 1e-6
    others |= {fingerprint(model, tokenizer), fingerprint(small_model(hidden_act="quick_gelu"), tokenizer)}
    assert len(others) == 4 and first not in others


# ------------------------------------------------------------------------------------------------ any weights


def test_the_authors_file_and_a_plain_clip(weights, clips, tmp_path):
    """A bare file takes the tokenizer beside it; a CLIP without proxies is taken as mean_pool."""
    model = small_model(hidden_act="quick_gelu")
    state = {f"clipmodel.{name}": value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "pretrain.pt")
    shutil.copy(weights / TOKENIZER, tmp_path / TOKENIZER)
    bare = load_encoder(tmp_path / "pretrain.pt")
    assert bare.model.config.attention == "proxy" and not bare.untrained
    assert near(bare.model.encode_videos(clips[:1]), model.encode_videos(clips[:1]))
    assert bare.texts(["a dog runs"]).shape == (1, 24)

    text, vision = model.config.text_config.to_dict(), model.config.vision_config.to_dict()
    torch.manual_seed(3)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    clip.save_pretrained(tmp_path / "clip")
    plain = load_encoder(tmp_path / "clip")
    assert plain.model.config.attention == "mean_pool" and not plain.untrained
    with torch.no_grad():
        frames = preprocess(frames_of(clips[0]), SIZE)
        single = torch.nn.functional.normalize(clip.get_image_features(frames).pooler_output, dim=-1)
        mean = torch.nn.functional.normalize(single.mean(0), dim=-1).numpy()
    assert plain.model.encode_videos(clips[:1], frames=FRAMES)[0] @ mean > 0.9999
    asked = load_encoder(tmp_path / "clip", attention="proxy")
    assert asked.model.config.attention == "proxy" and any("added_cls" in name for name in asked.untrained)
    with pytest.raises(ClipVipError, match="expected clip_tokenizer.json beside the weights"):
        plain.texts(["a dog"])


def test_a_device_that_is_not_there(weights):
    with pytest.raises(ClipVipError, match="cannot be used"):
        load_encoder(weights, device="cuda:99")
    with pytest.raises(ClipVipError, match="cannot be used"):
        load_encoder(weights, device="gpu")
    with pytest.raises(ClipVipError, match="'meta' cannot be used .it is not cpu or cuda"):
        load_encoder(weights, device="meta")


# ------------------------------------------------------------------------------------------- folders of features


def rows_agree(out: Path, encoder) -> list[dict]:
    """Every row is its own video's feature; returns the rows."""
    found = Features(out)
    rows = [found.row(i) for i in range(len(found))]
    for row, feature in zip(rows, found.array, strict=True):
        alone = encoder.model.encode_videos([row["path"]])[0]
        assert (
            np.abs(feature - alone).max() < 1e-3 if found.array.dtype == np.float16 else near(feature, alone)
        )
    return rows


def test_a_folder_of_videos(weights, clips, tmp_path):
    encoder = load_encoder(weights)
    seen = []
    meta = embed_videos(
        encoder,
        list_clips([clips[0].parent]),
        tmp_path,
        part=3,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    rows = rows_agree(tmp_path, encoder)
    assert [row["id"] for row in rows] == [path.stem for path in clips]
    assert [row["frames"] for row in rows] == list(range(4, 11)) and seen[-1] == (7, 7)
    assert len(list((tmp_path / "parts").iterdir())) == 3 and meta["rows"] == 7 and meta["width"] == 24
    assert meta["settings"]["checksum"] == encoder.checksum and meta["settings"]["frames"] == FRAMES
    assert np.load(tmp_path / "features.npy").dtype == np.float32
    embed_videos(encoder, list_clips([clips[0].parent]), tmp_path / "half", stored="float16")
    rows_agree(tmp_path / "half", encoder)
    assert np.load(tmp_path / "half" / "features.npy").dtype == np.float16


@pytest.mark.fault(
    "embed: Ctrl-C",
    sees="of the folder, `not finished; run the same`",
    keeps="what was computed, in whole parts; nothing is done twice",
)
def test_an_interrupted_run_goes_on(weights, clips, tmp_path):
    encoder, listed = load_encoder(weights), list_clips(clips)

    def interrupt(done, total, note):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_videos(encoder, listed, tmp_path, part=2, batch=1, progress=interrupt)
    with pytest.raises(ClipVipError, match="not finished; run the same"):
        Features(tmp_path)
    parts = {path: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert len(parts) == 3  # two whole ones, and what was computed when the key came
    seen = []
    embed_videos(encoder, listed, tmp_path, part=2, progress=lambda done, total, note: seen.append(done))
    assert seen[0] == 5 and all(path.read_bytes() == content for path, content in parts.items())
    assert len(rows_agree(tmp_path, encoder)) == 7
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    embed_videos(encoder, listed, tmp_path, part=2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_new_replaced_and_removed_videos(weights, tmp_path):
    encoder, source, out = load_encoder(weights), tmp_path / "videos", tmp_path / "out"
    paths = write_videos(source, 4)
    embed_videos(encoder, list_clips([source]), out)
    old = np.load(out / "features.npy")
    paths[0].unlink()
    paths[1].write_bytes(videos.encode(30, size=(48, 64)))
    (source / "a.mp4").write_bytes(videos.encode(20, size=(48, 64)))
    seen = []
    embed_videos(encoder, list_clips([source]), out, progress=lambda done, total, note: seen.append(done))
    assert seen == [2, 3, 4]  # two were there
    assert [row["id"] for row in rows_agree(out, encoder)] == ["a", "v01", "v02", "v03"]
    new = np.load(out / "features.npy")
    assert (new[2:] == old[2:]).all() and not near(new[1], old[1], 1e-3)


@pytest.mark.fault(
    "embed: a bad video stops it after a replaced one was embedded",
    sees="the bad video's name",
    keeps="the new row; the next run leaves no old one",
)
def test_a_stop_after_a_replaced_video_leaves_no_stale_row(weights, tmp_path):
    """The new row went into a part before the stop; then all was embedded before, and the old row must go."""
    encoder, source, out = load_encoder(weights), tmp_path / "videos", tmp_path / "out"
    paths = write_videos(source, 2)
    embed_videos(encoder, list_clips([source]), out)
    old = np.load(out / "features.npy")
    paths[0].write_bytes(videos.encode(4, size=(64, 96)))  # as many frames
    (source / "zz.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"zz\.mp4"):
        embed_videos(encoder, list_clips([source]), out)
    (source / "zz.mp4").unlink()
    said = []
    embed_videos(encoder, list_clips([source]), out, progress=lambda done, total, note: said.append(note))
    assert said == ["embedded before"] and len(rows_agree(out, encoder)) == 2
    assert not near(np.load(out / "features.npy")[0], old[0], 1e-3)


def test_other_weights_or_settings_are_refused_by_name(weights, clips, tmp_path):
    encoder, listed = load_encoder(weights), list_clips(clips[:2])
    embed_videos(encoder, listed, tmp_path / "out")
    other = load_encoder(save_small(tmp_path / "other", seed=1))
    for changed, options, words in (
        (other, {}, "checksum was"),
        (encoder, {"frames": 5}, "frames was 3 and is 5"),
        (encoder, {"antialias": True}, "antialias was False and is True"),
        (encoder, {"stored": "float16"}, "stored was float32 and is float16"),
        (encoder, {"precision": "bfloat16"}, "precision was float32 and is bfloat16"),
    ):
        with pytest.raises(ClipVipError, match=words):
            embed_videos(changed, listed, tmp_path / "out", **options)
    shutil.copytree(weights, tmp_path / "moved")
    embed_videos(load_encoder(tmp_path / "moved"), listed, tmp_path / "out")  # the same weights elsewhere
    assert Features(tmp_path / "out").settings["weights"] == str(tmp_path / "moved")
    with pytest.raises(ClipVipError, match="unknown type of stored features 'int8'"):
        embed_videos(encoder, listed, tmp_path / "new", stored="int8")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"frames": 0}, "frames and batch of at least 1, got 0 and 2"),
        ({"batch": -1}, r"frames and batch of at least 1, got \d and -1"),
        ({"workers": -2}, "workers expected 0 or more, got -2"),
    ],
)
def test_a_number_that_makes_no_sense_does_not_begin_the_folder(weights, clips, tmp_path, wrong, sentence):
    encoder, listed = load_encoder(weights), list_clips(clips[:1])
    with pytest.raises(ClipVipError, match=sentence):
        embed_videos(encoder, listed, tmp_path / "out", **wrong)
    assert embed_videos(encoder, listed, tmp_path / "out")["rows"] == 1


@pytest.mark.bad_input("embed: a cut video", says="its name, and `--skip-bad 1 would leave it out`")
def test_a_bad_video_stops_by_name_or_is_left_out(weights, tmp_path):
    encoder, source, out = load_encoder(weights), tmp_path / "videos", tmp_path / "out"
    paths = write_videos(source, 6)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:300])
    with pytest.raises(VideoError, match=r"v02\.mp4 is .*--skip-bad 1 would leave it out"):
        embed_videos(encoder, list_clips([source]), out)
    embed_videos(encoder, list_clips([source]), out, skip_bad=1)
    assert [row["id"] for row in rows_agree(out, encoder)] == ["v00", "v01", "v03", "v04", "v05"]
    (skipped,) = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert (
        skipped["id"] == "v02" and str(paths[2]) in skipped["reason"] and Features(out).meta["skipped"] == 1
    )
    with pytest.raises(ClipVipError, match="1 video could not be read before .* --skip-bad 1"):
        embed_videos(encoder, list_clips([source]), out)
    paths[4].write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"v04\.mp4.*--skip-bad 2"):
        embed_videos(encoder, list_clips([source]), out, skip_bad=1)
    paths[4].unlink()
    paths[2].write_bytes(whole)  # repaired: tried again
    embed_videos(encoder, list_clips([source]), out)
    assert [row["id"] for row in rows_agree(out, encoder)] == ["v00", "v01", "v02", "v03", "v05"]
    assert not (out / "skipped.jsonl").exists()
    (source / "bad").mkdir()
    (source / "bad" / "x.mp4").write_bytes(b"")
    with pytest.raises(ClipVipError, match="none of 1 items has features"):
        embed_videos(encoder, list_clips([source / "bad"]), tmp_path / "none", skip_bad=9)


@pytest.mark.parametrize("windows", [None, Windows(Fraction(2), Fraction(2))])
def test_what_was_left_out_as_damaged_can_still_be_accepted(weights, tmp_path, windows):
    encoder, source, out = load_encoder(weights), tmp_path / "videos", tmp_path / "out"
    write_videos(source, 1)
    (source / "bad.mp4").write_bytes(videos.damaged(videos.encode(140), seed=1, places=40))
    (source / "worse.mp4").write_bytes(b"no video")
    line = (encoder, list_clips([source]), out)
    skipped = embed_videos(*line, skip_bad=2, windows=windows)
    assert skipped["skipped"] == 2 and "damaged" not in skipped
    accepted = embed_videos(*line, skip_bad=1, windows=windows, damaged="accept")
    rows = [Features(out).row(i) for i in range(accepted["rows"])]
    assert accepted["skipped"] == 1 and any("damage" in row for row in rows if row["id"].startswith("bad"))
    assert [json.loads(line)["id"] for line in (out / "skipped.jsonl").read_text().splitlines()] == ["worse"]
    assert embed_videos(*line, skip_bad=1, windows=windows)["features_sha256"] == accepted["features_sha256"]


def test_pictures_that_are_written_over_are_embedded_again(weights, tmp_path):
    encoder, out = load_encoder(weights), tmp_path / "out"
    folder = write_pictures(tmp_path / "frames", videos.pictures(4))
    before = embed_videos(encoder, list_clips([folder]), out)
    time = folder.stat().st_mtime_ns
    for i, frame in enumerate(videos.pictures(8)[4:]):  # as ffmpeg -y does: the folder's own time stays
        Image.fromarray(255 - frame).save(folder / f"frames_{i:03d}.png")
    assert folder.stat().st_mtime_ns == time
    assert embed_videos(encoder, list_clips([folder]), out)["features_sha256"] != before["features_sha256"]


def test_texts(weights, tmp_path):
    encoder = load_encoder(weights)
    texts = [(f"t{i}", word) for i, word in enumerate(WORDS)]
    embed_texts(encoder, texts[:3], tmp_path, part=2)
    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "parts").iterdir())]
    embed_texts(encoder, texts[::-1], tmp_path, part=2)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [len(read_part(path)[1]) for path in parts] == [2, 1, 1]  # none is embedded a second time
    assert [path.stat().st_mtime_ns for path in parts[:2]] == written
    found = Features(tmp_path)
    assert [found.row(i)["text"] for i in range(4)] == list(WORDS[::-1])
    assert near(found.array, encoder.texts(WORDS[::-1]))
    with pytest.raises(ClipVipError, match="two texts have the id 't0'"):
        embed_texts(encoder, [*texts, texts[0]], tmp_path)
    with pytest.raises(ClipVipError, match="the text 'x' expected Unicode"):
        embed_texts(encoder, [*texts, ("x", "a \ud800")], tmp_path)
    with pytest.raises(ClipVipError, match="kind was texts and is videos"):
        embed_videos(encoder, [], tmp_path)


@pytest.mark.skipif("CLIPVIP_CLIPS" not in os.environ, reason="CLIPVIP_CLIPS names no folder of real clips")
def test_real_clips(weights, tmp_path):
    """Edit lists, two streams, Matroska, a display matrix: rows are features of the right frames, upright."""
    encoder = load_encoder(weights)
    embed_videos(encoder, list_clips([os.environ["CLIPVIP_CLIPS"]]), tmp_path)
    rows = {row["id"]: row["frames"] for row in rows_agree(tmp_path, encoder)}
    assert rows["discard_first_keyframe"] == 25 and rows["nasa_13013_rotated"] == 17
    found = Features(tmp_path)
    for i in range(len(found)):
        shown = frames_of(Path(found.row(i)["path"]))
        with torch.no_grad():
            by_hand = encoder.model.encode_video(torch.from_numpy(resize(shown, SIZE, False))[None])[
                0
            ].numpy()
        assert near(found.array[i], by_hand)
