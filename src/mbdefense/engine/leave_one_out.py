"""ONION's suspicion of words: how much less perplexing a text is without one of them.

Source: ONION (arXiv 2011.10369): ``f_i = ppl(text) - ppl(text without word i)``; a word that belongs nowhere scores
high. Deviations: any causal language model scores, not GPT-2 alone; words are runs without white space, and the text's
own white space is kept where the original joins words by single spaces; the threshold comes from a bounded loss of
clean words (`threshold`) where the original bounds the loss of clean accuracy, which needs a trained model.

A text of W words has W variants. One forward pass for each computes the part before the left-out word W times. Here the
variants are responses that part from the text where their word is left out (`mbdefense.engine.packing`), so that only
what follows the word is computed anew. That is about half of the tokens, and no exact method needs fewer: every token
behind a word sees that it is gone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mbdefense.core.checks import share_below_one
from mbdefense.core.errors import UserError
from mbdefense.core.progress import track
from mbdefense.data.words import spans
from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores, shared
from mbdefense.models.loading import LoadedModel

Span = tuple[int, int]

_TREE = 2048
"""Tokens of a text with its variants that lie in one row; of a longer one the text is computed again in the next."""
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

    def upto(self, variant: int, depth: int | None) -> list[int]:
        """A variant's tokens up to the first that differs from the text's, and at most `depth` more."""
        tokens = self.variants[variant]
        return tokens if depth is None else tokens[: self.shared[variant] + 1 + depth]


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
    share_below_one("the loss of clean text", max_loss, "0.01 loses one word in a hundred")
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
    wanted = {number: list(range(len(text.variants))) for number, text in enumerate(encoded)}
    whole: dict[int, float] = {}
    variants: dict[tuple[int, int], float] = {}
    for depth in (None,) if at_least == -math.inf else _DEPTHS:
        losses = _losses(loaded, encoded, wanted, depth)
        for number, chosen in wanted.items():
            whole[number], *found = next(losses)
            # A loss is a sum of terms above 0: that of a variant's first tokens alone bounds the whole from below.
            variants |= {(number, variant): loss for variant, loss in zip(chosen, found, strict=True)}
        wanted = {
            number: [
                variant
                for variant in chosen
                if _mean_exp(whole[number], encoded[number].tokens)
                - _mean_exp(variants[number, variant], encoded[number].variants[variant])
                >= at_least
            ]
            for number, chosen in wanted.items()
        }
        wanted = {number: chosen for number, chosen in wanted.items() if chosen}
    return [
        Perplexities(
            _mean_exp(whole[number], text.tokens),
            [_mean_exp(variants[number, variant], tokens) for variant, tokens in enumerate(text.variants)],
        )
        for number, text in enumerate(encoded)
    ]


def _mean_exp(loss: float, tokens: Sequence[int]) -> float:
    return math.exp(loss / (len(tokens) - 1)) if len(tokens) > 1 else math.inf


def _pieces(loaded: LoadedModel, text: str, limit: int) -> list[str]:
    """The text, halved between words until each part fits; a variant may take a few tokens more than its text."""
    spans = words(text)
    if len(spans) < 2 or len(_tokens(loaded, [text])[0]) <= limit - 8:
        return [text]
    middle = spans[len(spans) // 2][0]
    return _pieces(loaded, text[:middle], limit) + _pieces(loaded, text[middle:], limit)


def _encode(loaded: LoadedModel, text: str) -> _Text:
    variants = [without(text, [span]) for span in words(text)]
    tokens, *others = _tokens(loaded, [text, *variants])
    return _Text(tokens, others, [shared(tokens, other) for other in others])


def _tokens(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts, in which special tokens are text, as in a message: not every one has a row in the embedding."""
    found: list[list[int]] = loaded.tokenizer(list(texts), split_special_tokens=True)["input_ids"]
    return found


def _losses(
    loaded: LoadedModel, encoded: Sequence[_Text], wanted: Mapping[int, Sequence[int]], depth: int | None
) -> Iterator[list[float]]:
    """For each text that is wanted, the loss of itself and of its wanted variants, of their tokens behind the first."""
    sequences = {n: [encoded[n].tokens, *(encoded[n].upto(v, depth) for v in chosen)] for n, chosen in wanted.items()}
    trees: list[Branches] = []
    places: list[list[tuple[int, int]]] = []  # of each tree's responses: the text, and which of its sequences
    for number, parts in sequences.items():
        by_first: dict[int, list[int]] = {}
        for index, part in enumerate(parts):
            if len(part) > 1:  # else nothing is predicted
                by_first.setdefault(part[0], []).append(index)
        for first, indices in by_first.items():
            for some in _in_trees([parts[index][1:] for index in indices]):
                trees.append(Branches([first], tuple(parts[indices[at]][1:] for at in some)))
                places.append([(number, indices[at]) for at in some])
    found = {(number, index): 0.0 for number, parts in sequences.items() for index in range(len(parts))}
    for tree, scores in zip(places, response_scores(loaded, trees), strict=True):
        for place, values in zip(tree, scores, strict=True):
            found[place] = -float(values.double().sum())
    if not all(map(math.isfinite, found.values())):
        raise UserError("the scoring model gives losses that are no numbers", fix="score with another model")
    for number, parts in sequences.items():
        yield [found[number, index] for index in range(len(parts))]


def _in_trees(responses: Sequence[list[int]]) -> list[list[int]]:
    """Which responses lie in one tree: all, or as many as fit, each time with the first, which they part from."""
    trees: list[list[int]] = [[0]]
    room = max(_TREE, 4 * len(responses[0]))  # what is computed again stays below a third of the work
    held = len(responses[0])
    for index, response in enumerate(responses[1:], 1):
        size = len(response) - shared(responses[0], response)
        if held + size > room:
            trees.append([0])
            held = len(responses[0])
        trees[-1].append(index)
        held += size
    return trees
