"""The embedded sets have names of their own wherever a page names them, and keys stay keys."""

import pandas as pd
import pytest

from clipvip_lib import paper
from clipvip_lib.study import words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("proxy-4 over full, msrvtt", "proxy-4 over full, mini-MSRVTT"),
        ("95 % on didemo", "95 % on mini-DiDeMo"),
        ("clip4clip over webvid-2.5m@last", "clip4clip over mini-WebVid-2.5M@last"),
        ("hdvila-10m is a part of hdvila-100m.", "mini-HD-VILA-10M is a part of mini-HD-VILA-100M."),
        ("subtitles over ofa captions", "subtitles over mini-OFA captions"),
        ("mini-MSRVTT, MSR-VTT 1k-A", "mini-MSRVTT, MSR-VTT 1k-A"),
        *((name, name) for name in (*paper.CORPUS_NAMES.values(), *paper.BENCHMARK_NAMES.values())),
        ("finetune/msrvtt/*, `msrvtt`, near_msrvtt", "finetune/msrvtt/*, `msrvtt`, near_msrvtt"),
    ],
)
def test_keys_become_names_where_people_read_them(text, said):
    assert words.miniatures(text) == said == words.miniatures(said)


def test_a_table_is_renamed_in_headings_labels_and_cells_and_keeps_its_numbers():
    frame = pd.DataFrame({"benchmark": ["msrvtt"], "didemo R@1": [1.5], "n": [3]}, index=["hdvila"])
    named = words.named_frame(frame)
    assert named.columns.tolist() == ["benchmark", "mini-DiDeMo R@1", "n"]
    assert named.to_numpy().tolist() == [["mini-MSRVTT", 1.5, 3]] and named.index.tolist() == ["mini-HD-VILA"]
    assert [str(kind) for kind in named.dtypes[1:]] == ["float64", "int64"]
    plain = frame.reset_index(drop=True)
    assert isinstance(words.named_frame(plain).index, pd.RangeIndex)
