"""`clipvip bench decode`: 12-frame samples per second and core, from originals and from packs, by several decoders.

A sample is 12 uniform frames and the middle one at 224 pixels: decoded, chosen, resized. Files are generated (240p and
480p, a key frame every 25 and 250 frames), or come from ``--folder``.

    ours                PyAV decodes all, as every command does: each index is right, damage is found
    ours, pack          the same reader, of what `clipvip pack` makes of the file
    decord, torchcodec  where they are installed: they jump to the frames; "off" says how far their frames are from ours
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipvip_lib.bench import moving_textures
from clipvip_lib.bench.measure import about, in_turns, set_threads
from clipvip_lib.data.clips import list_clips
from clipvip_lib.data.packed_clip import JITTER_STEPS, Packing, pack_clip
from clipvip_lib.data.shards import read_media
from clipvip_lib.data.transform import resize
from clipvip_lib.data.video import clip_indices, read_frames
from clipvip_lib.errors import ClipVipError

FRAMES, SIZE = 12, 224
GOPS = (25, 250)
LENGTHS = (10, 30)  # seconds

Reader = Callable[[str], np.ndarray]


def ours(source: str | bytes) -> np.ndarray:
    return read_frames(source, lambda total: clip_indices(total, FRAMES), "a clip")


def decord(path: str) -> np.ndarray:
    import decord

    video = decord.VideoReader(path, num_threads=1)
    return video.get_batch(clip_indices(len(video), FRAMES)).asnumpy()


def torchcodec(path: str) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="exact")
    return video.get_frames_at(clip_indices(len(video), FRAMES)).data.numpy()


def peers() -> dict[str, Reader]:
    """The other decoders that are installed."""
    known = {"decord": decord, "torchcodec": torchcodec}
    return {name: reader for name, reader in known.items() if importlib.util.find_spec(name)}


def measure(repeats: int = 3, folder: str | None = None, clips: int = 20, quality: int = 20) -> dict:
    """Rows of kind of file and reader: milliseconds of one core a sample (median and spread over clips and repeats),
    samples per second and core, times as fast as decord (or as ours, without it), bytes a clip, difference from ours.

    Raises ClipVipError as ``list_clips`` for ``folder``, of which the first ``clips`` are taken.
    """
    set_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for kind, paths in kinds(Path(name), folder, clips).items():
            rows += _of_kind(kind, paths, Path(name), repeats, quality)
    packages = ["av", *(peer for peer in peers())]
    return {
        "what": f"{FRAMES} frames and the middle one of a clip at {SIZE} pixels",
        "rows": rows,
        **about(packages),
    }


def kinds(work: Path, folder: str | None, clips: int) -> dict[str, list[Path]]:
    """Files by kind: those of a user's folder, or generated ones."""
    if folder is not None:
        return {folder: _of_folder(work, folder, clips)}
    found = {}
    for number, (height, gop) in enumerate(itertools.product(moving_textures.HEIGHTS, GOPS)):
        found[f"{height}, GOP {gop}"] = [
            moving_textures.write(
                work / f"{number}-{seconds}.mp4", number, *moving_textures.HEIGHTS[height], seconds, gop
            )
            for seconds in LENGTHS
        ]
    return found


def _of_folder(work: Path, folder: str, clips: int) -> list[Path]:
    listed = [clip for clip in list_clips([folder], ids="path") if not Path(clip.path).is_dir()][:clips]
    paths = []
    for number, clip in enumerate(listed):
        if clip.entry is None:
            paths.append(Path(clip.path))
        else:
            paths.append(work / f"{number:05d}.mp4")
            paths[-1].write_bytes(read_media(clip.path, clip.entry))
    if not paths:
        raise ClipVipError(f"{folder} holds only folders of pictures: expected video files; name another")
    return paths


def _of_kind(kind: str, paths: list[Path], work: Path, repeats: int, quality: int) -> list[dict]:
    packs = {"ours, pack": 1, "ours, pack with jitter": JITTER_STEPS}
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    off: dict[str, list[float]] = {}
    for path in paths:
        right = resize(ours(str(path)), SIZE, False).astype(np.int16)
        readers = {"ours": (ours, path), **{name: (reader, path) for name, reader in peers().items()}}
        for name, steps in packs.items():
            packed = work / f"pack{steps}.mp4"
            packed.write_bytes(pack_clip(path, Packing(FRAMES, steps, SIZE, quality=quality)).content)
            readers[name] = (ours, packed)
        forms = {name: _form(reader, file) for name, (reader, file) in readers.items()}
        for name, form in forms.items():
            sizes.setdefault(name, []).append(readers[name][1].stat().st_size)
            off.setdefault(name, []).append(float(np.abs(form() - right).mean()))
        for name, found in in_turns(forms, repeats).items():
            seconds.setdefault(name, []).extend(found)
    base = statistics.median(seconds.get("decord", seconds["ours"]))
    return [
        {
            "files": kind,
            "reader": name,
            "ms": round(1e3 * statistics.median(found), 1),
            "ms_min": round(1e3 * min(found), 1),
            "ms_max": round(1e3 * max(found), 1),
            "samples_a_second_and_core": round(1 / statistics.median(found), 1),
            "times_decord" if "decord" in seconds else "times_ours": round(
                base / statistics.median(found), 2
            ),
            "kB_a_clip": round(statistics.mean(sizes[name]) / 1e3),
            "off_in_grey_levels": round(statistics.mean(off[name]), 2),
        }
        for name, found in seconds.items()
    ]


def _form(reader: Reader, path: Path) -> Callable[[], np.ndarray]:
    return lambda: resize(reader(str(path)), SIZE, False)
