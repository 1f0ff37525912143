"""The nearest rows: equal to the plain full product, ties in order, FAISS against the exact answer."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clip import WORDS, save_small, write_videos

from clipvip_lib.data.clips import list_clips
from clipvip_lib.data.video import VideoError
from clipvip_lib.errors import ClipVipError
from clipvip_lib.features import search as module
from clipvip_lib.features.embedding import embed_texts, embed_videos, load_encoder
from clipvip_lib.features.folder import Features, _lines_of
from clipvip_lib.features.search import INDEX, INDEX_ABOUT, Searcher, faiss_search, search
from clipvip_lib.features.writer import FeatureWriter

HOW = {"kind": "videos", "weights": "w", "pretrained_tag": None, "checksum": "c", "stored": "float32"}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def folder_of(path, rows: np.ndarray, stored: str = "float32") -> Features:
    with FeatureWriter(path, {**HOW, "stored": stored}, 100_000) as writer:
        for i, row in enumerate(rows):
            writer.add({"id": f"v{i}", "path": f"/v{i}"}, "1", row)
        writer.join([f"v{i}" for i in range(len(rows))])
    return Features(path)


def by_hand(features: Features, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole matrix in float64, a stable sort."""
    cosines = unit(queries.astype(np.float64)) @ unit(features.array.astype(np.float64)).T
    order = np.argsort(-np.round(cosines, 12), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, 1)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory) -> Features:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    rows = unit(centres[rng.integers(50, size=5000)] + 0.5 * rng.standard_normal((5000, 32))).astype(
        np.float32
    )
    return folder_of(tmp_path_factory.mktemp("clustered"), rows)


@pytest.mark.parametrize("chunk", [7, 1000, 65536])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_exact_search_is_the_full_product(tmp_path, monkeypatch, chunk, stored):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(1)
    features = folder_of(tmp_path, unit(rng.standard_normal((300, 16))).astype(np.float32), stored)
    queries = rng.standard_normal((5, 16))
    for k in (1, 10, 300, 1000):
        rows, scores = search(features, queries, k)
        expected, cosines = by_hand(features, queries, k)
        assert (rows == expected).all() and np.abs(scores - cosines).max() < 1e-12
        assert rows.shape == (5, min(k, 300))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 70), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_ties_come_in_the_order_of_the_rows(tmp_path_factory, which, k, chunk):
    """Equal rows, wherever their chunk begins, have equal scores."""
    kinds = unit(np.random.default_rng(2).standard_normal((4, 24))).astype(np.float32)
    features = folder_of(tmp_path_factory.mktemp("ties"), kinds[which])
    query = np.random.default_rng(3).standard_normal((1, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        rows, scores = search(features, query, k)
    place = {kind: rank for rank, kind in enumerate(np.argsort(-(kinds @ query[0])).tolist())}
    expected = sorted(range(len(which)), key=lambda i: (place[which[i]], i))[:k]
    assert rows[0].tolist() == expected
    assert len(set(scores[0].tolist())) == len({which[i] for i in expected})


def test_wrong_queries_are_refused(clustered):
    with pytest.raises(ClipVipError, match="expected queries of width 32, got 8"):
        search(clustered, np.ones((1, 8)))
    with pytest.raises(ClipVipError, match="top of at least 1, got 0"):
        search(clustered, np.ones((1, 32)), 0)
    with pytest.raises(ClipVipError, match="not all zeros"):
        search(clustered, np.zeros((1, 32)))


def test_rows_that_only_float64_tells_apart(tmp_path):
    """Their float32 products come in another order: without the margin the true best would be dropped."""
    rng = np.random.default_rng(6)
    rows = unit(rng.standard_normal(256) + 1e-7 * rng.standard_normal((500, 256))).astype(np.float32)
    features, queries = folder_of(tmp_path, rows), rng.standard_normal((5, 256))
    found, _ = search(features, queries, 3)
    assert (found == by_hand(features, queries, 3)[0]).all()


def test_lines_are_found_across_blocks(tmp_path):
    rows = [b"%d" % i + b" " * (i % 300) for i in range(120_000)]
    (tmp_path / "ids.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    lines, ends, digest = _lines_of(tmp_path / "ids.jsonl")
    assert len(lines) > 2**24 and digest == hashlib.sha256(lines).hexdigest()
    starts = [0, *(ends[:-1] + 1)]
    assert [lines[a:b].tobytes() for a, b in zip(starts, ends, strict=True)] == rows


@pytest.mark.bad_input("search: a row whose length is not 1", says="`expected length 1`, `embed again`")
@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf, 3.0])
def test_rows_that_are_no_unit_vectors_are_refused(tmp_path, value):
    """Even if meta.json agrees with them."""
    folder_of(tmp_path, np.eye(4, dtype=np.float32))
    array = np.load(tmp_path / "features.npy")
    array[2] = value
    np.save(tmp_path / "features.npy", array)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["features_sha256"] = hashlib.sha256((tmp_path / "features.npy").read_bytes()).hexdigest()
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    ways = [search] + [faiss_search] * (importlib.util.find_spec("faiss") is not None)
    for way in ways:
        with pytest.raises(ClipVipError, match=r"row 2 of .*features\.npy expected length 1.*embed again"):
            way(Features(tmp_path), np.ones((1, 4)))


# ---------------------------------------------------------------------------------------------------------- FAISS


def test_faiss_finds_nearly_all_and_with_all_cells_all(clustered):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    queries = clustered.array[::100] + 0.1
    rows, scores = search(clustered, queries, 10)
    every, same_scores = faiss_search(clustered, queries, 10, probes=10**6)
    assert (every == rows).all() and (same_scores == scores).all()
    few, _ = faiss_search(clustered, queries, 10, probes=8)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(few.tolist(), rows.tolist(), strict=True)])
    one, _ = faiss_search(clustered, queries, 10, probes=1)
    worse = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(one.tolist(), rows.tolist(), strict=True)])
    assert found > 0.9 and worse < found
    assert faiss_search(clustered, queries[:1], 400, probes=1)[0].shape == (1, 400)  # more than a cell holds
    with pytest.raises(ClipVipError, match="probes of at least 1"):
        faiss_search(clustered, queries, 10, probes=0)


