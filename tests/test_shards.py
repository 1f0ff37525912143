"""Tar shards are read in order, whole, and a damaged one is named."""

import io
import json
import tarfile

import pytest

from clipvip_lib.data.corpora import encode_h264, write_shard
from clipvip_lib.data.shards import NeverFetched, index_shard, read_media, read_shard
from clipvip_lib.data.world import render, rng_for, sample_video
from clipvip_lib.errors import ClipVipError

MP4 = encode_h264(render(sample_video(rng_for(0), "train")[0]))


def write(path, **changes):
    samples = [
        {"__key__": f"clip-{i}", "mp4": MP4, "txt": f"text {i}", "json": json.dumps({"n": i})}
        for i in range(4)
    ]
    samples[2] |= changes
    write_shard(path, [{k: v for k, v in sample.items() if v is not None} for sample in samples])
    return path


def test_samples_come_in_order_with_text_and_json(tmp_path):
    samples = list(read_shard(write(tmp_path / "a.tar")))
    assert [s.key for s in samples] == [f"clip-{i}" for i in range(4)]
    assert [s.text for s in samples] == [f"text {i}" for i in range(4)]
    assert samples[3].about == {"n": 3}
    assert samples[0].media == MP4


def test_a_path_with_a_colon_is_a_path(tmp_path):
    assert len(list(read_shard(write(tmp_path / "a:b.tar")))) == 4


@pytest.mark.bad_input("shard: cut", says="`is damaged`, `fetch or write it again`")
@pytest.mark.parametrize("keep", (0.05, 0.3, 0.6, 0.95, 0.999))
def test_a_tar_cut_in_the_middle_is_named(tmp_path, keep):
    path = write(tmp_path / "cut.tar")
    content = path.read_bytes().rstrip(b"\0")  # without the mark and the padding that follow the last sample
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ClipVipError, match=r"cut\.tar is damaged.*fetch or write it again"):
        list(read_shard(path))


def test_a_tar_cut_between_two_files_is_named_too(tmp_path):
    """Which readers of tars take for the end."""
    path = write(tmp_path / "cut.tar")
    with tarfile.open(path) as tar:
        end = tar.getmembers()[3].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ClipVipError, match=r"cut\.tar is damaged .no header and no end mark after 1 samples"):
        list(read_shard(path))


@pytest.mark.bad_input(
    "shard: a sample without text or video, with JSON that is none, or text that is not UTF-8",
    says="the sample, and `has no text`, `has no mp4`, `is not JSON` or `is not UTF-8`",
)
@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"txt": None}, "sample clip-2 .* has no text"),
        ({"txt": "  "}, "sample clip-2 .* has no text"),
        ({"mp4": None}, "sample clip-2 .* has no mp4"),
        ({"mp4": b""}, "sample clip-2 .* has no mp4"),
        ({"json": "{"}, "clip-2.json .* is not JSON"),
        ({"json": "[" * 100_000}, "clip-2.json .* is not JSON that people write"),
        ({"txt": b"\xff\xfe"}, "clip-2.txt .* is not UTF-8"),
    ),
)
def test_a_bad_sample_is_named(tmp_path, changes, message):
    with pytest.raises(ClipVipError, match=message):
        list(read_shard(write(tmp_path / "bad.tar", **changes)))


@pytest.mark.bad_input("shard: not there, a web page, or empty", says="`no shard`, `is damaged`")
def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(ClipVipError, match=r"no shard .*absent\.tar"):
        list(read_shard(tmp_path / "absent.tar"))
    (tmp_path / "page.tar").write_text("<html>not found</html>" * 60)
    with pytest.raises(ClipVipError, match=r"page\.tar is damaged"):
        list(read_shard(tmp_path / "page.tar"))
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(ClipVipError, match=r"empty\.tar"):
        list(read_shard(tmp_path / "empty.tar"))


@pytest.mark.bad_input("shard: without samples", says="`no sample`")
def test_a_shard_without_samples_is_named(tmp_path):
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(ClipVipError, match=r"none\.tar .*no sample"):
        list(read_shard(tmp_path / "none.tar"))


@pytest.mark.bad_input("shard: a header overwritten", says="`is damaged`, `after 2 samples`")
def test_a_header_damaged_inside_is_named(tmp_path):
    path = write(tmp_path / "torn.tar")
    with tarfile.open(path) as tar:
        offset = tar.getmember("clip-2.mp4").offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 512] = b"x" * 512  # a header that is none
    path.write_bytes(content)
    with pytest.raises(ClipVipError, match=r"torn\.tar is damaged .*after 2 samples"):
        list(read_shard(path))


@pytest.mark.bad_input("shard: empty, or text", says="`is damaged`, `fetch or write it again`")
@pytest.mark.parametrize("content", (b"", b"no tar at all\n" * 99))
def test_what_is_no_tar_is_said_in_one_line(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ClipVipError, match=r"x\.tar is damaged .*fetch or write it again") as caught:
        list(read_shard(tmp_path / "x.tar"))
    assert "\n" not in str(caught.value)


def test_json_that_is_no_text_is_named(tmp_path):
    with pytest.raises(ClipVipError, match=r"clip-2\.json of shard .* is not JSON"):
        list(read_shard(write(tmp_path / "a.tar", json=b'{"n": "\xff"}')))


