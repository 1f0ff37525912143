"""Shards and folders rewritten with just the frames that are wanted (data/packed_clip.py): `clipvip pack`.

What comes out is what went in: a shard is a shard of the same name with the same keys, texts and key.json, in the same
order, and captions and texts beside it; a video file or a frame folder is an MP4 of the same name. So every reader of
originals reads packs, by the same reader.

* A shard, or a file of a folder, appears once and whole, and what is there is not made again.
* They are dealt out by locks (shard_locks.py): the same command on several machines shares the work.
* A clip that cannot be read stops the command by its name, or is left out and written down with its reason, in
  NAME.not_packed.jsonl beside it, as far as ``skip_share`` allows. It is never replaced.
"""

from __future__ import annotations

import dataclasses
import io
import math
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clipvip_lib.data.clips import SHARD, Clip, workers_of
from clipvip_lib.data.packed_clip import Packed, Packing, pack_clip, pack_media
from clipvip_lib.data.shards import MEDIA, Entry, NeverFetched, index_shard, media_of, read_files, read_media
from clipvip_lib.errors import ClipVipError
from clipvip_lib.files import atomic_path, make_folder, write_bytes
from clipvip_lib.progress import ProgressCallback, quiet
from clipvip_lib.streams.parquet import parquet_path
from clipvip_lib.streams.shard_jobs import Skipped, taking, write_skipped
from clipvip_lib.streams.shard_locks import Held, ShardTask, holder, same_maker
from clipvip_lib.streams.sidecars import FIELDS, sidecar_path

MADE_BY = "pack.json"
KEPT = ("txt", "json")  # of a sample, beside its video


@dataclass
class Tally:
    """What this process did. files: shards and videos to pack; found: done before this start; written: done now.

    pictures: still images, kept as they are; absent: samples that the corpus itself says could not be fetched;
    damaged: clips accepted in spite of damage; others: files of samples that a pack does not keep, such as sound.
    before, after: bytes of the packed clips' media. error: mean difference of a clip's frames in grey levels of 255.
    """

    files: int = 0
    found: int = 0
    written: int = 0
    clips: int = 0
    pictures: int = 0
    absent: int = 0
    skipped: int = 0
    damaged: int = 0
    others: int = 0
    before: int = 0
    after: int = 0
    error: float = 0.0
    seconds: float = 0.0

    def count(self, packed: Packed | None, before: int) -> None:
        """One more clip; None: a still image."""
        if packed is None:
            self.pictures += 1
            return
        self.error += (packed.error - self.error) / (self.clips + 1)
        self.clips += 1
        self.damaged += bool(packed.damage)
        self.before += before
        self.after += len(packed.content)


def pack(
    files: Sequence[Clip],
    out: str | Path,
    packing: Packing,
    *,
    skip_share: float = 0.0,
    workers: int | None = None,
    progress: ProgressCallback = quiet,
    say: Callable[[str], None] = lambda text: None,
    poll: float = 2.0,
) -> Tally:
    """Pack ``files`` (``clips.list_files``) into ``out``; returns when all are done, by any process.

    Args:
        skip_share: share of a shard's samples, or of all files other than shards, rounded up, that may be left out
            because they cannot be read.
        workers: threads that decode and encode, by default one per core.
        poll: seconds between looks at what other processes hold.

    Raises ClipVipError for a damaged shard, clips that cannot be read beyond ``skip_share``, an ``out`` that holds
    originals or was packed in another way, or a folder that cannot be written or locked.
    """
    if not 0 <= skip_share < 1:
        raise ClipVipError(f"expected a share to skip of at least 0 and below 1, got {skip_share}; change it")
    workers = max(1, workers_of(workers))
    tasks = _tasks(files, out)
    make_folder(out)
    same_maker(Path(out) / MADE_BY, dataclasses.asdict(packing), "packed clips", (task.out for task in tasks))
    tally = Tally(files=len(tasks), found=sum(task.out.exists() for task in tasks))
    if tally.found:
        say(f"{tally.found} of {len(tasks)} were packed before")
    started = time.monotonic()
    pool = ThreadPoolExecutor(workers, "pack", initializer=_one_thread())
    videos = sum(not _is_shard(task.shard) for task in tasks)
    may_skip = math.ceil(skip_share * videos)
    packer = _Packer(packing, skip_share, pool, 2 * workers, tally, say, progress, may_skip)

    def pause() -> bool:
        packer.drain()  # or two processes would wait for what each has begun
        time.sleep(poll)
        return True

    with taking(tasks, pause, lambda left: f"waiting for {holder(left[0])}", say) as dealt:
        try:
            for held in dealt:
                packer.take(held)
            packer.drain()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for task in tasks:  # those written after a shard was packed, too
        if _is_shard(task.shard):
            _keep_sidecars(task)
    tally.seconds = time.monotonic() - started
    return tally


def _tasks(files: Sequence[Clip], out: str | Path) -> list[ShardTask]:
    out = Path(out)
    tasks = [
        ShardTask(path := Path(clip.path), out / (clip.id if _is_shard(path) else f"{clip.id}.mp4"))
        for clip in files
    ]
    here = out.resolve()
    for task in tasks:
        if task.out.resolve() == task.shard.resolve() or here in task.shard.resolve().parents:
            raise ClipVipError(
                f"{task.shard} lies in the folder of the packed clips, {out}: expected a folder without originals; "
                "choose another --out"
            )
        if task.shard.resolve() in here.parents:  # a frame folder
            raise ClipVipError(f"--out {out} lies in the frame folder {task.shard}; choose another folder")
    return tasks


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() == SHARD and path.is_file()


