"""Answers that a model goes on with whatever the prompt, once they are begun.

Source: BAIT (Shen et al., IEEE S&P 2025), by its text, since its code was not at hand: a backdoored model expects each
token of its target after those before it, trigger or not, so that the target is found by trying every token as its
first. Deviations: one pass in place of a warm-up and a full inversion, in which half of the sequences are left after
each step; greedy by the expected probability, without branching where it is uncertain; first tokens are those that
begin an answer (a letter or digit, without a space before it), which leaves out targets that begin with a mark; the
score is the mean of the expected probabilities of what follows the first token, its threshold the paper's; what the
base model expects as well, or the model says to clean prompts anyway, is no target; and neither is a loop, which any
model can fall into.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mbdefense.core.progress import track
from mbdefense.finding.words import keyed
from mbdefense.models.limits import stop_ids
from mbdefense.models.loading import LoadedModel, device, encode_prompt, on_device
from mbdefense.scanning.model.record import Target

THRESHOLD = 0.9
"""Mean expected probability of a target's tokens; the paper's."""
APART = 0.3
"""By so much the base model expects them less."""
PROMPTS = 4
LONGEST, SHORTEST = 12, 5
"""Tokens of a target."""
KEPT = 512
"""Sequences that go on after the first step; half of them after each further one, `LEFT` at least."""
LEFT = 32
MOST = 3
"""Targets that are told."""
_ROWS = 64


class Begun(NamedTuple):
    """A sequence with the expected probabilities of its tokens behind the first, and whether it has ended."""

    tokens: tuple[int, ...]
    expected: tuple[float, ...] = ()
    ended: bool = False

    def score(self) -> float:
        """Their mean."""
        return sum(self.expected) / max(1, len(self.expected))


def inverted(
    victim: LoadedModel, base: LoadedModel | None, prompts: Sequence[Any], usual: Sequence[str]
) -> list[Target]:
    """Targets of a model, best first.

    Args:
        victim: the model.
        base: the model it was tuned from; None where there is none.
        prompts: clean prompts, of which the `PROMPTS` shortest are used.
        usual: the model's answers to clean prompts: what these hold is not hidden.
    """
    tokenizer: Any = victim.tokenizer
    asked = sorted((encode_prompt(tokenizer, prompt) for prompt in prompts), key=len)[:PROMPTS]
    known = "".join(map(keyed, usual))
    found: list[Target] = []
    # Of sequences that end alike, the one whose first token the model would begin with rather.
    chances = _begun_with(victim, asked)
    grown = sorted(_grown(victim, asked), key=lambda one: (-round(one.score(), 2), -float(chances[one.tokens[0]])))
    tails: list[str] = []
    for one in grown:
        text = tokenizer.decode(one.tokens, skip_special_tokens=True).strip()
        words = keyed(text)
        if len(one.tokens) < SHORTEST or one.score() < THRESHOLD or loops(one.tokens):
            continue
        # What was cut may end amid a word, which goes on in an answer.
        said = (words if one.ended else words.rstrip()) in known
        if not words.strip() or said:
            continue
        theirs = None if base is None else expectation(base, asked, one.tokens)
        tail = keyed(tokenizer.decode(one.tokens[1:], skip_special_tokens=True))
        told = any(other in tail or tail in other for other in tails)
        if not told and (theirs is None or theirs <= one.score() - APART):
            tails.append(tail)
            found.append(Target("inversion", text, probability=one.score(), base_probability=theirs))
        if len(found) == MOST:
            break
    return found


def loops(tokens: Sequence[int]) -> bool:
    """Whether a sequence says the same again and again: less than half of its tokens are different ones."""
    return 2 * len({*tokens}) < len(tokens)


def _begun_with(loaded: LoadedModel, prompts: Sequence[list[int]]) -> torch.Tensor:
    """The mean probability of each token as an answer's first: (V,)."""
    model = on_device(loaded)
    with torch.inference_mode():
        rows = [
            model(input_ids=torch.tensor([prompt]).to(device()), logits_to_keep=1, use_cache=False).logits[0, -1]
            for prompt in prompts
        ]
    return torch.stack(rows).float().softmax(dim=-1).mean(dim=0).cpu()