@pytest.mark.bad_input("shard: a member that is there twice", says="`is there twice in shard`")
def test_a_file_that_is_there_twice_is_named(tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for name in ("a.mp4", "a.txt", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ClipVipError, match=r"a\.txt is there twice in shard .*twice\.tar"):
        list(read_shard(tmp_path / "twice.tar"))


def test_samples_below_folders_have_them_in_their_keys(tmp_path):
    path = tmp_path / "below.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("./part.1")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("a.mp4", "a.txt", "b.mp4", "b.txt"):
            tar.addfile(tarfile.TarInfo(f"./part.1/{name}"))
    assert [entry.key for entry in index_shard(path)] == ["./part.1/a", "./part.1/b"]


@pytest.mark.bad_input("shard: a member of negative or enormous size", says="`is damaged`")
@pytest.mark.parametrize("size", (-512, -1, 2**62, 2**80))
def test_a_size_that_no_file_has_is_named(tmp_path, size):
    """-512 takes a reader back to where it was, forever."""
    member = tarfile.TarInfo("a.mp4")
    member.size = size
    (tmp_path / "odd.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ClipVipError, match=r"odd\.tar is damaged"):
        index_shard(tmp_path / "odd.tar")


@pytest.mark.bad_input("shard: one key in two places", says="`stands in two places of shard`")
def test_a_key_that_stands_in_two_places_is_named(tmp_path):
    path = tmp_path / "apart.tar"
    write_shard(path, [{"__key__": key, "mp4": MP4, "txt": "text"} for key in ("a", "b", "a")])
    assert [bool(entry.error) for entry in index_shard(path)] == [False, False, True]
    with pytest.raises(ClipVipError, match=r"the key a stands in two places of shard .*apart\.tar"):
        list(read_shard(path))


@pytest.mark.bad_input("shard: JSON that is not an object", says="`expected an object, got list`")
def test_json_that_is_not_an_object_is_named(tmp_path):
    with pytest.raises(ClipVipError, match=r"clip-2\.json .*expected an object, got list"):
        list(read_shard(write(tmp_path / "a.tar", json="[1]")))


@pytest.mark.bad_input(
    "shard: a sample that was never fetched", says="`was never fetched (failed_to_download: gone)`"
)
@pytest.mark.parametrize("media", (None, b""))
def test_what_was_never_fetched_says_why(tmp_path, media):
    about = json.dumps({"status": "failed_to_download", "error_message": "gone"})
    path = write(tmp_path / "a.tar", mp4=media, json=about)
    with pytest.raises(NeverFetched, match=r"clip-2 of .* was never fetched \(failed_to_download: gone\)"):
        read_media(path, index_shard(path)[2])


def _member(name, kind=tarfile.REGTYPE, link="", content=b""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    return member, io.BytesIO(content)


@pytest.mark.bad_input(
    "shard: a link, device or pipe in a video's place",
    says="`is a link or a device: expected a file`; it is never followed",
)
@pytest.mark.parametrize("kind", (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE))
def test_a_link_or_device_in_a_videos_place_is_named_and_never_followed(tmp_path, kind):
    path, secret = tmp_path / "links.tar", tmp_path / "secret.mp4"
    secret.write_bytes(MP4)
    with tarfile.open(path, "w") as tar:
        tar.addfile(*_member("000.mp4", content=MP4))
        tar.addfile(*_member("001.mp4", kind, str(secret)))
        tar.addfile(*_member("001.txt", content=b"a dog"))
    good, bad = index_shard(path)
    assert read_media(path, good) == MP4
    with pytest.raises(ClipVipError, match=r"001\.mp4 of shard .* is a link or a device: expected a file"):
        read_media(path, bad)


@pytest.mark.bad_input(
    "shard: absolute names and names with ..", says="they are keys; no file outside is touched"
)
def test_absolute_and_climbing_names_are_keys_and_touch_no_file(tmp_path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("/etc/passwd.mp4", "../../above.mp4", "a/../b.mp4"):
            tar.addfile(*_member(name, content=MP4))
    entries = index_shard(path)
    assert [entry.key for entry in entries] == ["/etc/passwd", "../../above", "a/../b"]
    assert all(read_media(path, entry) == MP4 for entry in entries)
    assert [each.name for each in tmp_path.iterdir()] == ["odd.tar"]


def test_an_unsorted_tar_is_read_by_names(tmp_path):
    path = tmp_path / "unsorted.tar"
    names = ("a.mp4", "b.mp4", "1_F_00.00.32.166.mp4", "b.txt", "1_F_00.00.32.166.txt", "a.txt", "a.json")
    with tarfile.open(path, "w") as tar:
        for name in names:
            content = MP4 if name.endswith("mp4") else json.dumps({"of": name}).encode()
            tar.addfile(*_member(name, content=content))
    samples = list(read_shard(path))
    assert [sample.key for sample in samples] == ["a", "b", "1_F_00.00.32.166"]
    assert [json.loads(sample.text)["of"] for sample in samples] == ["a.txt", "b.txt", "1_F_00.00.32.166.txt"]
    assert samples[0].about == {"of": "a.json"} and all(sample.media == MP4 for sample in samples)