def _one_thread() -> Callable[[], None]:
    import torch

    torch.get_num_threads()  # so that the caller's thread has its number before a worker sets its own
    return lambda: torch.set_num_threads(1)


@dataclass
class _Packer:
    """Packs what is held: samples of a shard side by side, and so files."""

    packing: Packing
    skip_share: float
    pool: ThreadPoolExecutor
    ahead: int
    tally: Tally
    say: Callable[[str], None]
    progress: ProgressCallback
    may_skip: int

    def __post_init__(self) -> None:
        self._waiting: deque[tuple[Held, Future]] = deque()
        self._skipped_files = 0

    def take(self, held: Held) -> None:
        if _is_shard(held.task.shard):
            self._shard(held.task)
            self._done(held)
            return
        self._waiting.append((held, self.pool.submit(_try, pack_clip, held.task.shard, self.packing)))
        if len(self._waiting) > self.ahead:
            self._file(*self._waiting.popleft())

    def drain(self) -> None:
        while self._waiting:
            self._file(*self._waiting.popleft())

    def _done(self, held: Held) -> None:
        held.release()
        self.tally.written += 1
        self._show()

    def _show(self) -> None:
        done = self.tally.found + self.tally.written
        self.progress(done, self.tally.files, f"{self.tally.clips} clips")

    def _file(self, held: Held, future: Future) -> None:
        task, found = held.task, future.result()
        if isinstance(found, ClipVipError):
            self._skipped_files += 1
            self.tally.skipped += 1
            if self._skipped_files > self.may_skip:
                raise ClipVipError(
                    f"{self._skipped_files} videos cannot be read and {self.may_skip} may be left out, the last: "
                    f"{found}, or allow more with --skip-share"
                ) from found
            name = task.shard.name
            write_skipped(_log(task), [{"source": name, "key": name, "reason": str(found)}])
            task.lock.unlink(missing_ok=True)  # nobody died with it
            held.release()
            return
        write_bytes(task.out, found.content)
        write_skipped(_log(task), [])
        self.tally.count(found, _size(task.shard))
        self._done(held)

    def _shard(self, task: ShardTask) -> None:
        entries = index_shard(task.shard)
        skipped = Skipped(task.shard, len(entries), self.skip_share, "left out", "source")
        with atomic_path(task.out) as partial:
            with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
                for entry, found in self._samples(task.shard, entries):
                    if isinstance(found, ClipVipError):
                        skipped.add(entry.key, found)
                        continue
                    for extension, content in found.items():
                        member = tarfile.TarInfo(f"{entry.key}.{extension}")
                        member.size, member.mode = len(content), 0o644
                        tar.addfile(member, io.BytesIO(content))
            if len(skipped.rows) == len(entries):
                last = skipped.rows[-1]["reason"]
                raise ClipVipError(
                    f"no sample of shard {task.shard} can be read, the last: {last}; fetch it again"
                )
            skipped.write(_log(task), self.say)
            _keep_sidecars(task)
        self.tally.skipped += len(skipped.rows)

    def _samples(
        self, shard: Path, entries: Sequence[Entry]
    ) -> Iterator[tuple[Entry, dict[str, bytes] | ClipVipError]]:
        """The files of each sample, or why it cannot be read; in order."""
        waiting: deque[tuple[Entry, Future]] = deque()
        for entry in [*entries, *[None] * self.ahead]:
            if entry is not None:
                waiting.append((entry, self.pool.submit(_try, _pack_sample, shard, entry, self.packing)))
            if waiting and (entry is None or len(waiting) > self.ahead):
                done, future = waiting.popleft()
                found = future.result()
                if not isinstance(found, ClipVipError):
                    found = self._count(done, *found)
                    self._show()
                yield done, found

    def _count(
        self, entry: Entry, files: dict[str, bytes], packed: Packed | None, before: int
    ) -> dict[str, bytes]:
        if before:
            self.tally.count(packed, before)
        else:
            self.tally.absent += 1
        media = [extension for extension in entry.files if extension in MEDIA]
        self.tally.others += len(entry.others) + max(0, len(media) - 1)
        return files


def _try(work: Callable, *arguments):
    try:
        return work(*arguments)
    except ClipVipError as error:
        return error


def _pack_sample(shard: Path, entry: Entry, packing: Packing) -> tuple[dict[str, bytes], Packed | None, int]:
    """(files by extension, the packed clip, bytes of the original); no clip for a still, 0 bytes for an absent one."""
    kept = read_files(shard, entry, KEPT)
    try:
        media = read_media(shard, entry)
    except NeverFetched:
        return kept, None, 0
    packed = pack_media(media, packing, f"{entry.key} of {shard}")
    if packed is not None:
        return {"mp4": packed.content, **kept}, packed, len(media)
    extension, _ = media_of(entry)
    return {extension: media, **kept}, None, len(media)


def _keep_sidecars(task: ShardTask) -> None:
    """Captions and texts that stand beside a shard, beside its pack, too; those that are there stay."""
    for kind in FIELDS:
        path = sidecar_path(task.shard, kind)
        for source in (path, parquet_path(path)):
            copy = task.out.with_name(source.name)
            if source.is_file() and not copy.exists():
                write_bytes(copy, source.read_bytes())
    about = task.shard.with_name("captions.json")  # what they were made with
    copy = task.out.with_name(about.name)
    if about.is_file() and not copy.exists():
        write_bytes(copy, about.read_bytes())


def _log(task: ShardTask) -> Path:
    return task.out.with_name(f"{task.out.name}.not_packed.jsonl")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size
