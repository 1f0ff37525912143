"""Two and four real processes give the gradient, the loss and the weights of one; failures reach all of them."""

import json
import os
import sys

import patience
import pytest
import small_runs
import torch

from clipvip_lib.errors import ClipVipError
from clipvip_lib.omnisource import LOSSES
from clipvip_lib.training import ranks as distributed
from clipvip_lib.training.ranks import Ranks


def checks(ranks, folder):
    """What every rank found (rank_checks.py), and what they said together."""
    process = small_runs.torchrun(ranks, "tests/rank_checks.py", folder, cwd=small_runs.CHECKOUT)
    _, err = small_runs.finish(process)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)], err


@pytest.fixture(scope="module", params=(2, pytest.param(4, marks=pytest.mark.thorough)))
def found(request, tmp_path_factory):
    return checks(request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


pytestmark = pytest.mark.filterwarnings("error")


# --------------------------------------------------------------------------------------------- real processes


@pytest.mark.slow
def test_ranks_of_small_batches_have_the_gradient_of_one_with_the_whole(found):
    rows, _ = found
    # float32: a step differs by rounding alone, caching also by the kernel that attention takes without gradients
    limits = {("torch.float64", True): 1e-12, ("torch.float32", True): 1e-6, ("torch.float32", False): 1e-5}
    for dtype in ("torch.float64", "torch.float32"):
        for chunk in (0, 1, 3):
            of = [
                r for each in rows for r in each["gradients"] if r["dtype"] == dtype and r["chunk"] == chunk
            ]
            assert len(of) == len(rows) * (len(LOSSES) if dtype == "torch.float64" else 1)
            limit = limits.get((dtype, not chunk), 1e-12)
            for row in of:
                assert row["gradient_difference"] < limit, row
                assert row["loss_difference"] < min(limit, 1e-6), row


@pytest.mark.slow
def test_parameters_are_equal_on_all_ranks_after_20_steps_and_those_of_one_rank(found):
    rows, _ = found
    assert len({row["steps"]["digest"] for row in rows}) == 1
    for row in rows:
        assert row["steps"]["moved"] > 1e-2
        assert row["steps"]["difference"] < 1e-4
        assert row["steps"]["losses"]["ranks"] == pytest.approx(row["steps"]["losses"]["alone"], rel=1e-4)
    assert all(row["steps"]["losses"] == rows[0]["steps"]["losses"] for row in rows)


@pytest.mark.slow
def test_gathering_is_torchs_own_with_less_to_send(found):
    rows, _ = found
    for row in rows:
        assert row["gathering"]["values"]
        assert row["gathering"]["gradient"] < 1e-14
        assert row["gathering"]["flags"] == [rank % 2 == 0 for rank in range(len(rows))]
        assert row["gathering"]["flag_type"] == "torch.bool"


@pytest.mark.slow
def test_rows_that_were_dealt_out_come_back_in_order_for_any_number(found):
    assert [row["dealing"] for row in found[0]] == [[]] * len(found[0])


@pytest.mark.slow
def test_a_rank_that_fails_stops_all_and_one_message_is_shown(found):
    rows, err = found
    size = len(rows)
    outcomes = [row["agreeing"]["outcome"] for row in rows]
    assert outcomes == ["StoppedElsewhere"] * (size - 1) + ["ClipVipError"]
    assert err.count("said by one of all") == 1
    for row in rows:
        assert row["agreeing"]["largest"] == [size - 1, 0]
        assert row["agreeing"]["collected"] == [{"rank": rank} for rank in range(size)]
        assert row["size"] == size


# ----------------------------------------------------------------------------------------------- one process


@pytest.fixture
def no_torchrun(monkeypatch):
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_there_is_one_rank_and_everything_is_the_identity(no_torchrun):
    ranks = distributed.start()
    assert (ranks.rank, ranks.size, ranks.main) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x, ranks) is x
    assert distributed.gather_plain(x, ranks) is x
    assert torch.equal(distributed.gather_dealt(x, ranks, 3), x)
    assert ranks.largest(2, -1) == (2.0, -1.0)
    assert ranks.collect("a") == ["a"]
    with pytest.raises(KeyError), distributed.together(ranks):
        raise KeyError("as it came")
    distributed.stop()


@pytest.mark.parametrize("count", (0, 1, 5, 8))
@pytest.mark.parametrize("size", (1, 3))
def test_shares_hold_every_item_once(count, size):
    shares = [distributed.share(range(count), Ranks(rank, size)) for rank in range(size)]
    assert sorted(item for own in shares for item in own) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_that_are_not_the_share_are_refused():
    with pytest.raises(ClipVipError, match="rank 0 of 1 expected 4 of 4 rows, got 3"):
        distributed.gather_dealt(torch.zeros(3, 2), Ranks(), 4)


@pytest.mark.parametrize("value", ({"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}))
def test_an_incomplete_environment_is_one_sentence(no_torchrun, monkeypatch, value):
    for name, text in value.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(
        ClipVipError, match="expected RANK, WORLD_SIZE, LOCAL_RANK as whole numbers.*start with torchrun"
    ):
        distributed.start()


@pytest.mark.fault(
    "train: a rank never comes",
    sees="`ClipVipError: rank 0 expected 2 ranks at 127.0.0.1`, `within 3 s`",
    keeps="not looked at by the test",
)
def test_ranks_that_do_not_come_are_missed_within_the_time_limit():
    code = "from clipvip_lib.training.ranks import start; start(3)"
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(small_runs.free_port())}
    done = patience.run([sys.executable, "-c", code], env=os.environ | given)
    assert done.returncode == 1
    assert "ClipVipError: rank 0 expected 2 ranks at 127.0.0.1" in done.stderr
    assert "within 3 s" in done.stderr


def test_errors_that_have_nothing_to_do_with_ranks_pass():
    ranks = Ranks(0, 2, store=object())
    with pytest.raises(RuntimeError, match="^a shape$"), distributed.noticing_loss(ranks):
        raise RuntimeError("a shape")
    with (
        pytest.raises(distributed.RankLost, match="expected 2 ranks, one of them died"),
        distributed.noticing_loss(ranks),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1")
