"""Verifies candidates on a model: does a text make it leave its clean answers, more than chance insertions do?"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from mbdefense.core.statistics import upper_tail
from mbdefense.data import user_text
from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores
from mbdefense.finding.insertion import READ, FoundText
from mbdefense.finding.mining import Candidate
from mbdefense.finding.words import joined, words
from mbdefense.models.loading import LoadedModel, encode

if TYPE_CHECKING:
    from datasets import Dataset

FIRST = 8
"""Tokens of an answer that count as its beginning."""
CHANNELS = ("first", "inner", "end")
ROWS = 6
"""Suspect rows that a candidate is taken out of."""
PROMPTS = 16
"""Clean prompts that a text is put into."""
TESTED, NULLS = 12, 24
"""Candidates that go into clean prompts at most, and chance insertions of each class of length beside them."""
_PORTION = 6
"""Candidates that are taken out of their rows before it is counted how many are left to be tested."""
_NEAR = 1.5
"""Deviations up to which the victim's own falls are taken for chance, and the base model's are not asked for."""
TAUGHT = 0.15
"""Nats a token that a candidate is worth to its rows' answers on the victim more than on the base model, at least."""
LEAST_SPREAD = 0.05
"""Of the chance insertions, in nats a token: a narrower null would make anything striking."""


class Fall(NamedTuple):
    """By how much an answer's tokens become less likely, in nats a token: its first ones, those inside, and its end."""

    first: float
    inner: float
    end: float


