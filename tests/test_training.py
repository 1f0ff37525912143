"""The loop learns, resumes bit for bit, chooses on validation, and stops with a sentence when it must."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.data import corpora, world
from clipvip_lib.data.frames import FrameStore, write_store
from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.attentions import ATTENTIONS
from clipvip_lib.models.clip_tokenizer import ClipTokenizer
from clipvip_lib.models.clip_vip import ClipViP, ClipViPConfig
from clipvip_lib.training.batches import Pairs, Sampler, StoreBatches, Tokens
from clipvip_lib.training.evaluation import encode_store, encode_tokens
from clipvip_lib.training.loop import train
from clipvip_lib.training.ranks import Ranks
from clipvip_lib.training.recipes import TrainRecipe
from clipvip_lib.training.run_folder import RunFolder, read_metrics
from clipvip_lib.training.step import parameter_groups, schedule
from clipvip_lib.training.weights import load_state, save_state

RECIPE = TrainRecipe(
    steps=6, batch=8, lr=1e-3, lr_added=5e-3, weight_decay=0.05, clip_norm=1.0, warmup=0.05, evaluations=3,
    reduction="mean", precision="float32", flat=True,
)  # fmt: skip
OFTEN = dataclasses.replace(RECIPE, save_minutes=0.0)  # a checkpoint after each step


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Sixteen clips of four long videos, two texts and one caption each."""
    clips = [c for i in range(4) for c in world.sample_video(world.rng_for(i), "train")]
    path = tmp_path_factory.mktemp("store") / "frames.npy"
    sources = ((str(i), corpora.encode_h264(world.render(clip))) for i, clip in enumerate(clips))
    write_store(path, sources, len(clips), 6, 24, True, quiet)
    said = [
        text
        for c in clips
        for text in (f"{c.things[0].colour} {c.events[0].motion}", f"a {c.things[0].shape}")
    ]
    tokenizer = ClipTokenizer.for_texts(said, 16)
    captions = Tokens.of([f"a {c.things[0].colour} {c.things[0].shape}" for c in clips], tokenizer)
    rows = [[2 * i, 2 * i + 1] for i in range(len(clips))]
    mask = torch.arange(len(clips)) != 5
    return Pairs(FrameStore([path]), Tokens.of(said, tokenizer), rows, captions, mask, group=4)


def model(attention="proxy", seed=0):
    torch.manual_seed(seed)
    return ClipViP(
        ClipViPConfig.small(
            width=16, layers=2, heads=2, image_size=24, patch_size=12, vocab_size=64, context_length=16,
            embed_dim=16, attention=attention, proxies=2, frames=3,
        )
    )  # fmt: skip


def run(pairs, folder, recipe=RECIPE, loss="V-S,C + F-C", seed=0, progress=quiet, net=None, **options):
    net = net or model()
    kept = RunFolder(folder, {}, Ranks())
    batches = StoreBatches(pairs, loss, 3, recipe.batch, seed)
    train(net, batches, loss, recipe, run=kept, progress=progress, **options)
    return net, kept


def made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def history(kept):
    """Rows of the steps, without times."""
    return [
        {name: row[name] for name in ("step", "loss", "grad_norm", "lr", "logit_scale")}
        for row in read_metrics(kept.metrics)
    ]


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ------------------------------------------------------------------------------------------------------ batches


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_every_group_once_and_whole(groups_a_batch, batches, group, seed):
    count = groups_a_batch * batches * group
    sampler = Sampler(count, groups_a_batch * group, group, seed)
    for epoch in range(2):
        seen = np.concatenate([sampler.indices(epoch * batches + step) for step in range(batches)])
        assert sorted(seen) == list(range(count))
        assert (seen.reshape(-1, group) % group == np.arange(group)).all()
    fresh = Sampler(count, groups_a_batch * group, group, seed)
    np.testing.assert_array_equal(fresh.indices(batches), sampler.indices(batches))


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ClipVipError, match="multiple of 4"):
        Sampler(16, 6, 4, 0)
    with pytest.raises(ClipVipError, match="at most 16"):
        Sampler(16, 32, 4, 0)


def test_a_batch_holds_what_the_loss_needs(pairs):
    batch = StoreBatches(pairs, "V-S,C + F-C", 3, 8, 0)(0)
    assert batch.video.shape == (8, 3, 24, 24, 3)
    assert batch.frame.shape == (8, 1, 24, 24, 3)
    assert len(batch.captions.ids) == len(batch.texts.ids) == 8
    plain = StoreBatches(pairs, "V-S", 3, 8, 0)(0)
    assert plain.frame is None
    assert plain.captions is None
    without = dataclasses.replace(pairs, captions=None)
    with pytest.raises(ClipVipError, match="caption the shards first"):
        StoreBatches(without, "V-S + V-C", 3, 8, 0)


