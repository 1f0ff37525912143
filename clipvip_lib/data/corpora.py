"""The embedded world as files: real H.264, real tar shards, real annotation formats.

* image-text pairs and caption pairs: tar shards of key.jpg / key.txt (stand-ins for CLIP's 400M and for COCO);
* ``webvid-2.5m``, ``hdvila-10m``, ``hdvila-100m`` in the proportion 1 : 4 : 40: tar shards of key.mp4 / key.txt /
  key.json as video2dataset writes them; the first narrower in style with alt-text, the others with subtitles, the
  10m a random subset of the videos of the 100m;
* ``msrvtt`` (sentences) and ``didemo`` (paragraphs): video files and those sets' own annotation files.

A model sees this only through these files: what the scene description knows is lost, as in life. The
one exception is ``truth.json`` beside each benchmark, which only evaluation reads, to show results apart for
queries that tell the order and those that do not.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from clipvip_lib.data import language, world
from clipvip_lib.data.world import CLIPS_PER_VIDEO, DrawnClip, rng_for
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path, make_folder, write_bytes, write_json
from clipvip_lib.progress import ProgressCallback

RELATIVE_SIZES = {"webvid-2.5m": 1, "hdvila-10m": 4, "hdvila-100m": 40}
NARROW_BACKGROUNDS = world.BACKGROUNDS[:3]  # webvid: a stock-footage site's few studios ...
NARROW_THINGS = 2  # ... and tidy pictures
# Of a long video all clips are in a training split, but only a pair that does and undoes is in a validation or test
# split, as 1k-A has few clips of one video: a query has one candidate that differs in its motion alone.
CLIPS_IN_SPLIT = {"train": CLIPS_PER_VIDEO, "val": 2, "test": 2}


def encode_h264(frames: np.ndarray, fps: int | Fraction = world.FPS) -> bytes:
    """Encode uint8 [N, H, W, 3] RGB frames as an mp4 of H.264 (libx264, one thread, so the bytes repeat)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # Without mbtree=0 x264 reads memory that it never wrote: at many sizes the bytes then differ between runs.
        options = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] RGB as JPEG, quality 92."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_shard(path: Path, samples: Iterable[dict[str, bytes | str]]) -> int:
    """Write samples {"__key__", extension: content, ...} as one tar, whole or not at all. Returns their number."""
    count = 0
    with atomic_path(path) as partial, tarfile.open(partial, "w") as tar:
        for sample in samples:
            for extension, content in sample.items():
                if extension == "__key__":
                    continue
                content = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(
                    f"{sample['__key__']}.{extension}"
                )  # mtime 0, no owner: bytes repeat
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count


# ----------------------------------------------------------------------------------------------- still images


def write_images(path: Path, name: str, seed: int, first: int, count: int, progress: ProgressCallback) -> int:
    """One shard of still images ``first`` .. ``first + count - 1``. ``name`` is "image-text" (web pairs, alt-text
    and captions mixed) or "caption-pairs" (people's captions, what OFA is trained on)."""

    def samples() -> Iterator[dict]:
        for index in range(first, first + count):
            rng = rng_for(seed, name, index)
            clip = world.sample_still(rng, "pretraining")
            text = language.image_text(clip, rng) if name == "image-text" else language.caption(clip, rng)[0]
            jpeg = encode_jpeg(world.render(clip, frames=1)[0])
            yield {"__key__": f"{index:08d}", "jpg": jpeg, "txt": text}
            progress(index - first + 1, count, "images")

    return write_shard(path, samples())


# ----------------------------------------------------------------------------------- post-pretraining corpora


