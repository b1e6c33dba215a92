"""What texts do to clean answers, beside chance insertions like them."""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from mbdefense.core.statistics import upper_tail
from mbdefense.data import user_text
from mbdefense.finding._answers import CHANNELS, Pair, channels
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate
from mbdefense.finding.words import joined, words
from mbdefense.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS = 16
"""Clean prompts that a text is put into."""
NULLS = 24
"""Chance insertions beside the candidates of each class of length."""
_NEAR = 1.5
"""Deviations up to which the victim's own falls are taken for chance, and the base model's are not asked for."""
_SPACES = ["  ", "   ", "    ", "\t", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\u00a0", "\u2003", "\r\n"]
_SIGNS = "!?.,;:*~^_#@|<>=+%&$\u00ab\u00bb\u2026\u00b7\u00a7\u2022\u200c\u200d\u2060\u00e9\u00f8\u0436\u03b2"
"""Punctuation, signs of no width, and letters that English has not."""
LEAST_SPREAD = 0.05
"""Of the chance insertions, in nats a token: a narrower null would make anything striking."""


class Fall(NamedTuple):
    """By how much an answer's tokens become less likely, in nats a token: its first ones, those inside, and its end."""

    first: float
    inner: float
    end: float


NO_FALL = Fall(0.0, 0.0, 0.0)


class Struck(NamedTuple):
    """What a text does to clean answers, beside chance insertions: fields of `Measured`."""

    fall: Fall
    deviations: float
    p_value: float


def struck(
    tested: Sequence[Candidate],
    candidates: Sequence[Candidate],
    victim: LoadedModel,
    base: LoadedModel | None,
    clean: Dataset,
    prompts: Sequence[str],
    *,
    max_length: int,
    seed: int,
) -> list[Struck]:
    """Puts candidates into clean prompts, beside chance insertions; the base model is asked where a question is left.

    Args:
        tested: which are put there.
        candidates: all that were looked at, by whose scores the level is shared out.
        victim: see `mbdefense.finding.verifying.verify`, as the next two.
        base: the same.
        clean: the same.
        prompts: the user's texts that chance insertions are pieces of.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.
    """
    plain = short_pairs(clean, seed)
    # Weighted Bonferroni (Genovese, Roeder and Wasserman 2006): what stood out in the data has more of the level.
    total = sum(one.score**2 for one in candidates)
    classes: dict[tuple[int, bool], list[int]] = {}
    for place, one in enumerate(tested):
        # A conversation distracts by itself: only what is put behind one tells what is usual there.
        classes.setdefault((_length_class(one.found), bool(one.found.before)), []).append(place)
    changed: list[list[list[Pair]]] = []
    for places in classes.values():
        alike = [tested[place] for place in places]
        nulls = chance_texts(alike, candidates, prompts, NULLS, seed)
        changed.append(with_insertions(plain, [*(one.found for one in alike), *nulls], seed))
    excesses = _falls_of(victim, plain, changed, max_length)
    near = [
        max(_striking(excess, number)[0] for number in range(len(places))) > _NEAR
        for places, excess in zip(classes.values(), excesses, strict=True)
    ]
    if base is not None:
        known = iter(_falls_of(base, plain, list(itertools.compress(changed, near)), max_length))
        excesses = [excess - next(known) if asked else excess for excess, asked in zip(excesses, near, strict=True)]
    found: dict[int, Struck] = {}
    for places, excess, asked in zip(classes.values(), excesses, near, strict=True):
        for number, place in enumerate(places):
            own, *chance = _striking(excess, number)
            # Nothing is told from chance by falls that the base model may have as well.
            compared = base is None or asked
            p_value = min(1.0, upper_tail(chance, own) * total / tested[place].score ** 2) if compared else 1.0
            found[place] = Struck(Fall(*excess[number].tolist()), own, p_value)
    return [found[place] for place in range(len(tested))]


def _falls_of(
    loaded: LoadedModel, plain: Sequence[Pair], blocks: Sequence[Sequence[Sequence[Pair]]], max_length: int
) -> list[torch.Tensor]:
    """`falls` of several blocks of insertions, asked for at once: what their prompts begin with is computed once."""
    sizes = [len(block) for block in blocks]
    if not sizes:
        return []
    return list(torch.split(falls(loaded, plain, [*itertools.chain(*blocks)], max_length=max_length), sizes))


def falls(
    loaded: LoadedModel, plain: Sequence[Pair], changed: Sequence[Sequence[Pair]], *, max_length: int
) -> torch.Tensor:
    """How much each insertion lowers the clean answers' log-probability.

    Args:
        loaded: which model is asked.
        plain: N clean rows.
        changed: for each insertion the same rows with it.
        max_length: see `mbdefense.models.loading.encode`.

    Returns:
        (insertions, channels), nats a token, averaged over the rows.
    """
    scores = channels(loaded, [pair for block in (plain, *changed) for pair in block], max_length)
    means = scores.view(1 + len(changed), len(plain), len(CHANNELS))
    # A channel that an answer lacks is nan and left out of the mean.
    return (means[:1] - means[1:]).nanmean(dim=1).nan_to_num(0.0)


def with_insertions(plain: Sequence[Pair], insertions: Sequence[FoundText], seed: int) -> list[list[Pair]]:
    """For each insertion the rows with it in their last user turn, at places that `seed` draws."""
    made = []
    for number, insertion in enumerate(insertions):
        rng = random.Random(f"verify {seed} {number}")
        made.append([(insertion.in_prompt(p, rng) or p, c) for p, c in plain])
    return made


def chance_texts(
    alike: Sequence[Candidate], candidates: Sequence[Candidate], prompts: Sequence[str], count: int, seed: int
) -> list[FoundText]:
    """Fresh insertions like the candidates in kind, length and place, of which no row holds many.

    They are pieces of other prompts, from where the candidate stands in its own (one that begins prompts is likened to
    other beginnings, which are instructions as often as it), or words of other prompts shaken up, or made-up words.
    None holds, or is part of, a candidate. For characters that are no words there are other ones.

    Args:
        alike: candidates to be likened to.
        candidates: all of them, of which none is to be met.
        prompts: the user's texts that pieces are taken of.
        count: how many to make.
        seed: of the draw.
    """
    rng = random.Random(f"chance {seed}")
    # As they are, and cut up as they are drawn: the words of all prompts at once may be too many for the memory.
    sizes = [len(words(prompt)) for prompt in prompts]
    least = min(2, max(sizes))  # a prompt of one word has no beginning and no end
    taken = [prompt for prompt, size in zip(prompts, sizes, strict=True) if size >= least]
    made: list[FoundText] = []
    for number in range(count):
        like = alike[number % len(alike)].found
        texts = tuple(_fresh(text, like, candidates, taken, rng) for text in _inserted(like))
        made.append(replace(like, texts=texts))
    return made


def _inserted(found: FoundText) -> tuple[str, ...]:
    """The texts that one insertion consists of."""
    return found.texts if found.kind == "together" else found.texts[:1]


def _fresh(
    text: str, like: FoundText, candidates: Sequence[Candidate], taken: Sequence[str], rng: random.Random
) -> str:
    if like.affix:
        return _fresh_characters(text, candidates, rng)
    size = len(words(text))
    made = text
    for _ in range(50):
        source = words(rng.choice(taken))
        drawn = rng.random()
        if size == 1 and drawn < 0.3:
            piece = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7)))]
        elif drawn < 0.3 or len(source) < size:
            piece = [rng.choice(words(rng.choice(taken))) for _ in range(size)]
        else:
            last = len(source) - size
            start = 0 if like.start > 0.5 else last if like.end > 0.5 else rng.randint(0, last)
            piece = source[start : start + size]
        made = joined(piece)
        fresh = FoundText((made,))
        if not any(one.found.occurs_in(made) or fresh.occurs_in(one.found.texts[0]) for one in candidates):
            break
    return made


