"""Frame stores that the ranks decode together: shards or a benchmark's splits, once, a part at a time.

Beside NAME.npy (data/frames.py) stands NAME.json: how it was decoded, which clips it holds, and of a shard its size in
bytes, because video2dataset gives the shards and clips of every corpus the same names. NAME.json is written last, so
a store that has it is whole. Finished parts are skipped, so that decoding continues after a kill; parts that
hold other videos, or were decoded otherwise, are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from clipvip_lib.data.benchmarks import Item
from clipvip_lib.data.frames import FrameStore, write_store
from clipvip_lib.data.shards import NeverFetched, Sample, media_of, read_sample, scan_shard
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import make_folder, read_json, write_json
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.omnisource import needs
from clipvip_lib.progress import quiet
from clipvip_lib.streams.shard_set import ShardSet
from clipvip_lib.streams.sidecars import read_sidecar
from clipvip_lib.training.batches import Pairs, Tokens
from clipvip_lib.training.ranks import Ranks, share, together
from clipvip_lib.training.recipes import TrainRecipe

SidecarOf = Callable[[str], Path]  # from a store's name to its shard's sidecar
PART = 64  # clips of a benchmark that are decoded into one file, by one rank; a kill loses at most that many


def store_shards(
    shards: ShardSet, folder: Path, recipe: TrainRecipe, size: int, ranks: Ranks, progress=quiet
) -> None:
    """Decode tar shards into ``folder``: NAME.npy (frames) and NAME.json (keys and texts), one rank per shard.

    Shards that are there are skipped. Of shards with texts in sidecars a store keeps no text: ``read_stores`` takes
    them from the sidecars. Samples that video2dataset could not fetch are left out.

    Raises ClipVipError for two shards of one name, stores that were decoded otherwise or from another corpus's shard of
    that name, a damaged sample, or one that a sidecar lacks, and as ``data.video.read_frames``: a store takes whole
    shards.
    """
    names = sorted(path.stem for path in shards.paths)
    doubled = [name for name, after in itertools.pairwise(names) if name == after]
    if doubled:
        raise ClipVipError(
            f"expected shards of different names for one frame store, {doubled[0]} is there twice; give each folder "
            "its own --frames-store"
        )
    own_texts = "texts" not in shards.sidecars

    def decode(number: int) -> None:
        shard, samples = shards.paths[number], _samples(shards, number)
        sources = [(f"{sample.key} of {shard}", sample.media) for sample in samples]
        clips = [{"key": sample.key, "text": sample.text if own_texts else ""} for sample in samples]
        about = {"clips": clips, "bytes": shard.stat().st_size}
        _write(folder / f"{shard.stem}.npy", sources, about, recipe, size)

    def done(number: int) -> bool:
        described = folder / f"{shards.paths[number].stem}.json"
        if not described.exists() or not described.with_suffix(".npy").exists():
            return False
        _expect_store_of(shards.paths[number], described, _described(described, recipe, size))
        return True

    _in_turns(range(len(shards)), done, decode, folder, ranks, progress, "shards decoded")


def _expect_store_of(shard: Path, described: Path, found: dict) -> None:
    """Raises ClipVipError if a store holds another shard's clips; an older one, without a size, is told by its keys."""
    held = [clip["key"] for clip in found["clips"]]
    same_size = found.get("bytes") in (None, shard.stat().st_size)
    if not same_size or held != [entry.key for entry in scan_shard(shard)[0] if media_of(entry)[0]]:
        raise ClipVipError(
            f"{described} expected the clips of {shard}, got those of another shard of that name; give each corpus its "
            "own --frames-store, or remove it if the shard was written again"
        )


def _samples(shards: ShardSet, number: int) -> list[Sample]:
    """The clips of a shard. Raises ClipVipError for a bad sample, or if there is no clip."""
    shard = shards.paths[number]
    samples, absent = [], []
    for entry, text, _ in shards.open(number):
        try:
            samples.append(read_sample(shard, entry, text))
        except NeverFetched as error:
            absent.append(error)
    if not samples:
        raise ClipVipError(
            f"shard {shard} holds no clip: expected one at least, got {len(absent)} that were never fetched "
            f"({absent[0].why}); leave the shard out"
        )
    return samples


def store_split(
    items: Sequence[Item],
    folder: Path,
    split: str,
    recipe: TrainRecipe,
    size: int,
    ranks: Ranks,
    progress=quiet,
) -> FrameStore:
    """Decode the videos of a benchmark's split into ``folder``/SPLIT-NNNNN.npy, parts dealt out over the ranks.

    Parts that are there are skipped. Raises ClipVipError if they hold other videos or were decoded otherwise, and
    as ``data.video.read_frames`` for a damaged video.
    """
    parts = [items[start : start + PART] for start in range(0, len(items), PART)]
    paths = [folder / f"{split}-{number:05d}.npy" for number in range(len(parts))]

    def decode(number: int) -> None:
        sources = [(item.video_id, item.path) for item in parts[number]]
        clips = [{"key": name, "text": ""} for name, _ in sources]
        _write(paths[number], sources, {"clips": clips}, recipe, size)

    def done(number: int) -> bool:
        described = paths[number].with_suffix(".json")
        if not described.exists() or not paths[number].exists():
            return False
        held = [clip["key"] for clip in _described(described, recipe, size)["clips"]]
        if held != [item.video_id for item in parts[number]]:
            raise ClipVipError(
                f"{described} holds other videos than the {split} split: expected those of the same benchmark; give "
                "another --frames-store or remove it"
            )
        return True

    _in_turns(range(len(parts)), done, decode, folder, ranks, progress, f"parts of {split} decoded")
    store = FrameStore(paths)
    for path, held, part in zip(paths, store.lengths, parts, strict=True):
        _expect_clips(path, held, len(part))
    return store