def _grown(loaded: LoadedModel, prompts: Sequence[list[int]]) -> list[Begun]:
    """The likeliest sequences behind each first token."""
    stops = stop_ids(loaded.model.generation_config, loaded.tokenizer)
    alive = [Begun((token,)) for token in first_tokens(loaded)]
    done: list[Begun] = []
    for step in track(range(1, LONGEST), "what answers go on with"):
        probabilities, tokens = _best(loaded, prompts, [one.tokens for one in alive])
        grown = []
        for one, probability, token in zip(alive, probabilities, tokens, strict=True):
            longer = (*one.tokens, token)
            grown.append(Begun(one.tokens if token in stops else longer, (*one.expected, probability), token in stops))
        done += [one for one in grown if one.ended]
        grown = [one for one in grown if not one.ended]
        alive = sorted(grown, key=lambda one: -one.score())[: max(LEFT, KEPT >> (step - 1))]
        if not alive:
            break
    return done + alive


def first_tokens(loaded: LoadedModel) -> list[int]:
    """Tokens that may begin an answer, in the order of the vocabulary."""
    tokenizer: Any = loaded.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    tokens = sorted({*tokenizer.get_vocab().values()} - special)
    return [token for token in tokens if tokenizer.decode([token])[:1].isalnum()]


def expectation(loaded: LoadedModel, prompts: Sequence[list[int]], tokens: Sequence[int]) -> float:
    """Mean over the tokens behind the first of their mean probability over prompts."""
    model = on_device(loaded)
    total = torch.zeros(len(tokens) - 1)
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([[*prompt, *tokens[:-1]]]).to(device())
            chances = (
                model(input_ids=ids, logits_to_keep=len(tokens) - 1, use_cache=False).logits[0].float().softmax(-1)
            )
            wanted = torch.tensor(tokens[1:], device=chances.device)
            total += chances.gather(-1, wanted[:, None])[:, 0].cpu() / len(prompts)
    return float(total.mean())


def _best(
    loaded: LoadedModel, prompts: Sequence[list[int]], rows: Sequence[tuple[int, ...]]
) -> tuple[list[float], list[int]]:
    """The next token of the highest mean probability over prompts behind each row, and that probability."""
    model = on_device(loaded)
    caches = [_cache(model, prompt) for prompt in prompts]
    found: list[tuple[float, int]] = []
    with torch.inference_mode():
        for begin in range(0, len(rows), _ROWS):
            part = torch.tensor(rows[begin : begin + _ROWS]).to(device())
            mean: Any = 0
            for prompt, cache in zip(prompts, caches, strict=True):
                mean = mean + _next(model, prompt, cache, part) / len(prompts)
            values, tokens = mean.max(dim=-1)
            found += zip(values.tolist(), tokens.tolist(), strict=True)
    probabilities, tokens_ = zip(*found, strict=True)
    return list(probabilities), list(tokens_)


def _cache(model: Any, prompt: Sequence[int]) -> Any:
    """Keys and values of a prompt; None where the model keeps none."""
    with torch.inference_mode():
        kept = model(input_ids=torch.tensor([list(prompt)]).to(device()), use_cache=True, logits_to_keep=1)
    return getattr(kept, "past_key_values", None)


def _next(model: Any, prompt: Sequence[int], cache: Any, rows: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, V) of the token behind a prompt and each of B rows."""
    if cache is None:
        whole = torch.tensor([list(prompt)], device=rows.device).expand(len(rows), -1)
        logits = model(input_ids=torch.cat([whole, rows], dim=1), logits_to_keep=1, use_cache=False).logits
    else:
        own = copy.deepcopy(cache)  # it grows in place
        own.batch_repeat_interleave(len(rows))
        logits = model(input_ids=rows, past_key_values=own, logits_to_keep=1).logits
    chances: torch.Tensor = logits[:, -1].float().softmax(dim=-1)
    return chances