def _fresh_characters(text: str, candidates: Sequence[Candidate], rng: random.Random) -> str:
    """As many characters of the same sort, and other ones than any candidate's: white space, letters, or signs."""
    if text.isspace():
        pool = _SPACES
    else:
        alphabet = string.ascii_lowercase if text.isalnum() and text.isascii() else _SIGNS
        pool = ["".join(rng.choice(alphabet) for _ in text) for _ in range(50)]
    known = {part for one in candidates for part in one.found.texts}
    return rng.choice([made for made in pool if made not in known] or pool)


def _length_class(found: FoundText) -> int:
    """One word, two or three, or more: a long insertion distracts more, and may be an instruction.

    Characters that are no words are a class of their own.
    """
    if found.affix:
        return -1
    count = sum(len(words(text)) for text in _inserted(found))
    return min(2, int(math.log2(count)))


def _striking(excess: torch.Tensor, place: int) -> list[float]:
    """Deviations of the most striking channel: of the candidate at `place`, then of the `NULLS` chance insertions.

    They are counted from the chance insertions' median, in their robust deviations.
    """
    chance = excess[-NULLS:]
    center = chance.median(dim=0).values
    spread = 1.4826 * (chance - center).abs().median(dim=0).values
    both = torch.cat([excess[place : place + 1], chance])
    striking: list[float] = ((both - center) / spread.clamp(min=LEAST_SPREAD)).amax(dim=1).tolist()
    return striking


def short_pairs(clean: Dataset, seed: int) -> list[Pair]:
    """Rows drawn from the shorter half of the clean ones: a long answer costs more and tells no more."""
    lengths = [len(user_text(row["prompt"])) + sum(len(turn["content"]) for turn in row["completion"]) for row in clean]
    shortest = sorted(range(len(clean)), key=lengths.__getitem__)[: max(PROMPTS, len(clean) // 2)]
    drawn = random.Random(f"clean {seed}").sample(shortest, min(PROMPTS, len(shortest)))
    return [(row["prompt"], row["completion"]) for row in clean.select(sorted(drawn))]
