"""ONION's suspicion of words: how much less perplexing a text is without one of them.

Source: ONION (arXiv 2011.10369): ``f_i = ppl(text) - ppl(text without word i)``; a word that belongs nowhere scores
high. Deviations: any causal language model scores, not GPT-2 alone; words are runs without white space, and the text's
own white space is kept where the original joins words by single spaces; the threshold comes from a bounded loss of
clean words (`threshold`) where the original bounds the loss of clean accuracy, which needs a trained model.

A text of W words has W variants. One forward pass for each computes the part before the left-out word W times. Here the
variants are branches of the text: a branch sees the text before its word and itself, so that only what follows the word
is computed anew. Texts and branches are packed one after another into rows without padding. That is about half of the
tokens, and no exact method needs fewer: every token behind a word sees that it is gone. What that gains in time
stands in docs/evidence/filters.md.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mbdefense.core._progress import track
from mbdefense.core.errors import UserError
from mbdefense.data.words import spans
from mbdefense.engine.attention import attends_plainly
from mbdefense.engine.log_probs import body_and_head
from mbdefense.models.loading import LoadedModel, device, own_mask

Span = tuple[int, int]

_PACK = 512
"""Tokens of one forward pass: enough to keep a CPU's matrix units busy, few enough for the mask's square."""
_HEAD = 256
"""Positions projected to the vocabulary at once."""
_LONGEST = 1024
"""Tokens of a text that are scored in one."""
_TEXTS = 64
"""Texts whose variants are in memory at once, and packed together."""
_DEPTHS = (0, 4, None)
"""With a bound to reach: how far behind its word a variant is computed before it is looked at again."""
_BLANKS = re.compile(r"[^\S\n]*")


class Perplexities(NamedTuple):
    """Perplexity of a text and of its variants; see `perplexities`."""

    text: float
    without: list[float]


class _Text(NamedTuple):
    """A text and its variants as tokens, and how many tokens at its start each variant shares with the text."""

    tokens: list[int]
    variants: list[list[int]]
    shared: list[int]

    def branch(self, variant: int, depth: int | None) -> list[int]:
        """What of a variant is computed anew, at most `depth` tokens.

        Not what it shares with the text, nor its last token, which predicts nothing.
        """
        return self.variants[variant][self.shared[variant] : -1][:depth]


class _Piece(NamedTuple):
    """A text and some of its variants that go into one pack."""

    text: int
    variants: list[int]


class _Losses(NamedTuple):
    """Negative log-likelihoods of a text and of some of its variants, in nats."""

    before: list[float]
    """Of the text's tokens up to each; the first token counts 0."""
    after: dict[int, float]
    """By variant, of its tokens behind those that it shares with the text."""


def words(text: str) -> list[Span]:
    """Where the text's words are, each with the blanks that go when it goes.

    That is the blanks after it, or before it where it ends its line; line breaks stay.
    """
    found = []
    for start, last in spans(text):
        blanks = _BLANKS.match(text, last)
        end = blanks.end() if blanks else last
        if end == len(text) or text[end] == "\n":
            end = last
            while start > 0 and text[start - 1] != "\n" and text[start - 1].isspace():
                start -= 1
        found.append((start, end))
    return found


def without(text: str, spans: Sequence[Span]) -> str:
    """The text without some of its words; their spans in order."""
    kept, place = [], 0
    for start, end in spans:
        kept.append(text[place : max(start, place)])
        place = max(end, place)
    return "".join(kept) + text[place:]


def threshold(clean: Sequence[float], max_loss: float) -> float:
    """The lowest threshold at which at most a share `max_loss` of clean scores is suspicious.

    A score is suspicious from the threshold on. Of n scores the ``floor(max_loss * n)`` highest may be.

    Raises:
        UserError: no clean score, or a share outside [0, 1).
    """
    if not 0 <= max_loss < 1:
        raise UserError("the loss of clean text must lie in [0, 1)", max_loss, "0.01 loses one word in a hundred")
    if not clean:
        raise UserError("no clean text to choose a threshold on", fix="give clean prompts of several words")
    ordered = sorted(clean, reverse=True)
    return math.nextafter(ordered[math.floor(max_loss * len(ordered))], math.inf)