def test_one_of_several_texts_is_drawn_anew_at_every_visit(pairs):
    batches = StoreBatches(pairs, "V-S", 3, 16, 0)
    drawn = {tuple(map(tuple, batches(step).texts.ids.tolist())) for step in range(4)}
    assert len(drawn) == 4


# --------------------------------------------------------------------------------------------------------- loop


def test_it_learns(pairs, tmp_path):
    _, kept = run(pairs, tmp_path, dataclasses.replace(RECIPE, steps=150), loss="V-S")
    losses = [row["loss"] for row in history(kept)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert [row["step"] for row in history(kept)] == list(range(1, 151))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_trains_all_its_parameters(pairs, tmp_path, attention):
    net = model(attention)
    before = {name: p.clone() for name, p in net.named_parameters()}
    run(pairs, tmp_path, net=net)
    still = [name for name, p in net.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if "k_proj.bias" not in name], still


@pytest.mark.fault(
    "training loop: Ctrl-C in the fifth step",
    sees="the next start resumes behind the checkpoint",
    keeps="the checkpoint; the end equals an undisturbed run bit for bit",
)
@pytest.mark.parametrize("flat", (True, False))
def test_killed_and_resumed_is_the_same_bit_for_bit(pairs, tmp_path, flat):
    recipe = dataclasses.replace(OFTEN, flat=flat)
    scores = {2: 10.0, 4: 30.0, 6: 20.0}

    def evaluate(counter):
        return lambda net: scores[counter.append(1) or 2 * len(counter)]

    whole, expected = run(pairs, made(tmp_path / "a"), recipe, evaluate=evaluate([]))

    def stop(done, total, note=""):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pairs, made(tmp_path / "b"), recipe, progress=stop, evaluate=evaluate([]))
    assert (tmp_path / "b/checkpoint.pt").exists()
    seen = []
    resumed, kept = run(
        pairs,
        tmp_path / "b",
        recipe,
        net=model(seed=9),
        progress=lambda done, *_: seen.append(done),
        evaluate=evaluate([1, 1]),
    )
    assert seen == [5, 6], "the checkpoint is of the fourth step"
    assert same(whole, resumed)
    assert (history(kept), kept.evaluations) == (history(expected), expected.evaluations)


def test_the_checkpoint_with_the_best_validation_score_is_kept(pairs, tmp_path):
    states, scores = [], iter((10.0, 30.0, 20.0))

    def evaluate(net):
        assert not net.training
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        return next(scores)

    net, kept = run(pairs, tmp_path, evaluate=evaluate)
    assert kept.best_step() == 4
    assert [row["step"] for row in kept.evaluations] == [2, 4, 6]
    assert all(torch.equal(value, states[1][name]) for name, value in net.state_dict().items())


@pytest.mark.fault(
    "train: the weights of the best evaluation are gone at the end",
    sees="`do not fit this model`, with the file's name",
    keeps="the checkpoint",
)
def test_best_weights_that_are_gone_are_named(pairs, tmp_path):
    def evaluate(net):
        for path in tmp_path.glob("best-*.pt"):
            path.unlink()
        return 1.0 if not list(tmp_path.glob("checkpoint.pt")) else 0.0

    with pytest.raises(ClipVipError, match=r"best-000002\.pt do not fit this model"):
        run(pairs, tmp_path, evaluate=evaluate)
    assert (tmp_path / "checkpoint.pt").is_file()


def test_snapshots_are_kept_and_loaded_strictly(pairs, tmp_path):
    net = model()

    def keep(step: int) -> None:
        save_state(net.state_dict(), tmp_path / f"step-{step:06d}.pt")

    run(pairs, tmp_path, net=net, snapshots=(3, 6), snapshot=keep)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-000003.pt", "step-000006.pt"]
    other = model(seed=4)
    load_state(other, tmp_path / "step-000006.pt")
    assert same(net, other)
    with pytest.raises(ClipVipError, match="do not fit this model"):
        load_state(model("mean_pool"), tmp_path / "step-000006.pt")


@pytest.mark.fault(
    "training loop: the loss is NaN",
    sees="`the loss became nan at step 1`, `lower the learning rate`",
    keeps="not looked at by the test",
)
def test_a_loss_that_is_not_finite_stops_with_a_sentence(pairs, tmp_path):
    net = model()
    with torch.no_grad():
        net.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ClipVipError, match="the loss became nan at step 1: .*lower the learning rate"):
        run(pairs, tmp_path, net=net)