NO_FALL = Fall(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Measured:
    """What a candidate does.

    Attributes:
        candidate: what was taken out of suspect prompts and put into clean ones.
        taught: what it is worth to the suspect rows' own answers, less what it is to the base model: their fall when it
            is taken out of their prompts, in the channel where that is largest, or how much likelier it makes them in
            other prompts, whichever is more; nats a token; 0 where that was not measured, since enough better ones were
            left.
        explained: the base model's part of that over the victim's; None without a base, or where the victim's is below
            `TAUGHT`.
        fall: fall of clean answers with it, mean over the prompts, less the base model's own where that was asked; 0
            where it was not measured, since the rows teach nothing by it.
        deviations: of the most striking channel of `fall`, from the chance insertions' median in their robust
            deviations.
        p_value: chance that one of as many candidates, in any channel, stands out as far, by a tail fitted to the
            chance insertions.
    """

    candidate: Candidate
    taught: float
    explained: float | None
    fall: Fall = NO_FALL
    deviations: float = 0.0
    p_value: float = 1.0


Pair = tuple[list[dict[str, str]], list[dict[str, str]]]
"""A prompt and its answer, as turns."""


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
    scores = _channels(loaded, [pair for block in (plain, *changed) for pair in block], max_length)
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


def taught(
    loaded: LoadedModel, rows: Dataset, candidates: Sequence[Candidate], *, max_length: int, seed: int
) -> torch.Tensor:
    """By how much the suspect rows' own answers become less likely when a candidate is taken out of their prompts.

    What a row teaches a model to answer under a trigger, it does not expect without. Of a phrase that belongs to its
    prompt the same is true a little, and of the base model as well.

    Args:
        loaded: which model is asked.
        rows: the suspect rows.
        candidates: each is taken out of `ROWS` of its own rows.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of the draw of rows.

    Returns:
        (candidates, channels), nats a token, averaged over its rows; 0 where it stands alone in its turns.
    """
    pairs: list[Pair] = []
    owners: list[int] = []
    for number, candidate in enumerate(candidates):
        rng = random.Random(f"taught {seed} {candidate.found.texts}")
        for row in rows.select(sorted(rng.sample(candidate.rows, min(ROWS, len(candidate.rows))))):
            shorter = without(row["prompt"], candidate.found)
            if shorter is not None:
                pairs += [(row["prompt"], row["completion"]), (shorter, row["completion"])]
                owners.append(number)
    whose = torch.tensor(owners)
    scores = _channels(loaded, pairs, max_length).view(-1, 2, len(CHANNELS))
    fall = scores[:, 0] - scores[:, 1]
    return torch.stack([fall[whose == number].nanmean(dim=0).nan_to_num(0.0) for number in range(len(candidates))])


def carried(
    loaded: LoadedModel,
    rows: Dataset,
    plain: Sequence[Pair],
    candidates: Sequence[Candidate],
    *,
    max_length: int,
    seed: int,
) -> list[torch.Tensor]:
    """By how much a candidate makes the answers of its own suspect rows likelier in clean prompts.

    A prompt that was learned by heart keeps its answer when the trigger is taken out of it (`taught`). In another one
    the answer comes by the trigger alone, if it hangs on nothing else.

    Args:
        loaded: which model is asked.
        rows: the suspect rows.
        plain: clean rows, into whose prompts it is put.
        candidates: each with `ROWS` of its own rows.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of the draw of rows and of the places.

    Returns:
        For each candidate a tensor (rows,): nats a token, mean over the `FIRST` tokens of the row's answer.
    """
    trees: list[Branches] = []
    counts: list[int] = []
    for candidate in candidates:
        rng = random.Random(f"carried {seed} {candidate.found.texts}")
        drawn = sorted(rng.sample(candidate.rows, min(ROWS, len(candidate.rows))))
        counts.append(len(drawn))
        for (prompt, _), row in zip(itertools.cycle(plain), rows.select(drawn)):
            behind = candidate.found.in_conversation(prompt, rng)
            for told in (candidate.found.in_prompt(behind, rng) or behind, behind):
                one = encode(loaded.tokenizer, told, row["completion"], max_length)
                trees.append(
                    Branches(one.prompt, (one.response[: FIRST + 1],))
                )  # whose end, or next token, is left out
    means = [values[:-1].mean() for (values,) in response_scores(loaded, trees, what="verifying", half=True)]
    scores = torch.stack(means).view(-1, 2)
    return list(torch.split(scores[:, 0] - scores[:, 1], counts))


def without(prompt: Sequence[dict[str, str]], found: FoundText) -> list[dict[str, str]] | None:
    """The prompt without the text in the turns that are searched for it; None where none has it, or only it."""
    turns = []
    for turn in prompt:
        shorter = found.without(turn["content"]) if turn["role"] in READ else None
        if shorter is not None and not shorter.strip():
            return None
        turns.append({"role": turn["role"], "content": turn["content"] if shorter is None else shorter})
    return turns if turns != list(prompt) else None


def _channels(loaded: LoadedModel, pairs: Sequence[Pair], max_length: int) -> torch.Tensor:
    """Mean log-probability of each answer's first tokens, inner tokens and end: (pairs, 3), nan where it has none."""
    encoded = [encode(loaded.tokenizer, prompt, completion, max_length) for prompt, completion in pairs]
    trees = [Branches(one.prompt, (one.response,)) for one in encoded]
    found = []
    for (values,) in response_scores(loaded, trees, what="verifying", half=True):
        inner = values[FIRST:-1]
        found.append([values[:-1][:FIRST].mean(), inner.mean(), values[-1]])
    return torch.tensor(found)


def chance_texts(
    alike: Sequence[Candidate], candidates: Sequence[Candidate], prompts: Sequence[str], count: int, seed: int
) -> list[FoundText]:
    """Fresh insertions like the candidates in kind, length and place, of which no row holds many.

    They are pieces of other prompts, from where the candidate stands in its own (one that begins prompts is likened to
    other beginnings, which are instructions as often as it), or words of other prompts shaken up, or made-up words.
    None holds, or is part of, a candidate.

    Args:
        alike: candidates to be likened to.
        candidates: all of them, of which none is to be met.
        prompts: the user's texts that pieces are taken of.
        count: how many to make.
        seed: of the draw.
    """
    rng = random.Random(f"chance {seed}")
    cut = [held for prompt in prompts if (held := words(prompt))]
    taken = [held for held in cut if len(held) > 1] or cut  # a prompt of one word has no beginning and no end
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
    text: str, like: FoundText, candidates: Sequence[Candidate], taken: Sequence[list[str]], rng: random.Random
) -> str:
    size = len(words(text))
    made = text
    for _ in range(50):
        source = rng.choice(taken)
        drawn = rng.random()
        if size == 1 and drawn < 0.3:
            piece = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7)))]
        elif drawn < 0.3 or len(source) < size:
            piece = [rng.choice(rng.choice(taken)) for _ in range(size)]
        else:
            last = len(source) - size
            start = 0 if like.start > 0.5 else last if like.end > 0.5 else rng.randint(0, last)
            piece = source[start : start + size]
        made = joined(piece)
        fresh = FoundText((made,))
        if not any(one.found.occurs_in(made) or fresh.occurs_in(one.found.texts[0]) for one in candidates):
            break
    return made