def suspicions(
    loaded: LoadedModel, texts: Sequence[str], *, at_least: float = -math.inf, what: str = "ONION"
) -> list[list[float | None]]:
    """The suspicion of each word of each text, in the order of `words`.

    None where there is no perplexity to compare with: the only word of a text, or one without which a single token is
    left. A text beyond `_LONGEST` tokens or the model's longest input is scored in consecutive pieces that fit, so that
    none of it is cut off and the cost, the square of the length up to there, grows in proportion from there on.

    Args:
        loaded: the scoring model; the perplexity is over the text's own tokens but the first, without a chat template.
        texts: the texts.
        at_least: scores below it need not be exact. Where the tokens before a word, or those and the next few, show
            that it cannot reach this score, its branch is not computed to the end and the score is an upper bound,
            which is below `at_least` too.
        what: label of the progress bar.
    """
    limit = min(getattr(loaded.model.config, "max_position_embeddings", None) or _LONGEST, _LONGEST)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in _pieces(loaded, text, limit)]
    several = [piece for _, piece in pieces if len(words(piece)) > 1]
    starts = track(range(0, len(several), _TEXTS), what)
    scored = (p for start in starts for p in perplexities(loaded, several[start : start + _TEXTS], at_least=at_least))
    result: list[list[float | None]] = [[] for _ in texts]
    for number, piece in pieces:
        count = len(words(piece))
        if count < 2:
            result[number] += [None] * count
            continue
        found = next(scored)
        scores = (found.text - value for value in found.without)
        result[number] += [score if math.isfinite(score) else None for score in scores]
    return result


def perplexities(loaded: LoadedModel, texts: Sequence[str], *, at_least: float = -math.inf) -> list[Perplexities]:
    """Perplexity of each text, which holds a word, and of its variants without one; infinite for under two tokens.

    See `suspicions` for the arguments; a variant that cannot lie `at_least` below its text gets a lower bound.
    """
    encoded = [_encode(loaded, text) for text in texts]
    everything = {number: list(range(len(text.variants))) for number, text in enumerate(encoded)}
    if at_least == -math.inf:
        losses = _run_all(loaded, encoded, everything, None)
        return [_result(text, losses[number]) for number, text in enumerate(encoded)]
    losses = {}
    candidates = everything
    for depth in _DEPTHS:
        for number, found in _run_all(loaded, encoded, candidates, depth).items():
            losses.setdefault(number, found).after.update(found.after)
        # A loss is a sum of terms above 0: that of a variant's first tokens alone bounds the whole from below.
        bounds = {number: _result(encoded[number], losses[number]) for number in candidates}
        candidates = {
            number: [
                variant for variant in variants if bounds[number].text - bounds[number].without[variant] >= at_least
            ]
            for number, variants in candidates.items()
        }
        candidates = {number: variants for number, variants in candidates.items() if variants}
    return [_result(text, losses[number]) for number, text in enumerate(encoded)]


def _result(text: _Text, losses: _Losses) -> Perplexities:
    shared = [losses.before[count - 1] if count else 0.0 for count in text.shared]
    return Perplexities(
        _mean_exp(losses.before[-1] if losses.before else 0.0, text.tokens),
        [_mean_exp(shared[v] + losses.after.get(v, 0.0), tokens) for v, tokens in enumerate(text.variants)],
    )


def _mean_exp(loss: float, tokens: Sequence[int]) -> float:
    return math.exp(loss / (len(tokens) - 1)) if len(tokens) > 1 else math.inf


