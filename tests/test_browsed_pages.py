"""The pages of a smoke run in a browser: whole, legible and quiet at both widths, in light and dark; what moves, moves;
what can be touched, answers; and without a script nothing is missing."""

import base64
import contextlib
import json

import browser as browsers
import numpy as np
import pytest
from page_tables import Tables

from clipvip_lib.study.experiments import NOTEBOOKS

pytestmark = [pytest.mark.slow, browsers.in_a_browser]
PAGES = [*NOTEBOOKS, "index"]
ALWAYS = (
    "index",
    "00_start_here",
    "05_ocl_losses",
)  # of them all kinds of things; the other pages: when all are asked
LOOKED_AT = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.thorough) for name in PAGES]
LOOKS = [(1280, False), (1280, True), (390, False), (390, True)]

#: Tables of which a cell cannot be reached, or that scroll without saying so or without keeping their first column.
CUT = """(async () => {
  const cut = [];
  for (const fold of document.querySelectorAll('details.fold')) fold.open = true;
  const boxes = [...document.querySelectorAll('.table')], wide = (box) => box.scrollWidth > box.clientWidth + 1;
  for (let i = 0; i < 200 && boxes.some((box) => wide(box) && !box.classList.contains('scrolls')); i++)
    await new Promise((done) => setTimeout(done, 25)); // until the page has seen that they are open
  for (const box of boxes) {
    const name = box.getAttribute('aria-label'), row = box.querySelector('tbody tr');
    if (box.getBoundingClientRect().right > innerWidth + 1) cut.push([name, 'its frame']);
    if (!wide(box)) continue;
    box.scrollLeft = 1e6;
    const frame = box.getBoundingClientRect(), [first, last] = [row.firstElementChild, row.lastElementChild];
    if (last.getBoundingClientRect().right > frame.right + 1) cut.push([name, 'its last column']);
    if (Math.abs(first.getBoundingClientRect().left - frame.left) > 1) cut.push([name, 'its first column']);
    const cue = getComputedStyle(box.querySelector('caption'), '::after').content;
    if (!cue.includes('scroll')) cut.push([name, 'its cue']);
    if (box.tabIndex !== 0) cut.push([name, 'no stop of the tab key']);
    box.scrollLeft = 0;
  }
  return cut;
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browsers.browser(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@pytest.fixture(scope="module")
def out(smoke):
    assert smoke.first.returncode == 0, smoke.first.stdout[-3000:]
    return smoke.out


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_page_is_whole_legible_and_quiet(tab, out, name):
    for width, dark in LOOKS:
        tab.show(out / f"{name}.html", width=width, dark=dark)
        where = f"{name} at {width}, {'dark' if dark else 'light'}"
        assert tab.run("document.documentElement.scrollWidth") <= width, where
        assert dark or tab.run(CUT) == [], where
        assert width < 1000 or tab.contrasts()[0][0] >= 4.5, (where, tab.contrasts()[:9])
        assert tab.complaints() == [], where
    assert (out / f"{name}.html").stat().st_size < 3 * 2**20


def test_the_checks_find_what_they_look_for(tab, tmp_path):
    cells = "".join(f"<td>a wide cell, number {i}</td>" for i in range(30))
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background:#fff'><p style='color:#888'>faint</p><p style='color:#666'>legible</p>"
        "<style>::placeholder{color:#999}</style><input placeholder='faint too'>"
        f"<div class=table aria-label=wide style='overflow:hidden'><table><caption>x</caption><tbody><tr>{cells}"
        "</table></div><img src='https://example.org/x.png'><script>console.error('no')</script>"
    )
    tab.show(bad)
    assert [text for ratio, text in tab.contrasts() if ratio < 4.5] == ["faint too", "faint"]
    assert {what for _, what in tab.run(CUT)} >= {"its first column", "its cue"}
    said = " ".join(tab.complaints())
    assert "example.org" in said and '"value": "no"' in said


@browsers.with_axe
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_that_matters(tab, out, name):
    tab.show(out / f"{name}.html", width=390, dark=True, still=True)
    assert tab.violations() == []


def test_videos_play_while_they_are_seen_and_stop_when_asked(tab, out):
    tab.show(out / "00_start_here.html")
    tab.run("document.querySelector('.players video').scrollIntoView({block: 'center'})")
    first = "document.querySelector('.players video')"
    tab.wait(f"!{first}.paused && {first}.currentTime > 0.2 && {first}.videoWidth > 0")
    assert tab.run(f"{first}.muted && {first}.loop")
    tab.run("scrollTo(0, 1e6)")
    tab.wait(f"{first}.paused")
    tab.run(f"{first}.scrollIntoView({{block: 'center'}})")
    tab.wait(f"!{first}.paused")
    tab.run("document.querySelector('button.motion').click()")
    tab.wait("[...document.querySelectorAll('video')].every((video) => video.paused && video.controls)")


def test_videos_stand_still_for_who_asks_for_less_motion(tab, out):
    tab.show(out / "00_start_here.html", still=True)
    tab.run("document.querySelector('.players video').scrollIntoView({block: 'center'})")
    tab.wait("document.querySelector('.players video').seen")
    assert tab.run("[...document.querySelectorAll('video')].every((video) => video.paused && video.controls)")


def test_a_query_is_found_by_typing_its_words(tab, out):
    page = (out / "00_start_here.html").read_text(encoding="utf-8")
    tab.show(out / "00_start_here.html")
    [rows] = [rows for caption, rows in Tables(page).tables.items() if "rank of their own video" in caption]
    sentence, *ranks = rows[7]
    tab.run("document.querySelector('.picker input').focus()")
    tab.type(" ".join(sentence.split()[::-1]))  # words in any order
    tab.wait("!document.querySelector('.picker ul').hidden")
    tab.press("ArrowDown")
    tab.press("Enter")
    assert tab.run("document.querySelector('.picker input').value") == sentence
    said = tab.run("[...document.querySelectorAll('.picker .said')].map((told) => told.textContent)")
    assert said == [
        f"{m}: its own video at rank {r}" for m, r in zip(("CLIP4Clip", "CLIP-ViP"), ranks, strict=True)
    ]
    data = tab.run("JSON.parse(document.querySelector('.picker script').textContent)")
    [query] = [query for query in data["queries"] if query["text"] == sentence]
    found = []
    for model in query["by"]:
        for place, (video, score) in enumerate(model["found"], start=1):
            own = " ✓" if video == query["video"] else ""
            source, text = (data[kind][str(video)] for kind in ("videos", "texts"))
            found.append([f"data:video/mp4;base64,{source}", f"{place}{own} · {score} {text}"])
    shown = """[...document.querySelectorAll('.picker .player')].map((player) =>
        [player.querySelector('video').src, player.querySelector('p').textContent])"""
    assert tab.run(shown) == found and len({src for src, _ in found}) > 1
    tab.run("document.querySelector('.picker .found').scrollIntoView({block: 'center'})")
    tab.wait("[...document.querySelectorAll('.picker video')].length == 6")
    tab.wait("[...document.querySelectorAll('.picker video')].every((video) => video.currentTime > 0)")
    assert tab.complaints() == []


def test_intervals_tell_their_numbers(tab, out):
    results = json.loads((out / "results" / "04_video_proxy.json").read_text())
    row = results["numbers"]["scores"][0]
    tab.show(out / "04_video_proxy.html")
    tab.run("document.querySelector('figure[data-points] .point').focus()")
    told = tab.run("document.getElementById('tip').textContent")
    assert (
        told
        == f"mini-MSRVTT, {row['arm']}: {row['average recall']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
    )
    assert tab.run("document.activeElement.getAttribute('aria-describedby')") == "tip"
    tab.press("ArrowDown")
    assert tab.run("document.getElementById('tip').textContent") != told
    tab.press("Escape")
    assert tab.run("document.getElementById('tip').hidden")


def test_a_point_lies_on_its_mark(tab, out):
    """In every figure with points, what is drawn under a point is not the paper."""
    tab.show(out / "04_video_proxy.html")
    bare = tab.run("""(async () => {
      const bare = [];
      for (const figure of document.querySelectorAll('figure[data-points]')) {
        const image = figure.querySelector('img'), canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const paint = canvas.getContext('2d');
        paint.drawImage(image, 0, 0);
        for (const [x, y, text] of JSON.parse(figure.dataset.points)) {
          const pixels = paint.getImageData(x * canvas.width - 5, y * canvas.height - 5, 10, 10).data;
          const coloured = pixels.filter((_, i) => i % 4 === 0 && Math.abs(pixels[i] - pixels[i + 2]) > 60).length;
          if (!coloured) bare.push(text);
        }
      }
      return bare;
    })()""")
    assert bare == []


def test_a_heading_sorts_its_table(tab, out):
    tab.show(out / "08_verdict.html")
    column = """(() => { const table = [...document.querySelectorAll('.table table')].find((found) =>
      found.caption.textContent.startsWith('Every contrast in average'));
      const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === 'effect');
      %s
      const shown = (row) => row.cells[head.cellIndex].textContent.replace('−', '-');
      return [...table.tBodies[0].rows].map((row) => Number(shown(row))); })()"""
    before = tab.run(column % "")
    up = tab.run(column % "head.firstElementChild.click();")
    down = tab.run(column % "head.firstElementChild.click();")
    assert up == sorted(before) and down == up[::-1] and up != before
    assert tab.run(column % "head.firstElementChild.click();") == before


def test_words_are_explained_where_they_stand(tab, out):
    tab.show(out / "05_ocl_losses.html")
    tab.run(
        "[...document.querySelectorAll('a.term')].find((word) => word.textContent === 'V-S,C + F-C').focus()"
    )
    assert tab.run("document.getElementById('tip').textContent").startswith("The paper's loss")
    words = tab.run(
        "[...document.querySelectorAll('a.term')].filter((a) => !document.querySelector(a.hash)).length"
    )
    assert words == 0


def test_the_viewer_shows_what_is_chosen(tab, out):
    tab.show(out / "04_video_proxy.html")
    data = tab.run("JSON.parse(document.querySelector('.attention script').textContent)")
    layers, heads, proxies, frames = data["size"]
    maps = [
        np.frombuffer(base64.b64decode(clip["maps"]), np.uint8).reshape(layers, heads, proxies, frames, -1)
        for clip in data["clips"]
    ]
    state = {"clip": 0, "layer": layers - 1, "head": 0, "proxy": 0, "frame": 0}  # head 0: all
    sizes = {"clip": len(maps), "layer": layers, "head": heads + 1, "proxy": proxies, "frame": frames}
    veils = """[...document.querySelectorAll('.attention .veil')].map((veil) =>
        [...veil.children].map((cell) => Number(cell.style.opacity)))"""
    seen = set()
    for name in (None, "clip", "layer", "head", "proxy", "frame"):
        if name:
            state[name] = (state[name] + 1) % sizes[name]
            tab.run(f"""(() => {{ const chosen = document.getElementById('attention-data-{name}');
                chosen.selectedIndex = {state[name]};
                chosen.dispatchEvent(new Event('change')); }})()""")
        chosen = maps[state["clip"]][state["layer"]]
        chosen = chosen[state["head"] - 1] if state["head"] else chosen.mean(axis=0)
        expected = chosen[state["proxy"]]
        drawn = np.array(tab.run(veils))
        assert drawn == pytest.approx(0.85 * (1 - expected / max(expected.max(), 1)), abs=1e-3)
        seen.add((drawn.tobytes(), tab.run("document.querySelector('.attention .said').textContent")))
    assert len({veil for veil, _ in seen}) == 5 and len(seen) == 6  # another frame changes the words alone
    shares = tab.run("[...document.querySelectorAll('.frames p')].map((p) => parseInt(p.lastChild.data))")
    assert len(shares) == 4 and abs(sum(shares) - 100) <= 2


def test_without_a_script_nothing_is_missing(tab, out):
    @contextlib.contextmanager
    def no_script():
        tab.ask("Emulation.setScriptExecutionDisabled", value=True)
        yield
        tab.ask("Emulation.setScriptExecutionDisabled", value=False)

    with no_script():
        tab.show(out / "04_video_proxy.html")
        assert tab.run("document.querySelector('.attention .static img').naturalWidth") > 100
        assert tab.run("[...document.querySelectorAll('video')].every((video) => video.controls)")
        assert tab.run("document.querySelectorAll('.sort, .point, .motion, .choices').length") == 0
        tab.show(out / "00_start_here.html")
        assert tab.run(
            "[...document.querySelectorAll('caption')].some((c) => c.textContent.includes('rank of their own'))"
        )
        assert "the table below holds the same" in tab.run("document.querySelector('.picker').textContent")
        assert tab.run("document.querySelector(document.querySelector('a.term').hash).tagName") == "DT"
