"""The world's card: every constant is on it, with the value that the code uses and a reason."""

import pytest

from clipvip_lib.data import corpora, language, world
from clipvip_lib.errors import ClipVipError
from clipvip_lib.profiles import PROFILES
from clipvip_lib.study import world_card
from clipvip_lib.study.world_card import PARTS, comment_of, short


def test_every_upper_case_constant_of_the_world_is_on_the_card():
    card = world_card.world_card()
    for title, module in PARTS.items():
        shown = {row["constant"]: row["value"] for row in card[title]}
        own = {n for n in vars(module) if n.isupper() and module is getattr_home(n)}
        assert set(shown) == own
        assert all(row["reason"].strip() for row in card[title])
        assert all(shown[name] == short(getattr(module, name)) for name in shown)


def getattr_home(name):
    """The module that defines a constant (corpora imports some of world's)."""
    return next(module for module in (world, language, corpora) if hasattr(module, name))


def test_what_was_calibrated_is_on_the_card_by_name():
    rows = {row["constant"]: row for part in world_card.world_card().values() for row in part}
    marked = {name for name, row in rows.items() if row["how set"].startswith("calibrated")}
    assert marked == set(world_card.CALIBRATED)


def test_a_constant_without_a_reason_is_an_error(monkeypatch):
    monkeypatch.setattr(world_card, "REASONS", {})
    with pytest.raises(ClipVipError, match="SHAPES has no reason"):
        world_card.world_card()


@pytest.mark.parametrize(
    ("source", "first", "last", "reason"),
    [
        ("A = 1  # one", 1, 1, "one"),
        ("A = 1  # one that\n# goes on\nB = 2  # two", 1, 1, "one that goes on"),
        ("A = (\n    1,\n)  # three lines", 1, 3, "three lines"),
        ("A = 1  # one\n# Of what follows,\n# in two lines.\nB = 2", 4, 4, "Of what follows, in two lines."),
        ("A = 1  # one\n# Of what follows.\nB = 2", 1, 1, "one"),
        ("A = 1\nB = 2", 2, 2, ""),
    ],
)
def test_which_comment_belongs_to_a_constant(source, first, last, reason):
    assert comment_of(source.splitlines(), first, last) == reason


def test_long_tables_are_shortened_and_values_are_not():
    assert short(0.35) == "0.35"
    assert short(("a", "b")) == "2: a, b"
    assert short({"train": range(8, 12)}) == "1 entries (train: 8–11)"
    assert short({str(i): i for i in range(9)}) == "9 entries (0: 0; …)"


def test_the_recipes_that_were_taken_are_the_profile_s():
    tried, mini = world_card.calibrations(), PROFILES["mini"]
    assert list(tried) == ["steps", "batches", "rates", "fine-tuning rates"]
    _, rows = tried["batches"]
    [taken] = {(row["clips a batch"], row["fine-tuning steps"]) for row in rows if row["taken"]}
    assert taken == (mini.finetune.batch, mini.finetune.steps) and mini.postpretrain.batch == taken[0]
    models = {row["model"] for what in ("steps", "batches") for row in tried[what][1]}
    assert models == {
        "mean_pool",
        "mean_pool, not post-pretrained",
        "proxy-3",
    }  # no arm that a claim compares


def test_the_rate_of_post_pretraining_follows_the_rule_that_the_card_states():
    _, (without, *rates) = world_card.calibrations()["rates"]
    lowest = without["mean"] - 1.5  # a standard error, as the table says
    fit = [float(row["learning rate"]) for row in rates if row["mean"] >= lowest]
    [taken] = [float(row["learning rate"]) for row in rates if row["taken"]]
    assert max(fit) == taken == PROFILES["mini"].postpretrain.lr


def test_no_arm_was_worse_at_the_one_rate_of_fine_tuning():
    """The rule by which it was taken: better by more than a standard error for many arms, worse for none."""
    _, rows = world_card.calibrations()["fine-tuning rates"]
    taken, other = (f"{rate} (taken)" if rate == "0.0002" else rate for rate in ("0.0002", "0.0005"))
    assert PROFILES["mini"].finetune.lr == 2e-4
    gains = [row[taken] - row[other] for row in rows]
    errors = [100 * (share * (1 - share) / 2000) ** 0.5 for share in (row[other] / 100 for row in rows)]
    assert min(gains) >= 0
    assert sum(gain > error for gain, error in zip(gains, errors, strict=True)) == 11 and len(rows) == 15
