"""Beam search by fairseq's rule, which made OFA's captions (sequence_generator.py and search.py there).

It is not Hugging Face's ``generate``: here a hypothesis that reaches the length limit ends with the model's
own probability of end-of-text, an image is done when ``beam_size`` hypotheses have ended, and a hypothesis
may end only while it ranks among the first ``beam_size`` candidates. Decoding is cached and batched.

Legend: B images still open, K beam_size, V vocabulary, t step (0 is the token after ``<s>``).
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor

from clipvip_lib.errors import ClipVipError
from clipvip_lib.models.ofa import BOS, EOS, OFA, PAD


@dataclasses.dataclass(frozen=True)
class BeamSettings:
    """Defaults are the authors' caption script's; lengths count tokens (not words), without end-of-text.

    At most ``max_len_a * prompt tokens + max_len_b`` tokens; scores are divided by length ** lenpen.
    ``no_repeat_ngram_size`` 0 allows repeats. Raises ClipVipError for values that no search can use.
    """

    beam_size: int = 5
    max_len_b: int = 16
    max_len_a: float = 0.0
    min_len: int = 1
    lenpen: float = 1.0
    no_repeat_ngram_size: int = 3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        # With max_len_a the limit depends on the prompt: beam_search compares it with min_len.
        shortest = 0 if self.max_len_a else 1
        numbers = (self.max_len_a, self.min_len, self.no_repeat_ngram_size)
        if self.beam_size < 1 or self.max_len_b < shortest or min(numbers) < 0:
            raise ClipVipError(
                f"expected a beam and a length of at least 1 and no negative value, got {self}"
            )
        if not self.temperature > 0:
            raise ClipVipError(f"the temperature must be above 0, got {self.temperature}")
        if self.min_len > self.max_len_b and not self.max_len_a:
            raise ClipVipError(
                f"min_len must be at most max_len_b, got {self.min_len} and {self.max_len_b}; lower it"
            )


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A finished caption: token ids without ``<s>`` and with ``</s>``, and its score (mean log-probability).

    ``token_scores`` are the log-probabilities of the tokens.
    """

    tokens: list[int]
    score: float
    token_scores: list[float]


class _Beams:
    """The open hypotheses: tokens [B, K, 1 + t] with ``<s>`` first, cumulated scores [B, K, 1 + t]."""

    def __init__(self, images: int, beam: int, device: torch.device) -> None:
        self.image = torch.arange(images, device=device)  # number of the image in the batch
        self.tokens = torch.full((images, beam, 1), BOS, dtype=torch.long, device=device)
        self.scores = torch.zeros(images, beam, 1, device=device)


def _ban_repeats(logp: Tensor, tokens: Tensor, size: int) -> Tensor:
    """-inf for tokens that would complete an n-gram already in tokens [B, K, 1 + t] (``<s>`` counts)."""
    if size < 1 or tokens.shape[2] < size:
        return logp
    grams = tokens.unfold(2, size, 1)  # [B, K, number of n-grams, size]
    last = tokens[:, :, tokens.shape[2] - size + 1 :]
    repeats = (grams[..., :-1] == last[:, :, None]).all(-1)
    banned = torch.zeros_like(logp).scatter_add_(2, grams[..., -1], repeats.to(logp.dtype))
    return logp.masked_fill(banned > 0, -math.inf)


def _log_probabilities(logits: Tensor, beams: _Beams, settings: BeamSettings, t: int, last: int) -> Tensor:
    """Log-probabilities [B, K, V] of the next token under the rules of length and repetition."""
    logp = (logits.float() / settings.temperature).log_softmax(-1)
    logp = logp.masked_fill(logp.isnan(), -math.inf)
    logp[..., PAD] = -math.inf
    if t >= last:  # end-of-text keeps its own log-probability, unlike a forced token of Hugging Face
        logp[..., :EOS] = -math.inf
        logp[..., EOS + 1 :] = -math.inf
    elif t < settings.min_len:
        logp[..., EOS] = -math.inf
    return _ban_repeats(logp, beams.tokens, settings.no_repeat_ngram_size)