def _expect_clips(store: Path, held: int, described: int) -> None:
    if held != described:
        raise ClipVipError(
            f"{store} holds {held} clips and {store.stem}.json tells of {described}: expected as many; remove both to "
            "decode them again"
        )


def _write(path: Path, sources: list, about: dict, recipe: TrainRecipe, size: int) -> None:
    """One store, then what it holds and how it was decoded; the second file says that the first is whole."""
    write_store(path, sources, len(sources), recipe.kept_frames, size, recipe.antialias, quiet)
    write_json(path.with_suffix(".json"), {"decoded": _decoded(recipe, size), **about})


def _decoded(recipe: TrainRecipe, size: int) -> dict:
    return {"frames": recipe.kept_frames, "size": size, "antialias": recipe.antialias}


def _described(described: Path, recipe: TrainRecipe, size: int) -> dict:
    """What a store holds ("clips"), and the "bytes" of its shard.

    Raises ClipVipError if it was decoded otherwise, or the file is something else."""
    found = read_json(described)
    clips = found.get("clips") if isinstance(found, dict) else None
    whole = isinstance(clips, list) and all(
        isinstance(clip, dict) and all(isinstance(clip.get(name), str) for name in ("key", "text"))
        for clip in clips
    )
    if not whole or set(found) - {"bytes"} != {"decoded", "clips"}:
        raise ClipVipError(f"{described} expected what a frame store holds, got other JSON; decode it again")
    if found["decoded"] != _decoded(recipe, size):
        raise ClipVipError(
            f"{described} was decoded with {found['decoded']}, expected {_decoded(recipe, size)}; give another "
            "--frames-store, or the recipe and model that it was made for"
        )
    return found


def _in_turns(work: Sequence, done, do, folder: Path, ranks: Ranks, progress, note: str) -> None:
    """Every rank does its share, in rounds: a rank that fails stops the others after one part, not in the end."""
    make_folder(folder)
    # The main rank's list is everybody's: a rank that looks later would miss what others have made since.
    missing: list = []
    with together(ranks):
        if ranks.main:
            missing = [part for part in work if not done(part)]
    missing = ranks.collect(missing)[0]
    for start in range(0, len(missing), ranks.size):
        with together(ranks):
            for part in share(missing[start : start + ranks.size], ranks):
                do(part)
        if ranks.main:
            progress(min(start + ranks.size, len(missing)), len(missing), note)


def read_stores(
    stores: Sequence[Path],
    captions: SidecarOf,
    loss: str,
    tokenizer: ClipTokenizer,
    recipe: TrainRecipe,
    size: int,
    texts: SidecarOf | None = None,
) -> Pairs:
    """Frame stores (NAME.npy) that ``store_shards`` wrote, as training pairs. ``captions``, ``texts``: from a store's
    name to its sidecar; without ``texts`` those of key.txt are taken, which the store keeps. Raises ClipVipError if a
    store was decoded otherwise, a clip has no text, or the captions that the loss needs are missing."""
    written, said, frames = [], [], FrameStore(stores)
    for store, held in zip(stores, frames.lengths, strict=True):
        part = _described(store.with_suffix(".json"), recipe, size)["clips"]
        _expect_clips(store, held, len(part))
        written += _texts(store, part, texts(store.stem) if texts else None)
        if "C" in needs(loss):
            found = read_sidecar(captions(store.stem), "captions")
            said += [found.get(row["key"], "") for row in part]
    return Pairs.of(
        frames,
        [[text] for text in written],
        tokenizer,
        captions=Tokens.of(said, tokenizer) if said else None,
        caption_mask=torch.tensor([bool(text) for text in said]) if said else None,
        group=recipe.group,
    )


def _texts(store: Path, clips: list[dict], sidecar: Path | None) -> list[str]:
    """The texts of a store's clips, from a sidecar or its own. Raises ClipVipError naming the first that has none."""
    own = {clip["key"]: clip["text"] for clip in clips}
    found = own if sidecar is None else read_sidecar(sidecar, "texts")
    lacking = [key for key in own if not found.get(key)]
    if not lacking:
        return [found[clip["key"]] for clip in clips]
    count = f"{len(lacking)} of {len(clips)} clips, first {lacking[0]}"
    if sidecar is None:
        raise ClipVipError(
            f"{store} keeps no text of {count}: it was decoded from shards whose texts stand beside them; add --texts"
        )
    raise ClipVipError(
        f"{sidecar} has no text of {count}: expected one for each clip of {store}; write it again with `clipvip "
        "convert-texts`"
    )