def _corpus_video(
    corpus: str,
    seed: int,
    index: int,
    as_written: float = language.SPOKEN_AS_WRITTEN,
    rewritten: bool = False,
) -> tuple[list[DrawnClip], list[str]]:
    """The clips of one long video of a corpus and what is written or heard beside each."""
    rng = rng_for(seed, corpus, index)
    if corpus == "webvid-2.5m":
        clips = world.sample_video(rng, "pretraining", 0.0, NARROW_BACKGROUNDS, NARROW_THINGS)
        return clips, [language.alt_text(clip, rng) for clip in clips]
    clips = world.sample_video(rng, "pretraining")
    neighbours = clips[1:] + clips[:1]
    texts = [
        language.subtitle(clip, near, rng, as_written) for clip, near in zip(clips, neighbours, strict=True)
    ]
    return clips, [language.as_caption(text) for text in texts] if rewritten else texts


def corpus_texts(corpus: str, seed: int, videos: int, **said: float | bool) -> Iterator[tuple[str, str]]:
    """(key, text) of each clip of the first long videos of a corpus, without their pictures. said: as ``write_corpus``
    takes it."""
    for index in range(videos):
        for part, text in enumerate(_corpus_video(corpus, seed, index, **said)[1]):
            yield _key(index, part), text


def _key(index: int, part: int) -> str:
    return f"v{index:07d}-{part}"  # no dot: WebDataset takes what follows the first one as extension


def write_corpus(
    path: Path,
    corpus: str,
    seed: int,
    first: int,
    videos: int,
    progress: ProgressCallback,
    **said: float | bool,
) -> int:
    """One shard with all clips of the long videos ``first`` .. ``first + videos - 1`` of a corpus.

    said: ``as_written`` (see ``language.subtitle``) and ``rewritten``, whether subtitles are rewritten as captions.
    """

    def samples() -> Iterator[dict]:
        for index in range(first, first + videos):
            clips, texts = _corpus_video(corpus, seed, index, **said)
            for part, (clip, text) in enumerate(zip(clips, texts, strict=True)):
                about = {
                    "video_id": f"{corpus}-{index:07d}",
                    "clip": part,
                    "clips": len(clips),
                    "caption": text,
                }
                mp4 = encode_h264(world.render(clip))
                yield {"__key__": _key(index, part), "mp4": mp4, "txt": text, "json": json.dumps(about)}
            progress(index - first + 1, videos, "long videos")

    return write_shard(path, samples())


def write_subset(path: Path, sources: list[Path], share: float, seed: int, progress: ProgressCallback) -> int:
    """A random subset of the long videos of some shards, as one shard: bytes and keys are the sources'."""
    names = [name for source in sources for name in _video_names(source)]
    wanted = round(len(names) * share)
    chosen = {names[i] for i in rng_for(seed, "subset").permutation(len(names))[:wanted]}
    count = 0
    with atomic_path(path) as partial, tarfile.open(partial, "w") as out:
        for done, source in enumerate(sources):
            with tarfile.open(source) as tar:
                for member in tar:
                    if member.name.rsplit("-", 1)[0] in chosen:
                        out.addfile(member, tar.extractfile(member))
                        count += member.name.endswith(".mp4")
            progress(done + 1, len(sources), "shards")
    return count


