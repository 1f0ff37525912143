"""Ways in which a downstream set can be damaged, each with the code words that check-data must find, and no other."""

import json
import pickle
import shutil

import videos
from PIL import Image


def rewrite_text(path, change, encoding="utf-8"):
    """Change a file's text; an old part must be there, or the variant would be whole."""
    old = path.read_text(encoding="utf-8")
    new = change(old)
    assert new != old
    path.write_bytes(new.encode(encoding))


def rewrite_json(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def rewrite_pickle(path, change):
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content, protocol=2))


def rewrite_lines(path, change):
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    change(listed)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in listed))


def first_video(root):
    return sorted(path for path in (root / "videos").rglob("*") if path.is_file())[0]


def copy_over(root, source, target):
    """The file of the video at place ``target`` of the whole set takes the bytes of the one at ``source``."""
    (root / f"videos/video{target}.mp4").write_bytes((root / f"videos/video{source}.mp4").read_bytes())


def damage_inside(path):
    """A kilobyte of pictures overwritten: the headers stay whole."""
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 600
    content[at : at + 1000] = bytes(range(250)) * 4
    path.write_bytes(content)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def first_caption(text):
    def change(data):
        data["sentences"][0]["caption"] = text

    return change


VARIANTS = {
    # name: (set, what is done, codes)
    "a clip is missing": ("msrvtt", lambda r: first_video(r).unlink(), {"missing-video"}),
    "all clips are missing": ("vatex", lambda r: shutil.rmtree(r / "videos"), {"missing-video"}),
    "Latin-1": (
        "msrvtt",
        lambda r: rewrite_text(r / "MSRVTT_val.csv", lambda t: t.replace("ret0", "ret\u00e9"), "latin-1"),
        {"not-utf8", "unlisted-video"},
    ),
    "byte order mark": (
        "msrvtt",
        lambda r: rewrite_text(r / "MSRVTT_JSFUSION_test.csv", lambda t: "\ufeff" + t),
        {"byte-order-mark"},
    ),
    "Windows line ends, CSV": (
        "msrvtt",
        lambda r: rewrite_text(r / "MSRVTT_train.9k.csv", lambda t: t.replace("\n", "\r\n")),
        {"crlf"},
    ),
    "Windows line ends, tabs": (
        "lsmdc",
        lambda r: rewrite_text(r / "LSMDC16_annos_val.csv", lambda t: t.replace("\n", "\r\n")),
        {"crlf"},
    ),
    "Windows line ends, list": (
        "msvd",
        lambda r: rewrite_text(r / "test_list.txt", lambda t: t.replace("\n", "\r\n")),
        {"crlf"},
    ),
    "id twice, CSV": (
        "msrvtt",
        lambda r: rewrite_text(r / "MSRVTT_train.9k.csv", lambda t: t + "video3\n"),
        {"doubled-id"},
    ),
    "id twice, one JSON object": (
        "activitynet",
        lambda r: rewrite_text(r / "val_1.json", lambda t: t.replace("v_world000013", "v_world000012")),
        {"doubled-id", "listed-only", "unlisted-video"},
    ),
    "id twice, list of ids": (
        "activitynet",
        lambda r: rewrite_json(r / "train_ids.json", lambda ids: [*ids, ids[0]]),
        {"doubled-id"},
    ),
    "id twice, text list": (
        "msvd",
        lambda r: rewrite_text(r / "test_list.txt", lambda t: t + t.split("\n")[0]),
        {"doubled-id"},
    ),
    "id twice, JSON list": (
        "vatex",
        lambda r: rewrite_json(r / "vatex_training_v1.0.json", lambda e: [*e, e[0]]),
        {"doubled-id"},
    ),
    "id twice, jsonl": (
        "jsonl",
        lambda r: rewrite_lines(r / "test.jsonl", lambda e: e.append(e[0])),
        {"doubled-id"},
    ),
    "id twice, LSMDC's test": (
        "lsmdc",
        lambda r: rewrite_text(r / "LSMDC16_challenge_1000_publictect.csv", lambda t: t + t.split("\n")[2]),
        {"doubled-id"},
    ),
    "empty caption": (
        "msrvtt",
        lambda r: rewrite_json(r / "MSRVTT_data.json", first_caption(" ")),
        {"empty-caption"},
    ),
    "empty caption, CSV": (
        "msrvtt-7k",
        lambda r: rewrite_text(r / "MSRVTT_JSFUSION_test.csv", lambda t: t + "ret8,msr99,video99,\n"),
        {"empty-caption"},
    ),
    "empty paragraph": (
        "jsonl-paragraph",
        lambda r: rewrite_lines(r / "val.jsonl", lambda e: e[0].update(text=["", " "])),
        {"empty-caption"},
    ),
    "empty part of a paragraph": (
        "didemo",
        lambda r: rewrite_json(r / "test_data.json", lambda e: e[0].update(description="")),
        {"empty-part"},
    ),
    "null caption": (
        "msrvtt",
        lambda r: rewrite_json(r / "MSRVTT_data.json", first_caption(None)),
        {"wrong-structure"},
    ),
    "a number in place of a caption": (
        "msrvtt",
        lambda r: rewrite_json(r / "MSRVTT_data.json", first_caption(3)),
        {"wrong-structure"},
    ),
    "a number in place of the videos": (
        "msrvtt",
        lambda r: rewrite_json(r / "MSRVTT_data.json", lambda d: d.update(videos=3)),
        {"wrong-structure", "unlisted-video"},
    ),
    "video without a sentence": (
        "msrvtt",
        lambda r: rewrite_json(
            r / "MSRVTT_data.json",
            lambda d: d.update(sentences=[s for s in d["sentences"] if s["video_id"] != "video3"]),
        ),
        {"no-sentence"},
    ),
    "video without a sentence, list": (
        "didemo",
        lambda r: (r / "val_list.txt").write_text("nothing.mp4\n"),
        {"no-sentence", "no-video", "missing-video", "unlisted-video"},
    ),
    "sentence without a video": (
        "msrvtt",
        lambda r: rewrite_json(
            r / "MSRVTT_data.json",
            lambda d: d["sentences"].append({"video_id": "video999", "caption": "a ball"}),
        ),
        {"no-video"},
    ),
    "sentence without a video, pickle": (
        "msvd",
        lambda r: rewrite_text(r / "val_list.txt", lambda t: t.split("\n", 1)[1]),
        {"no-video", "unlisted-video"},
    ),
    "sentence without a video, list of ids": (
        "activitynet",
        lambda r: rewrite_json(r / "train_ids.json", lambda ids: ids[1:]),
        {"no-video", "unlisted-video"},
    ),
    "train and test overlap": (
        "msrvtt",
        lambda r: rewrite_text(r / "MSRVTT_JSFUSION_test.csv", lambda t: t + "ret8,msr0,video0,a ball\n"),
        {"split-overlap"},
    ),
    "held-out video of the test split": (
        "activitynet",
        lambda r: rewrite_text(r / "held_out.txt", lambda t: t + "v_world000012\n"),
        {"no-sentence"},
    ),
    "one video in two splits": ("msrvtt", lambda r: copy_over(r, 0, 16), {"doubled-video"}),
    "one video twice in a split": ("msrvtt", lambda r: copy_over(r, 16, 17), {"twin-video"}),
    "empty file": ("vatex", lambda r: first_video(r).write_bytes(b""), {"empty-file"}),
    "cut MP4": (
        "vatex",
        lambda r: first_video(r).write_bytes(first_video(r).read_bytes()[:-400]),
        {"cut-file"},
    ),
    "cut AVI": (
        "lsmdc",
        lambda r: first_video(r).write_bytes(first_video(r).read_bytes()[:-1400]),
        {"cut-file"},
    ),
    "a web page": (
        "vatex",
        lambda r: first_video(r).write_text("<html>this video is not available</html>" * 20),
        {"unreadable-video"},
    ),
    "damage inside": ("vatex", lambda r: damage_inside(first_video(r)), {"unreadable-video"}),
    "wrongly cut": (
        "vatex",
        lambda r: first_video(r).write_bytes(videos.encode(n=200)),
        {"wrong-duration"},
    ),
    "wrongly cut, LSMDC": (
        "lsmdc",
        lambda r: first_video(r).write_bytes(videos.encode(n=10, container="avi")),
        {"wrong-duration"},
    ),
    "wrongly cut, ActivityNet": (
        "activitynet",
        lambda r: rewrite_json(r / "val_1.json", lambda d: next(iter(d.values())).update(duration=126.5)),
        {"wrong-duration"},
    ),
    "wrongly cut, DiDeMo": (
        "didemo",
        lambda r: rewrite_json(r / "test_data.json", lambda e: e[0].update(num_segments=6)),
        {"wrong-duration"},
    ),
    "two files of one name": (
        "msrvtt",
        lambda r: first_video(r).with_suffix(".webm").write_bytes(first_video(r).read_bytes() + b"\0"),
        {"ambiguous-video"},
    ),
    "a file in no split": (
        "msrvtt",
        lambda r: (r / "videos/video999.mp4").write_bytes(videos.encode()),
        {"unlisted-video"},
    ),
    "frame lost": ("frames", lambda r: sorted(r.rglob("*_003.jpg"))[0].unlink(), {"frames-missing"}),
    "last frame lost": ("frames", lambda r: sorted(r.rglob("*_006.jpg"))[0].unlink(), {"frames-missing"}),
    "damaged frame": (
        "frames",
        lambda r: sorted(r.rglob("*_003.jpg"))[0].write_bytes(b"\xff\xd8 no picture"),
        {"unreadable-video"},
    ),
    "frame of another size": (
        "frames",
        lambda r: Image.new("RGB", (64, 48)).save(sorted(r.rglob("*_003.jpg"))[0]),
        {"unreadable-video"},
    ),
    "frame folder copied to another split": (
        "frames",
        lambda r: [
            (r / f"videos/clip00000/clip00000_{i:03d}.jpg").write_bytes(
                (r / f"videos/clip00016/clip00016_{i:03d}.jpg").read_bytes()
            )
            for i in range(7)
        ],
        {"doubled-video"},
    ),
    "annotation file lost": (
        "didemo",
        lambda r: (r / "test_data.json").unlink(),
        {"no-annotation", "unlisted-video"},
    ),
    "all annotation files lost": (
        "vatex-1500",
        lambda r: [path.unlink() for path in r.glob("vatex_*.json")],
        {"no-annotation", "unlisted-video"},
    ),
    "a folder in place of an annotation file": (
        "didemo",
        lambda r: ((r / "val_data.json").unlink(), (r / "val_data.json").mkdir()),
        {"no-annotation", "unlisted-video"},
    ),
    "an annotation file that links to itself": (
        "didemo",
        lambda r: ((r / "val_data.json").unlink(), (r / "val_data.json").symlink_to("val_data.json")),
        {"not-parsed", "unlisted-video"},
    ),
    "annotation file lost, jsonl": (
        "jsonl",
        lambda r: (r / "val.jsonl").unlink(),
        {"no-annotation", "unlisted-video"},
    ),
    "two files of a split": (
        "jsonl",
        lambda r: (
            [shutil.copy(r / "val.jsonl", r / f"val_{i}.jsonl") for i in (1, 2)]
            and (r / "val.jsonl").unlink()
        ),
        {"no-annotation", "unlisted-video"},
    ),
    "JSON cut": (
        "didemo",
        lambda r: rewrite_text(r / "val_data.json", lambda t: t[:-40]),
        {"not-parsed", "unlisted-video"},
    ),
    "JSON too deep": (
        "didemo",
        lambda r: (r / "val_data.json").write_text("[" * 100_000),
        {"not-parsed", "unlisted-video"},
    ),
    "one line is no JSON": (
        "jsonl",
        lambda r: rewrite_text(r / "test.jsonl", lambda t: t + "{'clip_id': 1}\n"),
        {"not-parsed"},
    ),
    "pickle cut": (
        "msvd",
        lambda r: (r / "raw-captions.pkl").write_bytes((r / "raw-captions.pkl").read_bytes()[:-30]),
        {"not-parsed", "unlisted-video"},
    ),
    "pickle that runs code": (
        "msvd",
        lambda r: (r / "raw-captions.pkl").write_bytes(pickle.dumps({"a": Evil()})),
        {"unsafe-pickle", "unlisted-video"},
    ),
    "null caption, pickle": (
        "msvd",
        lambda r: rewrite_pickle(r / "raw-captions.pkl", lambda d: next(iter(d.values())).append(None)),
        {"wrong-structure"},
    ),
    "a caption in place of a list, pickle": (
        "msvd",
        lambda r: rewrite_pickle(r / "raw-captions.pkl", lambda d: d.update({next(iter(d)): "a ball falls"})),
        {"wrong-structure", "no-sentence"},
    ),
    "number among captions": (
        "vatex",
        lambda r: rewrite_json(r / "vatex_training_v1.0.json", lambda e: e[0]["enCap"].append(7)),
        {"wrong-structure"},
    ),
    "a list in place of an object": (
        "activitynet",
        lambda r: rewrite_json(r / "val_1.json", lambda d: list(d.values())),
        {"wrong-structure", "unlisted-video"},
    ),
    "a column is missing": (
        "lsmdc",
        lambda r: rewrite_text(r / "LSMDC16_annos_training.csv", lambda t: t + "clip\t1\t2\t3\ta ball\n"),
        {"wrong-structure"},
    ),
    "comma without quotes": (
        "msrvtt",
        lambda r: rewrite_text(r / "MSRVTT_val.csv", lambda t: t + "ret9,msr9,video9,a ball, red\n"),
        {"wrong-structure"},
    ),
    "a field is missing": (
        "vatex",
        lambda r: rewrite_json(
            r / "vatex_training_v1.0.json", lambda e: e.append({"videoID": "a_000001_000011"})
        ),
        {"wrong-structure", "no-sentence", "missing-video"},
    ),
    "letters decoded wrongly": (
        "msrvtt",
        lambda r: rewrite_json(r / "MSRVTT_data.json", first_caption("a cafÃ© with a ball")),
        {"broken-letters"},
    ),
    "paragraphs given as sentences": (
        "jsonl",
        lambda r: rewrite_lines(r / "test.jsonl", lambda e: e[0].update(text=["a ball falls", "it stops"])),
        {"several-texts"},
    ),
    "one source in train and test": (
        "vatex",
        lambda r: (
            rewrite_text(
                r / "vatex_public_test_english_v1.1.json",
                lambda t: t.replace("000012_000010_000012", "000000_000020_000022"),
            ),
            (r / "videos/world000012_000010_000012.mp4").rename(r / "videos/world000000_000020_000022.mp4"),
        ),
        {"shared-source"},
    ),
    "two validation splits": (
        "msrvtt",
        lambda r: (r / "held_out.txt").write_text("video0\n"),
        {"doubled-split"},
    ),
}