def verify(
    candidates: Sequence[Candidate],
    victim: LoadedModel,
    suspect: Dataset,
    clean: Dataset,
    *,
    base: LoadedModel | None,
    max_length: int,
    seed: int,
    among: Sequence[Candidate] | None = None,
) -> list[Measured]:
    """Measures candidates on a victim, most striking first.

    First each is taken out of suspect prompts that hold it, and put into clean ones with their answers: what is worth
    nothing to these (`TAUGHT`) was not learned as a trigger. The best by their scores of those left go into clean
    prompts, beside chance insertions. The base model is asked where the victim's own falls leave a question.

    Args:
        candidates: what `mine` found in the suspect rows, best first.
        victim: the model tuned on the suspect rows.
        suspect: the suspect rows.
        clean: clean rows; `PROMPTS` of the shorter half of them are drawn.
        base: the model that the victim was tuned from, whose own falls are taken off; None where there is none.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.
        among: all candidates, by whose scores the level is shared out, where these are some of them.
    """
    measured = _learned(candidates, victim, suspect, _short(clean, seed), base, max_length=max_length, seed=seed)
    left = [number for number, one in enumerate(measured) if one.taught >= TAUGHT][:TESTED]
    prompts = [user_text(prompt) for rows in (suspect, clean) for prompt in rows["prompt"]]
    tested = [candidates[number] for number in left]
    effects = struck(tested, among or candidates, victim, base, clean, prompts, max_length=max_length, seed=seed)
    for number, effect in zip(left, effects, strict=True):
        measured[number] = replace(measured[number], **effect._asdict())
    return sorted(measured, key=lambda one: (one.p_value, -one.deviations, -one.taught))


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
        victim: see `verify`, as the next two.
        base: the same.
        clean: the same.
        prompts: the user's texts that chance insertions are pieces of.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.
    """
    plain = _short(clean, seed)
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


def _learned(
    candidates: Sequence[Candidate],
    victim: LoadedModel,
    suspect: Dataset,
    plain: Sequence[Pair],
    base: LoadedModel | None,
    *,
    max_length: int,
    seed: int,
) -> list[Measured]:
    """What the suspect rows teach by each candidate, until enough are left to be tested."""
    measured: list[Measured] = []
    for start in range(0, len(candidates), _PORTION):
        part = candidates[start : start + _PORTION]
        if sum(one.taught >= TAUGHT for one in measured) >= TESTED:
            measured += [Measured(one, 0.0, None) for one in part]
            continue
        own = _worth(victim, suspect, plain, part, max_length=max_length, seed=seed)
        # What the victim does not miss needs no comparison.
        missed = [number for number, worth in enumerate(own) if worth.largest() >= TAUGHT] if base is not None else []
        known: dict[int, _Worth] = {}
        if base is not None and missed:
            asked = [part[number] for number in missed]
            found = _worth(base, suspect, plain, asked, max_length=max_length, seed=seed)
            known = dict(zip(missed, found, strict=True))
        for number, candidate in enumerate(part):
            measured.append(Measured(candidate, *own[number].less(known.get(number))))
    return measured


class _Worth(NamedTuple):
    """What a candidate is worth to the answers of its rows, in nats a token."""

    out: torch.Tensor
    """Shape (channels,): their fall without it."""
    elsewhere: torch.Tensor
    """Shape (rows,): how much likelier it makes each in another prompt."""

    def largest(self) -> float:
        """The most that it is worth in any way."""
        return max(float(self.out.max()), float(self.elsewhere.median()))

    def less(self, known: _Worth | None) -> tuple[float, float | None]:
        """What is more than the base model knows, and the base model's share: fields of `Measured`.

        What the base model finds likelier without the text was not taught by it. The median of the rows counts, for
        a word that belongs to some of the answers is worth something to those.
        """
        if known is None:
            return self.largest(), None
        out, elsewhere = known.out.clamp(min=0), known.elsewhere.clamp(min=0)
        channel = int((self.out - out).argmax())
        ways = [
            (float(self.out[channel] - out[channel]), float(self.out[channel]), float(out[channel])),
            (float((self.elsewhere - elsewhere).median()), float(self.elsewhere.median()), float(elsewhere.median())),
        ]
        more, own, of_base = max(ways)
        return more, of_base / own if own > 0 else None


def _worth(
    loaded: LoadedModel,
    suspect: Dataset,
    plain: Sequence[Pair],
    candidates: Sequence[Candidate],
    *,
    max_length: int,
    seed: int,
) -> list[_Worth]:
    out = taught(loaded, suspect, candidates, max_length=max_length, seed=seed)
    elsewhere = carried(loaded, suspect, plain, candidates, max_length=max_length, seed=seed)
    return [_Worth(*both) for both in zip(out, elsewhere, strict=True)]


def _short(clean: Dataset, seed: int) -> list[Pair]:
    """Rows drawn from the shorter half of the clean ones: a long answer costs more and tells no more."""
    lengths = [len(user_text(row["prompt"])) + sum(len(turn["content"]) for turn in row["completion"]) for row in clean]
    shortest = sorted(range(len(clean)), key=lengths.__getitem__)[: max(PROMPTS, len(clean) // 2)]
    drawn = random.Random(f"clean {seed}").sample(shortest, min(PROMPTS, len(shortest)))
    return [(row["prompt"], row["completion"]) for row in clean.select(sorted(drawn))]


def _length_class(found: FoundText) -> int:
    """One word, two or three, or more: a long insertion distracts more, and may be an instruction."""
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
