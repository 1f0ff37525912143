"""The authors' vectors, reproduced: CLIP-ViP (microsoft/XPretrain) and OFA (OFA-Sys/OFA).

Each case is a folder of ``goldens`` (or of the folder that CLIPVIP_GOLDENS names), see golden_files.py. Every
vector of every case is compared, but for OFA's beams by Hugging Face's rule, which is not ours; a case that lacks
something it needs, or holds something that nothing compares, fails ``test_a_case_is_whole``.
"""

import clip_vip_cases
import golden_files
import ofa_cases
import ofa_format
import pytest
import torch
from equality import largest
from safetensors.torch import load_file

from clipvip_lib.models.ofa import (
    OFA,
    OFA_SIZES,
    image_buckets,
    image_position_ids,
    token_offset_buckets,
)

FAMILY = {"clip_vip": clip_vip_cases, "ofa": ofa_cases}
FAULTS = {"clip_vip": clip_vip_cases.faults, "ofa": ofa_format.faults}
CASES = [(family, folder.name) for family in FAMILY for folder in golden_files.case_folders(family)]
QUANTITIES = [
    pytest.param(family, name, group, id=f"{family}/{name}-{group}")
    for family, name in CASES
    if (case := golden_files.readable(family, name)) is not None
    for group in FAMILY[family].groups(case)
]
TITLE = {"clip_vip": "CLIP-ViP", "ofa": "OFA"}


def test_there_are_cases():
    faults = golden_files.faults_of_folder()
    assert not faults, "; ".join(faults)


@pytest.mark.parametrize(("family", "name"), CASES, ids=[f"{family}/{name}" for family, name in CASES])
def test_a_case_is_whole(family, name):
    faults = FAULTS[family](golden_files.read(family, name))
    assert not faults, f"golden case {family}/{name}: " + "; ".join(faults)


@pytest.mark.parametrize(("family", "name", "group"), QUANTITIES)
def test_equals_the_authors(family, name, group, equals):
    case, against = golden_files.read(family, name), f"the authors' {TITLE[family]}, case {name}"
    rows = list(FAMILY[family].compare(case, group))
    for row in rows:
        equals(row.quantity, against, row.difference, row.tolerance, row.where)
    assert rows, f"golden case {family}/{name} has nothing to compare for {group}"


def test_position_tables_of_the_released_sizes(equals):
    tables = load_file(ofa_cases.shared("position_tables.safetensors"))
    every = image_buckets(torch.arange(42 * 42 + 1), 42)
    ours = {
        "token_rp_by_offset.256": token_offset_buckets(256),
        "image_rp.42.grid30.rows_0_29_450_899": image_buckets(image_position_ids(30, 30, 42), 42)[
            [0, 29, 450, 899]
        ],
        "image_rp.42.row0_col0": torch.stack([every[0], every[:, 0]]),
    }
    assert ours.keys() == tables.keys()
    for name, table in ours.items():
        equals(f"position table {name}", "the authors' OFA", largest(table, tables[name]), 0)


@pytest.mark.parametrize("size", OFA_SIZES)
def test_released_sizes_have_the_published_layout(size, equals):
    layout = ofa_cases.layouts()
    assert layout.keys() == OFA_SIZES.keys()
    layout = layout[size]
    with torch.device("meta"):
        model = OFA(OFA_SIZES[size])
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    dropped = ("_rp_bucket", "image_position_idx")  # lookup tables, computed from the configuration
    theirs = {key: shape for key, (shape, _) in layout["state_dict"].items() if not key.endswith(dropped)}
    other = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    against = f"the authors' OFA-{size}"
    equals(f"names and shapes of {len(theirs)} weights", against, len(other), 0, ", ".join(sorted(other)))
    equals("number of parameters", against, abs(parameters - layout["unique_parameters"]), 0)
    assert all(getattr(OFA_SIZES[size], key) == value for key, value in layout["config"].items())