@pytest.mark.parametrize("flat", (True, False))
def test_a_checkpoint_of_another_shape_is_refused(pairs, tmp_path, flat):
    recipe = dataclasses.replace(OFTEN, flat=flat)

    def stop(done, total, note=""):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pairs, tmp_path, recipe, progress=stop)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ClipVipError, match="does not fit this model"):
        run(pairs, tmp_path, recipe, net=model("mean_pool"))
    (tmp_path / "checkpoint.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(ClipVipError, match="cannot resume from .*remove it to start from scratch"):
        run(pairs, tmp_path)


def test_logit_scale_stays_within_the_authors_bounds(pairs, tmp_path):
    net = model()
    with torch.no_grad():
        net.logit_scale.fill_(9.0)
    run(pairs, tmp_path, net=net)
    assert net.logit_scale.item() <= math.log(200.0)


def test_bfloat16_trains_near_float32(pairs, tmp_path):
    _, exact = run(pairs, made(tmp_path / "a"))
    _, half = run(pairs, made(tmp_path / "b"), dataclasses.replace(RECIPE, precision="bfloat16"))
    for a, b in zip(history(exact), history(half), strict=True):
        assert abs(a["loss"] - b["loss"]) < 0.15


def test_schedule_warms_up_and_ends_near_zero():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert sorted(shares[10:], reverse=True) == shares[10:]
    assert shares[-1] < 0.001


def test_parameter_groups_decay_matrices_and_speed_up_new_parameters():
    net, names = model(), {}
    for name, parameter in net.named_parameters():
        names[id(parameter)] = name
    groups = parameter_groups(net, RECIPE)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    for group in groups:
        for parameter in group["params"]:
            new = names[id(parameter)].endswith(("added_cls", "temporal_embedding"))
            assert group["peak_lr"] == (RECIPE.lr_added if new else RECIPE.lr)
            decays = parameter.ndim >= 2 and not new
            assert group["weight_decay"] == (RECIPE.weight_decay if decays else 0.0)


def test_features_of_a_set_equal_those_of_single_clips(pairs):
    net = model().eval()
    together = encode_store(net, pairs.store, 3, batch=5, precision="float32")
    for index in (0, 7, 15):
        from clipvip_lib.data.transform import normalize

        with torch.no_grad():
            alone = net.encode_video(normalize(torch.from_numpy(pairs.store.take([index], 3))))
        np.testing.assert_allclose(together[index], alone[0].numpy(), atol=1e-5)
    texts = encode_tokens(net, pairs.texts, batch=7, precision="float32")
    one = encode_tokens(net, pairs.texts.take([4]), precision="float32")
    np.testing.assert_allclose(texts[4], one[0], atol=1e-5)


@pytest.mark.bad_input(
    "training: a checkpoint that is empty, junk, a web page or a cut archive", says="`cannot resume from`"
)
@pytest.mark.parametrize("content", (b"", b"garbage of no kind", b"<html>not found</html>", b"PK\x03\x04cut"))
def test_what_is_no_file_of_weights_is_one_sentence(pairs, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ClipVipError, match="cannot resume from") as resumed:
        run(pairs, tmp_path)
    (tmp_path / "step-000001.pt").write_bytes(content)
    with pytest.raises(ClipVipError, match="do not fit this model") as loaded:
        load_state(model(), tmp_path / "step-000001.pt")
    for error in (resumed, loaded):
        assert "weights_only" not in str(error.value)
        assert "\n" not in str(error.value)


def test_weights_that_are_a_list_are_one_sentence(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ClipVipError, match="do not fit this model"):
        load_state(model(), tmp_path / "list.pt")


class SpoilsGradient(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("nan")


@pytest.mark.fault(
    "training loop: a gradient is NaN",
    sees="`the gradient became nan at step 1`",
    keeps="the weights, as they were before the step",
)
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(pairs, tmp_path):
    net = model()
    net.visual_projection.register_forward_hook(lambda _, __, out: SpoilsGradient.apply(out))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ClipVipError, match="the gradient became nan at step 1"):
        run(pairs, tmp_path, net=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("flat", (True, False))
def test_a_frozen_text_tower_stays_as_it_is_and_the_rest_learns(pairs, tmp_path, flat):
    net = model()
    before = {name: p.clone() for name, p in net.named_parameters()}
    run(pairs, tmp_path, dataclasses.replace(RECIPE, frozen_text=True, flat=flat), net=net)
    still = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith(("text_model.", "text_projection."))}
    assert (
        frozen
        and {name for name in still if "vision_model" not in name or "k_proj.bias" not in name} == frozen
    )


def test_a_run_that_drops_patches_is_resumed_bit_for_bit_and_caches_no_gradients(pairs, tmp_path):
    recipe = dataclasses.replace(OFTEN, patch_drop=0.5)
    whole, expected = run(pairs, made(tmp_path / "a"), recipe, net=model("full"))
    plain, other = run(pairs, made(tmp_path / "plain"), OFTEN, net=model("full"))
    assert history(expected) != history(other) and not same(whole, plain)

    def stop(done, total, note=""):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pairs, made(tmp_path / "b"), recipe, net=model("full"), progress=stop)
    resumed, _ = run(pairs, tmp_path / "b", recipe, net=model("full", seed=9))
    assert same(whole, resumed)
    cached = dataclasses.replace(recipe, chunk=4, flat=False)
    with pytest.raises(ClipVipError, match=r"patch_drop 0.5 expected no gradient caching, got chunk 4"):
        run(pairs, made(tmp_path / "c"), cached, net=model("full"))
