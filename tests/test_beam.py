"""The fairseq beam rule against a plain, uncached, one-image-at-a-time version of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.beam import BeamSettings, beam_search
from clipvip_lib.models.ofa import OFA, OFAConfig

torch.set_num_threads(1)
CONFIG = OFAConfig(
    16, 1, 2, 16, 16, 2, 2, "resnet18", 2, vocab_size=14, max_position_embeddings=24, token_bucket_size=8,
    image_bucket_size=2,
)  # fmt: skip


def model(seed: int) -> OFA:
    """Random weights with sharp next-token distributions and an end-of-text that is at times likely."""
    torch.manual_seed(seed)
    net = OFA(CONFIG).eval()
    torch.nn.init.normal_(net.encoder.embed_tokens.weight, std=0.8)
    return net


def plain_beam(
    net: OFA, ids: torch.Tensor, image: torch.Tensor, s: BeamSettings
) -> list[tuple[list[int], float]]:
    """The rule of fairseq's sequence_generator.py for one image, with lists, without cache."""
    encoded, last = net.encode(ids, image), int(s.max_len_a * ids.shape[1] + s.max_len_b)
    beams: list[tuple[list[int], float]] = [([0], 0.0)]
    done: list[tuple[list[int], float]] = []
    for t in range(last + 1):
        candidates = []
        for tokens, score in beams:
            logits = net.decode(torch.tensor([tokens]), encoded)[0, -1]
            logp = (logits / s.temperature).log_softmax(-1).tolist()
            n = s.no_repeat_ngram_size
            grams = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)} if n else set()
            for token, value in enumerate(logp):
                barred = token == 1 or (token == 2 and t < s.min_len) or (token != 2 and t == last)
                repeats = n and len(tokens) >= n - 1 and (*tokens[len(tokens) - n + 1 :], token) in grams
                if not barred and not repeats:
                    candidates.append((tokens, token, score + value))
        candidates.sort(key=lambda c: -c[2])
        candidates = candidates[: 2 * s.beam_size]
        for tokens, token, score in candidates[: s.beam_size]:
            if token == 2 and len(done) < s.beam_size:
                done.append(([*tokens[1:], 2], score / (t + 1) ** s.lenpen))
        if len(done) == s.beam_size or t == last:
            break
        beams = [([*tokens, token], score) for tokens, token, score in candidates if token != 2][
            : s.beam_size
        ]
    return sorted(done, key=lambda d: -d[1])


def test_equals_the_plain_rule(equals):
    @settings(max_examples=30, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        beam=st.integers(1, 5),
        length=st.integers(2, 9),
        per_token=st.sampled_from([0.0, 0.5, 1.0]),
        min_len=st.integers(0, 4),
        lenpen=st.sampled_from([0.0, 0.6, 1.0, 1.7]),
        ngram=st.integers(0, 3),
        temperature=st.sampled_from([0.7, 1.0, 1.3]),
    )
    def check(seed, beam, length, per_token, min_len, lenpen, ngram, temperature):
        net = model(seed)
        rule = BeamSettings(beam, length, per_token, min(min_len, length), lenpen, ngram, temperature)
        ids, images = torch.tensor([[0, 5, 2], [0, 2, 1], [0, 7, 2]]), torch.randn(3, 3, 32, 32)
        found = beam_search(net, ids, images, rule)
        with torch.no_grad():
            plain = [plain_beam(net, ids[row : row + 1], images[row : row + 1], rule) for row in range(3)]
        against = "fairseq's rule with lists, without a cache, one image at a time"
        wrong = [
            row
            for row in range(3)
            if [one.tokens for one in found[row]] != [tokens for tokens, _ in plain[row]]
        ]
        equals("beam search, images with other tokens", against, len(wrong), 0)
        scores = [score for one in plain for _, score in one]
        ours = [one.score for hypotheses in found for one in hypotheses]
        worst = max(abs(a - b) for a, b in zip(ours, scores, strict=True))
        equals("beam search, scores", against, worst, 1e-4)

    check()


def test_min_len_is_compared_with_the_length_that_the_prompt_allows():
    rule, image = BeamSettings(beam_size=2, max_len_a=1.0, max_len_b=0, min_len=3), torch.randn(1, 3, 16, 16)
    found = beam_search(model(0), torch.tensor([[0, 5, 6, 2]]), image, rule)[0]
    assert all(3 <= len(one.tokens) - 1 <= 4 for one in found)
    with pytest.raises(ClipVipError, match="got 3 and 2 for prompts of 2 tokens"):
        beam_search(model(0), torch.tensor([[0, 2]]), image, rule)


def test_hypotheses_end_and_obey_their_limits():
    rule = BeamSettings(beam_size=4, max_len_b=6, min_len=3, no_repeat_ngram_size=2)
    for seed in range(5):
        for done in beam_search(model(seed), torch.tensor([[0, 2]]), torch.randn(1, 3, 16, 16), rule):
            assert done == sorted(done, key=lambda one: -one.score)
            for one in done:
                assert one.tokens[-1] == 2
                assert 2 not in one.tokens[:-1]
                assert 1 not in one.tokens
                assert 3 <= len(one.tokens) - 1 <= 6
                pairs = list(zip([0, *one.tokens], one.tokens, strict=False))
                assert len(set(pairs)) == len(pairs)
                assert one.score == pytest.approx(sum(one.token_scores) / len(one.tokens), abs=1e-5)


def test_score_is_the_models_own_probability():
    net, image = model(3), torch.randn(1, 3, 16, 16)
    best = beam_search(net, torch.tensor([[0, 2]]), image, BeamSettings(max_len_b=4))[0][0]
    with torch.no_grad():
        logp = net(torch.tensor([[0, 2]]), image, torch.tensor([[0, *best.tokens[:-1]]])).log_softmax(-1)[0]
    total = sum(float(logp[i, token]) for i, token in enumerate(best.tokens))
    assert best.score == pytest.approx(total / len(best.tokens), abs=1e-5)
    assert math.isfinite(total)


def test_length_may_grow_with_the_prompt():
    rule = BeamSettings(beam_size=2, max_len_a=1.0, max_len_b=2, min_len=2)
    longest = 0
    for seed in range(6):
        found = beam_search(model(seed), torch.tensor([[0, 5, 6, 2]]), torch.randn(1, 3, 16, 16), rule)
        longest = max(longest, *(len(one.tokens) for one in found[0]))
    assert 3 < longest <= 7


@pytest.mark.parametrize(
    "raw",
    [
        {"beam_size": 0},
        {"max_len_b": 0},
        {"temperature": 0.0},
        {"min_len": 9, "max_len_b": 4},
        {"max_len_a": -1.0},
        {"min_len": -1},
        {"max_len_a": 1.0, "max_len_b": -1},
    ],
)
def test_settings_that_make_no_search_are_refused(raw):
    with pytest.raises(ClipVipError):
        BeamSettings(**raw)


def test_a_beam_wider_than_the_vocabulary_is_refused():
    with pytest.raises(ClipVipError, match="smaller beam"):
        beam_search(model(0), torch.tensor([[0, 2]]), None, BeamSettings(beam_size=14))