def _video_names(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return sorted({name.rsplit("-", 1)[0] for name in tar.getnames()})


# ------------------------------------------------------------------------------------------------- benchmarks


def _benchmark_video(
    name: str, seed: int, split: str, index: int
) -> tuple[list[DrawnClip], np.random.Generator]:
    rng = rng_for(seed, name, split, index)
    return world.sample_video(rng, split, two_events=1.0 if name == "didemo" else world.TWO_EVENTS), rng


def write_benchmark(
    folder: Path,
    name: str,
    seed: int,
    clips: dict[str, int],
    progress: ProgressCallback,
    tells_order: float = language.TELLS_ORDER,
) -> dict:
    """Write ``msrvtt`` or ``didemo``: videos/ID.mp4 and the set's annotation files.

    ``clips`` gives the number of clips of "train", "val" and "test", multiples of CLIPS_PER_VIDEO. No scene is in
    two splits, and no two long videos of a test split show the same scene. tells_order: share of
    captions that tell the events. Returns the counts written.
    """
    if any(number % CLIPS_PER_VIDEO or number < CLIPS_PER_VIDEO for number in clips.values()):
        raise ClipVipError(
            f"{name}: expected positive multiples of {CLIPS_PER_VIDEO} clips, got {clips}; round them up"
        )
    writer = {"msrvtt": _msrvtt_annotations, "didemo": _didemo_annotations}[name]
    make_folder(folder / "videos")
    rows, total, done = [], sum(clips.values()), 0
    for split, number in clips.items():
        scenes: set[str] = set()
        index = 0
        while sum(row["split"] == split for row in rows) < number:
            group, rng = _benchmark_video(name, seed, split, index)
            index += 1
            if split == "test" and group[0].scene in scenes:
                continue
            scenes.add(group[0].scene)
            for clip in group[: CLIPS_IN_SPLIT[split]]:
                video_id = f"video{done}" if name == "msrvtt" else f"{split}_{done:05d}"
                target = folder / "videos" / f"{video_id}.mp4"
                if not target.exists():  # after an interruption: files are whole or absent
                    write_bytes(target, encode_h264(world.render(clip)))
                rows.append(
                    {"video_id": video_id, "split": split, "clip": clip, "group": index - 1, "rng": rng}
                )
                done += 1
                progress(done, total, "clips")
    truth = writer(folder, rows, tells_order)
    write_json(folder / "truth.json", truth)
    return clips


def _truth(row: dict, tells: bool) -> dict:
    clip: DrawnClip = row["clip"]
    return {
        "split": row["split"],
        "scene": clip.scene,
        "group": row["group"],
        "tells_order": tells,
        "events": [asdict(event) for event in clip.events],
    }


def _msrvtt_annotations(folder: Path, rows: list[dict], tells_order: float) -> dict:
    """MSR-VTT as distributed with CLIP4Clip; MSRVTT_val.csv, in the test file's format, is this world's own (1k-A
    has no validation split). Returns the truth."""
    sentences, videos, truth = [], [], {}
    single: dict[str, list[dict]] = {"val": [], "test": []}
    for number, row in enumerate(rows):
        split, video_id = row["split"], row["video_id"]
        videos.append({"video_id": video_id, "id": number, "split": split})
        captions = [
            language.caption(row["clip"], row["rng"], tells_order) for _ in range(language.ANNOTATORS)
        ]
        if split == "train":
            for text, _ in captions:
                sentences.append({"video_id": video_id, "sen_id": len(sentences), "caption": text})
        else:
            text = captions[0][0]
            sentences.append({"video_id": video_id, "sen_id": len(sentences), "caption": text})
            key = f"ret{len(single[split])}"
            single[split].append(
                {"key": key, "vid_key": f"msr{number}", "video_id": video_id, "sentence": text}
            )
        truth[video_id] = _truth(row, captions[0][1])
    write_json(folder / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    trained = [{"video_id": row["video_id"]} for row in rows if row["split"] == "train"]
    _write_csv(folder / "MSRVTT_train.9k.csv", trained)
    _write_csv(folder / "MSRVTT_val.csv", single["val"])
    _write_csv(folder / "MSRVTT_JSFUSION_test.csv", single["test"])
    return truth


def _didemo_annotations(folder: Path, rows: list[dict], tells_order: float) -> dict:
    """DiDeMo's {train,val,test}_data.json: one entry per described moment, in order of time."""
    entries: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    truth = {}
    for row in rows:
        for moment, sentence in enumerate(language.paragraph(row["clip"], row["rng"], tells_order)):
            entries[row["split"]].append(
                {
                    "annotation_id": sum(map(len, entries.values())),
                    "video": f"{row['video_id']}.mp4",
                    "description": sentence,
                    "times": [[moment, moment]],
                    "num_segments": 2,
                }
            )
        truth[row["video_id"]] = _truth(row, tells=bool(tells_order))
    for split, listed in entries.items():
        write_json(folder / f"{split}_data.json", listed)
    return truth


def _write_csv(path: Path, rows: list[dict]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode())