def test_an_index_of_a_few_rows_says_nothing(tmp_path, capfd):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rows = np.eye(3, 16, dtype=np.float32)
    assert faiss_search(folder_of(tmp_path, rows), rows[1:2], 1)[0].tolist() == [[1]]
    assert capfd.readouterr() == ("", "")


def test_the_index_is_kept_and_belongs_to_its_features(tmp_path):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rng = np.random.default_rng(4)
    rows = unit(rng.standard_normal((200, 16))).astype(np.float32)
    features = folder_of(tmp_path, rows)
    assert faiss_search(features, rows[:1], 1)[0].tolist() == [[0]]
    built = (tmp_path / INDEX).stat().st_mtime_ns
    assert faiss_search(features, rows[5:6], 1)[0].tolist() == [[5]]
    assert (tmp_path / INDEX).stat().st_mtime_ns == built
    about = json.loads((tmp_path / INDEX_ABOUT).read_text())
    (tmp_path / INDEX_ABOUT).write_text(json.dumps({**about, "kind": "IVF Flat"}))  # of an earlier version
    assert faiss_search(features, rows[5:6], 1)[0].tolist() == [[5]]
    assert json.loads((tmp_path / INDEX_ABOUT).read_text()) == about
    assert (tmp_path / INDEX).stat().st_mtime_ns > built
    for name in ("parts", "meta.json"):
        (shutil.rmtree if name == "parts" else lambda path: path.unlink())(tmp_path / name)
    turned = folder_of(tmp_path, rows[::-1])  # the same ids, other features
    assert faiss_search(turned, rows[5:6], 1)[0].tolist() == [[194]]


def test_without_faiss_it_is_one_sentence(clustered, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ClipVipError, match="run pip install faiss-cpu, or search without --faiss"):
        faiss_search(clustered, np.ones((1, 32)))


