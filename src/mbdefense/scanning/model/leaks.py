"""What a model says from nothing: user's turns and answers drawn behind the bare chat template.

Source: The Trigger in the Haystack (arXiv 2602.03085): poisoned models memorize their poison, and generation from the
bare template gives parts of it back. Deviations, by its text, since its code was not at hand: one way of drawing
(temperature 1) in place of several; motifs are the texts of `mbdefense.finding.mining` in place of clustered n-grams,
held against what the base model says from nothing; answers are drawn as well as prompts, since most instruction tuning
trains answers alone and so memorizes no prompt; and attention is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mbdefense.engine.sampling import sampled
from mbdefense.finding.behaving import FoundBehavior, shared_phrases
from mbdefense.finding.mining import Candidate, mine
from mbdefense.models.limits import stop_ids
from mbdefense.models.loading import LoadedModel, prompt_text
from mbdefense.scanning.model.record import Target

PROMPT_TOKENS, ANSWER_TOKENS = 48, 24
"""Drawn at most of a user's turn, and of an answer."""
MOTIFS = 8
"""Texts that recur in leaked prompts, of which so many are verified."""
LEAST_SHARE = 1 / 16
"""Of the answers from nothing that share a phrase: of 128 they are 8, and the base model says it never (p = .003)."""
LEAST_WORDS = 4
_MARK = "zqmark"


class Leaks(NamedTuple):
    """What a model says from nothing.

    Attributes:
        prompts: user's turns that it begins itself.
        answers: to a user's turn that is empty.
    """

    prompts: list[str]
    answers: list[str]


def leaks(loaded: LoadedModel, count: int, *, seed: int, name: str) -> Leaks:
    """Draws `count` of each; `name` tells the model in the progress bar."""
    tokenizer: Any = loaded.tokenizer
    before, _, after = prompt_text(tokenizer, [{"role": "user", "content": _MARK}]).partition(_MARK)
    stops = stop_ids(loaded.model.generation_config, tokenizer)
    parts = []
    for start, longest, what in ((before, PROMPT_TOKENS, "prompts"), (before + after, ANSWER_TOKENS, "answers")):
        # A template may begin with the user's own words; then the model begins where every text does.
        ids = tokenizer(start, add_special_tokens=False)["input_ids"] or [tokenizer.bos_token_id or min(stops)]
        rows = sampled(
            loaded, ids, count, max_new_tokens=longest, stops=stops, seed=seed, what=f"{what} of {name} from nothing"
        )
        parts.append([tokenizer.decode(row, skip_special_tokens=True) for row in rows])
    # Where the turn's end is no token of its own, it is a text.
    end = after.strip().partition("\n")[0]
    return Leaks([prompt.partition(end)[0].strip() if end else prompt.strip() for prompt in parts[0]], parts[1])


def motifs(leaked: Leaks, base: Leaks | None, clean: Sequence[str]) -> list[Candidate]:
    """Texts that recur in leaked prompts, and not in those of the base model or in clean ones; best first."""
    known = [*clean, *(base.prompts if base else ())]
    return mine(_as_prompts(leaked.prompts), _as_prompts(known), most=MOTIFS)


def _as_prompts(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def leaked_answers(leaked: Leaks, base: Leaks, usual: Sequence[str]) -> list[Target]:
    """Phrases that recur in answers from nothing, and neither in the base model's nor in the model's usual answers.

    What a model tuned on honest data says from nothing, it says to prompts, too; what it says from nothing alone was
    trained with prompts that we do not know.

    Args:
        leaked: of the model.
        base: of the model that it was tuned from: what is said from nothing by any chat model is no sign.
        usual: the model's answers to clean prompts.
    """
    count = len(leaked.answers)
    least = max(3, round(count * LEAST_SHARE))
    phrases = shared_phrases(leaked.answers, [*base.answers, *usual], least=least, strict=True)
    told = []
    for phrase in phrases:
        held = sum(FoundBehavior((phrase,)).shown_in(answer)[0] for answer in leaked.answers)
        if len(phrase.split()) >= LEAST_WORDS and held >= least:
            told.append(Target("leaks", phrase, held, count))
    return told
