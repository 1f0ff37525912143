"""The watch over decoders counts only the time in which somebody waits for a picture."""

import subprocess
import sys

import pytest
import videos

#: The watch in a hundredth of its time, and a video read in one of these ways.
START = """
import sys, threading, time
from clipvip_lib.data import hangs
from clipvip_lib.data.container import look
from clipvip_lib.data.video import Pictures
hangs.STUCK_SECONDS = 1.0
path = sys.argv[1]
pictures = iter(Pictures(path, look(path), path))
next(pictures)
"""
PAUSED = "time.sleep(3)\nprint(1 + sum(1 for _ in pictures))"
OTHER_THREAD = """
def consume():
    print(1 + sum(1 for _ in pictures))
thread = threading.Thread(target=consume)
time.sleep(3)
thread.start()
thread.join()
assert not hangs._readers
with hangs.watched("another"):
    assert len(hangs._readers) == 1
"""
INTERLEAVED = """
other = iter(Pictures(path, look(path), path))
next(other)
pictures.close()
assert not hangs._readers
print(1 + sum(1 for _ in other))
assert not hangs._readers
"""
HANGS = """
with hangs.watched("the second"):
    time.sleep(60)
"""


def run(code: str, path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", START + code, str(path)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("code", [PAUSED, OTHER_THREAD, INTERLEAVED], ids=["paused", "thread", "interleaved"])
def test_who_takes_pictures_may_pause_change_threads_or_read_two_videos(code, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(videos.encode(30))
    done = run(code, path)
    assert (done.returncode, done.stdout.strip()) == (0, "30"), done.stderr


def test_a_thread_with_a_paused_video_is_still_watched_for_another(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(videos.encode(30))
    done = run(HANGS, path)
    assert done.returncode == 2 and "nothing came of the second" in done.stderr


def test_the_conversion_of_colours_is_watched_in_windows_too(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(videos.encode(30))
    hangs = """
from clipvip_lib.data import video
from clipvip_lib.data.windows import read_windows
video.ToRgb.__call__ = lambda *_: time.sleep(60)
pictures.close()
for window in read_windows(path, None, 3, lambda shown: shown):
    print(window)
"""
    done = run(hangs, tmp_path / "clip.mp4")
    assert done.returncode == 2 and "nothing came of" in done.stderr and "clip.mp4" in done.stderr, (
        done.stderr
    )