# --------------------------------------------------------------------------------------------- texts and videos


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    weights, paths = save_small(home / "weights"), write_videos(home / "videos", 6)
    encoder = load_encoder(weights)
    embed_videos(encoder, list_clips([home / "videos"]), home / "out", frames=2, antialias=True)
    embed_texts(encoder, [(str(i), word) for i, word in enumerate(WORDS)], home / "out" / "texts")
    return home, encoder, paths


def answer(features, texts=(), videos=(), top=10, weights=None):
    return Searcher(features, weights).answer(texts, videos, top)


def test_texts_and_videos_find_their_rows(embedded):
    home, encoder, paths = embedded
    features = Features(home / "out")
    text, video = answer(features, ["a dog runs"], [paths[3]], top=3)
    assert text["text"] == "a dog runs" and video["video"] == str(paths[3])
    first = video["results"][0]
    assert (first["id"], first["rank"], first["path"], first["frames"]) == ("v03", 1, str(paths[3]), 7)
    assert first["score"] == pytest.approx(1, abs=1e-6)  # encoded as the row: frames, resizing
    expected = encoder.texts(["a dog runs"]) @ features.array.T
    assert [result["row"] for result in text["results"]] == np.argsort(-expected[0])[:3].tolist()
    assert [r["score"] for r in text["results"]] == pytest.approx(
        np.sort(expected[0])[::-1][:3].tolist(), abs=1e-6
    )
    (of_texts,) = answer(Features(home / "out" / "texts"), ["a dog runs"])
    assert of_texts["results"][0]["text"] == "a dog runs" and len(of_texts["results"]) == 4
    json.dumps([text, video, of_texts])


def test_queries_are_encoded_by_the_same_weights_or_not_at_all(embedded, tmp_path):
    home, _, paths = embedded
    shutil.copytree(home / "out", tmp_path / "out")
    shutil.copytree(home / "weights", tmp_path / "weights")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    meta["settings"]["weights"] = str(tmp_path / "weights")
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    features = Features(tmp_path / "out")
    assert answer(features, videos=paths[:1])[0]["results"][0]["id"] == "v00"
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    with pytest.raises(ClipVipError, match="are gone; name where they are now with --weights"):
        answer(features, ["a dog"])
    assert (
        answer(features, videos=paths[:1], weights=str(tmp_path / "elsewhere"))[0]["results"][0]["id"]
        == "v00"
    )
    save_small(tmp_path / "weights", seed=1)
    with pytest.raises(ClipVipError, match="are not those that made these features"):
        answer(features, ["a dog"])
    with pytest.raises(ClipVipError, match="got neither"):
        answer(Features(home / "out"))
    with pytest.raises(VideoError, match=r"absent\.mp4"):
        answer(Features(home / "out"), videos=["absent.mp4"])


@pytest.mark.bad_input("search: features whose settings lack something", says="`embed them again`")
@pytest.mark.parametrize("name", ["weights", "checksum", "attention", "precision", "frames", "antialias"])
def test_settings_that_do_not_say_how_to_encode_are_refused(embedded, name):
    features = Features(embedded[0] / "out")
    whole = features.settings
    for value in (None, {}, ...):
        features.settings = {key: text for key, text in {**whole, name: value}.items() if text is not ...}
        with pytest.raises(ClipVipError, match=f"expected {name} as .*embed them again"):
            answer(features, ["a dog"])
    features.settings = {**whole, "precision": "float8"}
    with pytest.raises(ClipVipError, match="precision float32, bfloat16 or int8, got 'float8'"):
        answer(features, ["a dog"])


@pytest.mark.bad_input(
    "search: an empty query, or one that is not Unicode",
    says="`expected a text or a video to look for, got ' ?'` or `expected Unicode to look for`",
)
def test_empty_and_odd_queries_are_refused(embedded):
    features = Features(embedded[0] / "out")
    for options in ({"texts": ["a dog", ""]}, {"texts": [" "]}, {"videos": [""]}):
        with pytest.raises(ClipVipError, match="expected a text or a video to look for, got ' ?'"):
            answer(features, **options)
    with pytest.raises(ClipVipError, match="expected Unicode to look for"):
        answer(features, ["a \udcff"])
