"""The page of results, as a file and from the server, in a real browser: what is typed finds the video, which plays."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path

import av
import pytest
import videos
from browser import browser, in_a_browser, with_axe
from small_clip import WORDS, save_small, write_videos
from test_clips import jpeg, write_pictures, write_shard
from test_embed_commands import run
from test_serve import Served
from test_windows import SECOND_KEYS

from clipvip_lib.errors import ClipVipError
from clipvip_lib.features.folder import Features

ODD = "<img src=x onerror=alert(1)>\u202e#?%"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_videos(root / "videos", 2, first=40)
    (root / "videos" / f"{ODD}.mp4").write_bytes(videos.encode(30))
    (root / "videos" / "long.mp4").write_bytes(videos.encode(140, SECOND_KEYS))
    long = videos.encode(140, SECOND_KEYS, size=(270, 480))
    write_shard(root / "videos" / "0.tar", {"k": {"mp4": long}, "still": {"jpg": jpeg()}})
    (root / "texts.txt").write_text("\n".join(WORDS))
    save_small(root / "weights")
    asked = ("--weights", root / "weights", "--out", root / "out", "--windows", "2", "--stride", "1")
    assert run("embed", root / "videos", *asked, "--texts", root / "texts.txt") == 0
    return root


@pytest.fixture(scope="module")
def served(indexed):
    served = Served(indexed / "out", every=True)
    yield served
    served.close()


@pytest.fixture(scope="module")
def page(indexed) -> Path:
    """A page in another folder than the videos."""
    file = indexed / "pages" / "found.html"
    line = (
        "search",
        "a dog runs",
        WORDS[0],
        "--video",
        indexed / "videos" / "v01.mp4",
        "--in",
        indexed / "out",
    )
    assert run(*line, "--top", 50, "--all-windows", "--html", file) == 0
    return file


def data_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )


def test_the_file_links_files_and_holds_samples_of_shards(page, indexed):
    text = page.read_text()
    data, rows = data_of(text), Features(indexed / "out")
    assert [query["asked"] for query in data["queries"]] == [
        "a dog runs",
        WORDS[0],
        str(indexed / "videos" / "v01.mp4"),
    ]
    assert all(len(query["results"]) == len(rows) for query in data["queries"])
    assert len(data["items"]) == len(rows) and not data["server"]
    by_id = {item["id"]: item for item in data["items"].values()}
    assert by_id["long#t=3"]["src"] == "../videos/long.mp4#t=3,5"
    assert by_id["v01#t=0"]["src"] == "../videos/v01.mp4#t=0,1.64"
    odd = next(item for id, item in by_id.items() if "onerror" in id)
    assert odd["src"].startswith("../videos/%3Cimg%20src%3Dx") and "\\u202e" in odd["id"]
    kind, _, content = by_id["k#t=3"]["src"].partition(";base64,")
    with av.open(io.BytesIO(base64.b64decode(content))) as small:
        stream = small.streams.video[0]
        frames = list(small.decode(stream))
        assert kind == "data:video/mp4" and (stream.height, stream.width) == (180, 320)
        assert len(frames) == 40 and float(stream.duration * stream.time_base) == pytest.approx(2, abs=0.1)
    assert by_id["still#t=0"]["kind"] == "image" and by_id["still#t=0"]["src"].startswith("data:image/jpeg;")
    assert len(text) < 3 * 2**20 and "<img" not in text and "http" not in text.replace("http-equiv", "")


def test_texts_have_a_page_too(indexed, tmp_path):
    assert run("search", "a dog", "--in", indexed / "out" / "texts", "--html", tmp_path / "p.html") == 0
    data = data_of((tmp_path / "p.html").read_text())
    assert {item["text"] for item in data["items"].values()} == set(WORDS)
    assert data["title"] == "Search in 4 texts"


def replace_unseen(shard: Path, content: bytes) -> None:
    """Another content of the same size and time, as after a restore that went wrong."""
    before = shard.stat()
    shard.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_sample_that_cannot_be_read_is_told_in_its_place(indexed, tmp_path):
    write_pictures(tmp_path / "v" / "frames", videos.pictures(3))
    shard = write_shard(tmp_path / "v" / "1.tar", {"bad": {"mp4": videos.encode(30)}})
    assert run("embed", tmp_path / "v", "--weights", indexed / "weights", "--out", tmp_path / "out") == 0
    at = shard.read_bytes().index(b"ftyp")
    replace_unseen(shard, shard.read_bytes().replace(b"ftyp", b"xxxx").replace(b"moov", b"xxxx"))
    assert at and run("search", "dog", "--in", tmp_path / "out", "--html", tmp_path / "p.html") == 0
    items = {item["id"]: item for item in data_of((tmp_path / "p.html").read_text())["items"].values()}
    assert items["bad"]["kind"] == "none" and "not a readable video" in items["bad"]["why"]
    assert items["frames"]["src"] == "v/frames/frames_001.png" and items["frames"]["kind"] == "image"


@pytest.mark.bad_input(
    "search --html: a shard's sample that is shorter now, in a file of the same size and time",
    says="`ends before 4 s`, on the page",
)
def test_a_sample_that_was_replaced_by_a_shorter_one_is_told_in_its_place(indexed, tmp_path):
    shard = write_shard(tmp_path / "1.tar", {"k": {"mp4": videos.encode(140, SECOND_KEYS)}})
    out = ("--weights", indexed / "weights", "--out", tmp_path / "out", "--windows", "2")
    assert run("embed", shard, *out) == 0
    shorter = write_shard(tmp_path / "2.tar", {"k": {"mp4": videos.encode(30)}})
    replace_unseen(shard, shorter.read_bytes())
    assert run("search", "dog", "--in", tmp_path / "out", "--html", tmp_path / "p.html") == 0
    items = {item["id"]: item for item in data_of((tmp_path / "p.html").read_text())["items"].values()}
    assert "k of " in items["k#t=4"]["why"] and "ends before 4 s" in items["k#t=4"]["why"]
    assert items["k#t=0"]["kind"] == "video"


@pytest.mark.bad_input(
    "search --html: a file that no page should overwrite", says="`a file to write that ends in .html`"
)
@pytest.mark.parametrize("name", ["videos/v00.mp4", "videos", "x.json", ""])
def test_no_other_file_is_overwritten(indexed, name, monkeypatch):
    monkeypatch.chdir(indexed)
    with pytest.raises(ClipVipError, match="--html expected a file to write that ends in .html"):
        run("search", "dog", "--in", "out", "--html", name)


READY = "[...document.querySelectorAll('video')].every((v) => v.readyState >= 2)"
WIDE = "document.documentElement.scrollWidth <= innerWidth"


@in_a_browser
@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_the_file_plays_in_a_browser_without_a_network(page, indexed, tmp_path, dark, width):
    with browser(tmp_path / "profile", mouse=width > 1000) as tab:
        tab.show(page, width=width, height=1600, dark=dark)
        tab.wait(READY)
        assert tab.run("document.querySelectorAll('li').length") == 3 * len(Features(indexed / "out"))
        assert tab.run("getComputedStyle(document.querySelector('form')).display") == "none"
        found = "[...document.querySelectorAll('li')].find((li) => li.querySelector('h3').textContent === %s)"
        for id, start, end in (("long#t=1", 1, 3), ("k#t=3", 0, 2)):
            video = found % json.dumps(id) + ".querySelector('video')"
            assert tab.run(f"{video}.currentTime") == pytest.approx(start, abs=0.05)
            tab.run(f"{video}.play()")
            tab.wait(f"{video}.paused || {video}.ended")  # at the end of the window
            assert tab.run(f"{video}.currentTime") == pytest.approx(end, abs=0.9)  # the file ends at 5.6
        tab.point("h1")
        controls = "document.querySelector('video').controls"
        assert tab.run(controls) is (width == 390)  # a finger has nothing to point with
        tab.point("video")
        tab.wait(controls)
        tab.point("h1")
        tab.wait(f"{controls} === {str(width == 390).lower()}")
        image = found % "'still#t=0'" + ".querySelector('img')"
        assert tab.run(f"{image}.naturalWidth") == 64 and "still" in tab.run(f"{image}.alt")
        assert tab.run(WIDE) and tab.contrasts()[0][0] >= 4.5, tab.contrasts()[:3]
        assert tab.run("[...document.querySelectorAll('video')].every((v) => v.getAttribute('aria-label'))")
        assert tab.complaints() == []


@in_a_browser
@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_what_is_typed_finds_the_video_which_plays(served, indexed, tmp_path, dark, width):
    with browser(tmp_path / "profile", mouse=width > 1000, local=True) as tab:
        tab.show(served.server.url, width=width, height=1600, dark=dark)
        tab.wait("document.activeElement.id === 'q'")
        tab.type("a dog runs")
        tab.press("Enter")
        tab.wait("document.querySelectorAll('li').length === 6")
        best = json.loads(served.ask("/api/search?q=a+dog+runs&top=1")[2])
        row = best["queries"][0]["results"][0]["row"]
        assert tab.run("document.querySelector('h2').textContent") == "a dog runs"
        assert tab.run("document.querySelector('li h3').textContent") == best["items"][str(row)]["id"]
        assert re.fullmatch(r".*, in \d+\.\d{3} s", tab.run("document.querySelector('h2 + p').textContent"))
        assert tab.run("location.search") == "?q=a+dog+runs"
        tab.wait(READY)
        # A clip of the reader's own
        tab.choose("#clip", indexed / "videos" / "v01.mp4")
        tab.run("document.querySelector('form button').click()")
        tab.wait("document.querySelector('h2').textContent === 'v01.mp4'")
        assert tab.run("document.querySelector('li h3').textContent") == "v01#t=0"
        # More like a result, up to all of them
        tab.run("document.getElementById('top').value = '24', document.querySelector('li button').click()")
        tab.wait(f"document.querySelectorAll('li').length === {len(served.features)}")
        tab.wait(READY)
        assert tab.run("document.querySelector('h2').textContent") == "Like v01#t=0"
        odd = "[...document.querySelectorAll('h3')].find((h) => h.textContent.includes('onerror'))"
        assert "\\u202e" in tab.run(f"{odd}.textContent") and not tab.run(f"{odd}.children.length")
        for id, start in (("long#t=3", 3), ("k#t=2", 2)):
            video = f"[...document.querySelectorAll('li')].find((li) => li.querySelector('h3').textContent === '{id}')"
            assert tab.run(f"{video}.querySelector('video').currentTime") == pytest.approx(start, abs=0.05)
        assert tab.run(WIDE) and tab.contrasts()[0][0] >= 4.5, tab.contrasts()[:3]
        assert tab.complaints() == []
        # An empty question is told
        tab.run("document.getElementById('q').focus()")
        tab.type(" ")
        tab.press("Enter")
        tab.wait("document.getElementById('said').textContent.includes('expected a text or a video')")
        assert tab.contrasts()[0][0] >= 4.5
        # Back to what was asked before
        assert tab.run("location.search").startswith("?like=")
        tab.run("history.go(-2)")
        tab.wait("document.querySelector('h2')?.textContent === 'a dog runs'")
        assert tab.run("location.search + document.getElementById('q').value") == "?q=a+dog+runsa dog runs"


@in_a_browser
@pytest.mark.slow
def test_a_token_lets_a_browser_in(indexed, tmp_path):
    served = Served(indexed / "out", "a-token-of-some-length")
    try:
        with browser(tmp_path / "profile", mouse=True, local=True) as tab:
            tab.show(served.server.url, height=1600)
            tab.wait("document.activeElement.id === 'q'")
            assert tab.run("location.search") == ""
            tab.type("a dog runs")
            tab.press("Enter")
            tab.wait("document.querySelectorAll('li').length === 6 && " + READY)
            assert tab.complaints() == []
    finally:
        served.close()


@in_a_browser
@with_axe
@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_axe_finds_nothing_that_matters(page, served, indexed, tmp_path, dark, width):
    few = indexed / "pages" / "few.html"
    texts = indexed / "pages" / "texts.html"
    assert run("search", "a dog runs", "--in", indexed / "out", "--top", 3, "--html", few) == 0
    assert run("search", "a dog runs", "--in", indexed / "out" / "texts", "--html", texts) == 0
    with browser(tmp_path / "profile", mouse=width > 1000, local=True) as tab:
        for shown in (page, few, texts):
            tab.show(shown, width=width, dark=dark, still=True)
            assert tab.violations() == [], shown
        tab.show(served.server.url, width=width, dark=dark, still=True)
        assert tab.violations() == []
        tab.type("a dog runs")
        tab.press("Enter")
        tab.wait("document.querySelectorAll('li').length === 6 && " + READY)
        assert tab.violations() == []


def test_of_windows_that_overlap_the_best_is_shown(indexed, tmp_path, capsys):
    """On the command line, as JSON, on the page and by the server alike."""
    line, rows = ("search", "a dog runs", "--in", indexed / "out", "--top", 20), Features(indexed / "out")

    def told(*more: str) -> list[dict]:
        assert run(*line, "--json", *more) == 0
        return json.loads(capsys.readouterr().out)["results"]

    every, few = told("--all-windows"), told()
    assert len(every) == len(rows) and "overlapping" not in every[0]
    assert [each["rank"] for each in few] == list(range(1, len(few) + 1))
    kept: list[dict] = []  # by hand: in order of the score, what overlaps nothing kept
    for each in every:
        same = [
            other for other in kept if other["path"] == each["path"] and other.get("key") == each.get("key")
        ]
        if not any(each["start"] < other["end"] and other["start"] < each["end"] for other in same):
            kept.append(each)
    assert [each["id"] for each in few] == [each["id"] for each in kept]
    assert sum(each["overlapping"] for each in few) == len(every) - len(few) > 2
    assert [each["id"] for each in told()[:3]] == [each["id"] for each in few[:3]]
    best = max(few, key=lambda each: each["overlapping"])
    assert run(*line) == 0
    said = next(each for each in capsys.readouterr().out.splitlines() if f"  {best['id']}  " in each)
    assert said.endswith(f"-{best['end']:g} s, {best['overlapping']} more overlap it")
    assert run(*line, "--html", tmp_path / "p.html") == 0
    [query] = data_of((tmp_path / "p.html").read_text())["queries"]
    wanted = [(each["row"], each["overlapping"]) for each in few]
    assert [(each["row"], each["overlapping"]) for each in query["results"]] == wanted
    few_served = Served(indexed / "out")
    try:
        [query] = json.loads(few_served.ask("/api/search?q=a+dog+runs&top=20")[2])["queries"]
        assert [(each["row"], each["overlapping"]) for each in query["results"]] == wanted
        [three] = json.loads(few_served.ask("/api/search?q=a+dog+runs&top=3")[2])["queries"]
        assert [each["row"] for each in three["results"]] == [row for row, _ in wanted[:3]]
    finally:
        few_served.close()
