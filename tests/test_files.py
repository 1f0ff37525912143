"""Files are written whole or not at all, and what cannot be written or read is said in a sentence."""

import errno
import json
from types import SimpleNamespace

import pytest

from clipvip_lib import files
from clipvip_lib.errors import ClipVipError, unknown


def test_home_is_the_variable_or_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPVIP_HOME", str(tmp_path / "cache"))
    assert files.home() == tmp_path / "cache"
    monkeypatch.delenv("CLIPVIP_HOME")
    assert files.home() == files.CHECKOUT / ".clipvip"


@pytest.mark.fault(
    "any file: the program fails while it writes", sees="the error", keeps="the old file; no half file"
)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = files.write_bytes(tmp_path / "a" / "x.txt", b"old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as partial:
        partial.write_bytes(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.fault(
    "any file: the disk is full (simulated)",
    sees="`No space left on device; free some space`",
    keeps="the old file; no half file",
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    path = files.write_bytes(tmp_path / "x.txt", b"old")
    with (
        pytest.raises(ClipVipError, match="No space left on device; free some space"),
        files.atomic_path(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.bad_input("output: a file where a folder is to be", says="`expected a writable folder`")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipVipError, match="cannot write to .*file.*expected a writable folder"):
        files.make_folder(tmp_path / "file" / "below")


@pytest.mark.bad_input(
    "JSON: cut, 100,000 brackets, 5,000 digits, or not there", says="`is not JSON`, `no file`"
)
def test_json_is_read_back_and_refuses_nan(tmp_path):
    path = files.write_json(tmp_path / "x.json", {"é": [1, 2.5]})
    assert files.read_json(path) == {"é": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"é": [1, 2.5]}
    for bad in ("{", "[" * 100_000, "1" * 5000):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(ClipVipError, match=r"bad\.json is not JSON"):
            files.read_json(tmp_path / "bad.json")
    with pytest.raises(ClipVipError, match="no file"):
        files.read_json(tmp_path / "absent.json")


def test_unknown_names_get_the_list_and_the_nearest():
    text = str(unknown("loss", "V-S,c", ("V-S,C", "F-C")))
    assert text == "unknown loss 'V-S,c': expected one of V-S,C, F-C; did you mean 'V-S,C'?"
    assert "did you mean" not in str(unknown("loss", "zzz", ("V-S",)))


def test_a_home_of_nobody_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CLIPVIP_HOME", "~nobody-of-this-name/cache")
    with pytest.raises(ClipVipError, match="CLIPVIP_HOME is '~nobody-of-this-name/cache': expected a folder"):
        files.home()


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "x"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(OSError, match="not an image"), files.atomic_path(tmp_path / "x"):
        raise OSError("not an image")  # as Pillow does, without a number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "any file: a library finds the disk full and says so in its own words (simulated)",
    sees="`No space left on device`",
    keeps="not looked at by the test",
)
def test_a_library_that_finds_the_disk_full_in_its_own_words_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    full = pytest.raises(ClipVipError, match="cannot write .*x: No space left on device")
    with full, files.atomic_path(tmp_path / "x"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")
    with pytest.raises(ClipVipError, match="^a sentence$"), files.atomic_path(tmp_path / "x"):
        raise ClipVipError("a sentence")


def test_json_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ClipVipError, match="cannot read .*: expected a JSON file, got Is a directory"):
        files.read_json(tmp_path)