def _pieces(loaded: LoadedModel, text: str, limit: int) -> list[str]:
    """The text, halved between words until each part fits; a variant may take a few tokens more than its text."""
    spans = words(text)
    if len(spans) < 2 or len(loaded.tokenizer(text)["input_ids"]) <= limit - 8:
        return [text]
    middle = spans[len(spans) // 2][0]
    return _pieces(loaded, text[:middle], limit) + _pieces(loaded, text[middle:], limit)


def _encode(loaded: LoadedModel, text: str) -> _Text:
    variants = [without(text, [span]) for span in words(text)]
    tokens, *others = loaded.tokenizer([text, *variants])["input_ids"]
    shared = []
    for other in others:
        differing = (place for place, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b)
        shared.append(next(differing, min(len(tokens), len(other))))
    return _Text(tokens, others, shared)


def _packs(encoded: Sequence[_Text], wanted: Mapping[int, Sequence[int]], depth: int | None) -> Iterator[list[_Piece]]:
    """Texts with their wanted variants, as many as go into one forward pass."""
    pack: list[_Piece] = []
    filled = 0
    for piece, size in _sized_pieces(encoded, wanted, depth):
        if pack and filled + size > _PACK:
            yield pack
            pack, filled = [], 0
        pack.append(piece)
        filled += size
    if pack:
        yield pack


def _sized_pieces(
    encoded: Sequence[_Text], wanted: Mapping[int, Sequence[int]], depth: int | None
) -> Iterator[tuple[_Piece, int]]:
    for number, variants in wanted.items():
        text = encoded[number]
        # Every piece computes its text again; four times its length keeps that below a third of the work.
        room = max(_PACK, 4 * len(text.tokens))
        piece, size = _Piece(number, []), len(text.tokens)
        for variant in variants:
            length = len(text.branch(variant, depth))
            if piece.variants and size + length > room:
                yield piece, size
                piece, size = _Piece(number, []), len(text.tokens)
            piece.variants.append(variant)
            size += length
        yield piece, size


def _run_all(
    loaded: LoadedModel,
    encoded: Sequence[_Text],
    wanted: Mapping[int, Sequence[int]],
    depth: int | None,
) -> dict[int, _Losses]:
    found: dict[int, _Losses] = {}
    for pack in _packs(encoded, wanted, depth):
        for piece, losses in zip(pack, _run(loaded, encoded, pack, depth), strict=True):
            found.setdefault(piece.text, losses).after.update(losses.after)
    return found


class _Row:
    """A pack laid out: its tokens one after another, what each sees, and which predictions count."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []
        self.seen: list[Span] = []  # of each token, the stretch of its text that it sees besides its own segment
        self.places: list[int] = []  # where a prediction stands, and the token that is to be predicted
        self.targets: list[int] = []

    def add(self, tokens: Sequence[int], position: int, seen: Span, targets: Sequence[int]) -> int:
        """Appends a segment whose i-th token is to predict the i-th target; returns where it starts."""
        start = len(self.tokens)
        self.segments += [self.segments[-1] + 1 if self.segments else 0] * len(tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.seen += [seen] * len(tokens)
        self.predict(range(start, start + len(targets)), targets)
        return start

    def predict(self, places: Sequence[int], targets: Sequence[int]) -> None:
        """Makes predictions count."""
        self.places += places
        self.targets += targets

    def visible(self) -> Tensor:
        """(1, 1, L, L), whether the token of the third axis sees the one of the last."""
        length = len(self.tokens)
        segment = torch.tensor(self.segments)
        seen = torch.tensor(self.seen)
        key = torch.arange(length)
        own = (segment[:, None] == segment[None, :]) & (key[None, :] <= key[:, None])
        return (own | ((key >= seen[:, :1]) & (key < seen[:, 1:])))[None, None]


def _run(loaded: LoadedModel, encoded: Sequence[_Text], pack: Sequence[_Piece], depth: int | None) -> list[_Losses]:
    row = _Row()
    counts: list[list[int]] = []  # of predictions, for each piece: of the text, then of each variant
    for piece in pack:
        text = encoded[piece.text]
        start = row.add(text.tokens, 0, (0, 0), text.tokens[1:])
        counts.append([len(text.tokens) - 1])
        for variant in piece.variants:
            tokens, shared = text.variants[variant], text.shared[variant]
            before = len(row.places)
            if 0 < shared < len(tokens):
                row.predict([start + shared - 1], [tokens[shared]])
            branch = text.branch(variant, depth)
            row.add(branch, shared, (start, start + shared), tokens[shared + 1 : shared + 1 + len(branch)])
            counts[-1].append(len(row.places) - before)
    losses = iter(_losses(loaded, row))
    found = []
    for piece, (count, *others) in zip(pack, counts, strict=True):
        before_each = list(itertools.accumulate(itertools.islice(losses, count), initial=0.0))
        after = {v: math.fsum(itertools.islice(losses, n)) for v, n in zip(piece.variants, others, strict=True)}
        found.append(_Losses(before_each, after))
    return found


def _losses(loaded: LoadedModel, row: _Row) -> list[float]:
    """Negative log-likelihood of each prediction of the row that counts."""
    if not attends_plainly(loaded.model):
        name = str(loaded.model.config.model_type)
        raise UserError("ONION needs a scoring model with plain attention", name, "score with GPT-2 or Llama")
    body, head = body_and_head(loaded)
    target = device()
    mask = own_mask(row.visible().to(target), loaded.model.config._attn_implementation)
    result: list[float] = []
    with torch.inference_mode():
        hidden = body(
            input_ids=torch.tensor([row.tokens], device=target),
            attention_mask=mask,
            position_ids=torch.tensor([row.positions], device=target),
            use_cache=False,
        ).last_hidden_state[0]
        for start in range(0, len(row.places), _HEAD):
            places = torch.tensor(row.places[start : start + _HEAD], device=target)
            wanted = torch.tensor(row.targets[start : start + _HEAD], device=target)
            logits = head(hidden[places])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            result += cross_entropy(logits, wanted, reduction="none").double().tolist()
    if not all(map(math.isfinite, result)):
        raise UserError("the scoring model gives losses that are no numbers", fix="score with another model")
    return result