def _candidates(logp: Tensor, beams: _Beams, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best 2 K continuations of each image: scores, beams they continue, tokens; each [B, 2 K]."""
    vocab, beam = logp.shape[2], beams.tokens.shape[1]
    total = logp + beams.scores[:, :, -1:]
    if t == 0:  # all beams are still alike
        total = total[:, :1]
    flat = total.flatten(1)
    scores, index = flat.topk(min(2 * beam, flat.shape[1] - 1))
    return scores, index // vocab, index % vocab


def _collect(
    finished: list[list[Hypothesis]],
    beams: _Beams,
    ended: Tensor,
    candidates: tuple[Tensor, ...],
    lenpen: float,
) -> None:
    """Store candidates that end, in rank order, until an image has K of them; ended bool [B, K]."""
    scores, parents, _ = candidates
    beam = ended.shape[1]
    for row, rank in ended.nonzero().tolist():
        done = finished[int(beams.image[row])]
        if len(done) == beam:
            continue
        parent = int(parents[row, rank])
        cumulated = [*beams.scores[row, parent].tolist(), float(scores[row, rank])]
        tokens = [*beams.tokens[row, parent, 1:].tolist(), EOS]
        steps = [after - before for before, after in itertools.pairwise(cumulated)]
        done.append(Hypothesis(tokens, cumulated[-1] / len(tokens) ** lenpen, steps))


def _continue(beams: _Beams, ended: Tensor, candidates: tuple[Tensor, ...], keep: Tensor) -> Tensor:
    """Continue with the first K candidates that do not end; returns the flat rows that they continue.

    There are always enough: each of K hypotheses ends in at most one of 2 K candidates, and at the first step only
    one does. So fairseq's flags for slots that it could not fill are not needed.
    """
    scores, parents, tokens = candidates
    images, beam = beams.tokens.shape[:2]
    order = ended * 2 * beam + torch.arange(ended.shape[1], device=ended.device)
    chosen = order.topk(beam, 1, largest=False).indices
    parents = parents.gather(1, chosen)
    rows = (parents + torch.arange(images, device=parents.device)[:, None] * beam)[keep].flatten()
    shape = (int(keep.sum()), beam, -1)
    new_tokens, new_scores = tokens.gather(1, chosen)[keep], scores.gather(1, chosen)[keep]
    beams.tokens = torch.cat([beams.tokens.flatten(0, 1)[rows].view(shape), new_tokens[..., None]], 2)
    beams.scores = torch.cat([beams.scores.flatten(0, 1)[rows].view(shape), new_scores[..., None]], 2)
    beams.image = beams.image[keep]
    return rows


@torch.inference_mode()
def beam_search(
    model: OFA, ids: Tensor, images: Tensor | None, settings: BeamSettings | None = None
) -> list[list[Hypothesis]]:
    """Captions of prompt ids [B, T] and images [B, 3, h, w]: up to K hypotheses per image, best first.

    The model should be in ``eval()``. Captions are never longer than the model's positions. Raises ClipVipError
    when the vocabulary is smaller than the beam needs or min_len is more than the longest caption.
    """
    settings = settings or BeamSettings()
    beam, vocab = settings.beam_size, model.config.vocab_size
    if vocab <= beam + 1:
        raise ClipVipError(
            f"a beam of {beam} needs a vocabulary above {beam + 1}, got {vocab}; use a smaller beam"
        )
    limit = model.config.max_position_embeddings - 1
    last = min(int(settings.max_len_a * ids.shape[1] + settings.max_len_b), limit)
    if last < settings.min_len:
        raise ClipVipError(
            f"min_len must be at most the longest caption, got {settings.min_len} and {last} for prompts of "
            f"{ids.shape[1]} tokens; lower it"
        )
    state = model.start_decoding(model.encode(ids, images), beam, last + 1)
    beams = _Beams(len(ids), beam, ids.device)
    finished: list[list[Hypothesis]] = [[] for _ in range(len(ids))]
    for t in range(last + 1):
        logits = state.step(beams.tokens[:, :, -1])
        candidates = _candidates(_log_probabilities(logits, beams, settings, t, last), beams, t)
        ended = (candidates[2] == EOS) & (candidates[0] > -math.inf)
        _collect(finished, beams, ended[:, :beam], candidates, settings.lenpen)
        open_ = [len(finished[image]) < beam and t < last for image in beams.image.tolist()]
        if not any(open_):
            break
        keep = torch.tensor(open_, device=ids.device)
        rows = _continue(beams, ended, candidates, keep)
        state.reorder(rows, None if all(open_) else keep.nonzero().flatten())
    return [sorted(done, key=lambda hypothesis: -hypothesis.score) for done in finished]
