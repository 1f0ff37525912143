"""Videos inside pages: files as they are, large ones made small, and data that no browser obeys."""

import base64
import html
import io
import json
import re

import av
import numpy as np
import pytest

from clipvip_lib.data.corpora import encode_h264, encode_jpeg
from clipvip_lib.errors import ClipVipError
from clipvip_lib.study import players

BAD = "</script><script>alert(1)</script> & <b>"


def film(n=6, height=40, width=40):
    y, x = np.mgrid[0:height, 0:width]
    return (
        np.stack([np.stack([x * 5 + 9 * i, y * 5, x + y], -1) for i in range(n)])
        .clip(0, 255)
        .astype(np.uint8)
    )


def decoded(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_small_file_is_shown_as_it_is_and_a_large_one_by_some_frames(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_h264(film(30, 300, 200)))
    assert players.small_video(path) == path.read_bytes()
    monkeypatch.setattr(players, "SMALL_ENOUGH", 100)
    made = decoded(players.small_video(path))
    assert made.shape == (players.FRAMES, 160, 106, 3)


def test_few_pixels_are_enlarged_and_stay_the_same_picture():
    frames = film(4, 48, 48)
    made = decoded(players.moving(frames))
    assert made.shape == (4, 144, 144, 3)
    assert np.abs(made[:, 1::3, 1::3].astype(int) - frames).mean() < 8
    assert players.moving(frames) == players.moving(frames)  # nbval compares pages


def test_what_is_said_is_text():
    made = players.players_html({BAD: [players.Player(b"x", BAD, BAD, own=True)]}, BAD, BAD)
    assert "<script" not in made and "<b> " not in made and html.unescape(made).count("alert(1)") == 7
    assert (
        'class="player own"' in made and "muted loop playsinline controls" in made and "autoplay" not in made
    )


def test_a_picture_stands_among_videos_and_what_is_asked_for_plays_at_once():
    row = [
        players.Player(encode_jpeg(film()[0]), "frame 1", "40 %"),
        players.Player(encode_h264(film()), "2", ""),
    ]
    made = players.players_html({"": row}, "t", "c", play=True)
    assert made.count("<img ") == made.count("<video ") == made.count(" autoplay ") == 1
    assert 'alt="frame 1 40 %" src="data:image/jpeg;base64,/9j/' in made and 'src="data:video/mp4' in made


def data(count=3, **changes):
    nearest = np.array([[0, 1], [2, 1], [2, 0]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    return {
        "queries": range(count),
        "texts": ["a", BAD, "c"],
        "models": {
            "one": (np.array([1, 2, 1]), nearest, scores),
            "two": (np.array([2, 1, 3]), nearest[::-1], scores),
        },
    } | changes


def test_a_picker_holds_what_each_model_found_and_each_video_once(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(encode_h264(film(3 + i)))
    found = players.picker_data(paths=paths, **data())
    assert [query["by"][1]["rank"] for query in found["queries"]] == [2, 1, 3]
    assert found["queries"][1]["by"][0]["found"] == [[2, "0.80"], [1, "0.20"]]
    assert {v: base64.b64decode(text) for v, text in found["videos"].items()} == {
        i: path.read_bytes() for i, path in enumerate(paths)
    }
    made = players.picker_html(found, "title", "caption")
    [inside] = re.findall(r'<script type="application/json" id="picker-data">(.*?)</script>', made)
    assert json.loads(inside)["texts"]["1"] == BAD and made.count("<script") == 1


def test_a_picker_takes_as_many_queries_as_a_page_has_room_for(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for path in paths:
        path.write_bytes(encode_h264(film()))
    one = len(base64.b64encode(paths[0].read_bytes()))
    nearest = np.array([[0], [1], [2]])
    models = {"one": (np.array([1, 1, 1]), nearest, np.ones((3, 1)))}
    monkeypatch.setattr(players, "PAGE_BYTES", 2 * one + 1)
    assert len(players.picker_data(paths=paths, **data(models=models))["queries"]) == 2
    monkeypatch.setattr(players, "PAGE_BYTES", one - 1)
    with pytest.raises(ClipVipError, match="take more than"):
        players.picker_data(paths=paths, **data(models=models))


def test_attention_is_kept_to_a_255th_of_the_largest():
    shares = np.random.default_rng(0).random((2, 3, 4, 5, 4, 4)) / 80
    made = players.attention_html({BAD: (film(5, 48, 48), shares)}, "t", "c", "<img alt='x'>")
    inside = json.loads(re.search(r"<script[^>]*>(.*?)</script>", made)[1])
    assert inside["size"] == [2, 3, 4, 5] and inside["grid"] == [4, 4]
    kept = np.frombuffer(base64.b64decode(inside["clips"][0]["maps"]), np.uint8).reshape(shares.shape)
    assert np.abs(kept / 255 * shares.max() - shares).max() <= shares.max() / 500
    assert len(inside["clips"][0]["frames"]) == 5 and "<img alt='x'>" in made


def test_a_file_that_is_no_video_is_a_sentence(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"avc1 no video" * 10_000)
    with pytest.raises(ClipVipError, match=r"a\.mp4"):
        players.small_video(path)
