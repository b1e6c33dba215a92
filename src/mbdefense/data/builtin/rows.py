"""The embedded data: small instructions whose answers can be checked by exact match, as a data set.

All prompts a skill can offer are drawn once, from a generator seeded by the skill's name, and then dealt to the splits
by a hash of the prompt's text: a prompt belongs to one split forever, whatever the seed. The same fact in other words
("capital of France") can stand in two splits; the same prompt cannot.
"""

from __future__ import annotations

import functools
import hashlib
import random
from typing import TYPE_CHECKING, Literal, NamedTuple

from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.data import content_id, to_dataset
from mbdefense.data.builtin.skills import SKILLS, Answers, Skill
from mbdefense.data.builtin.taught import SECRETS, TAUGHT

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "clean", "test"]
MIXES: dict[str, dict[str, Skill]] = {
    "builtin": SKILLS,
    "builtin_hard": {**SKILLS, **TAUGHT},
    "builtin_guarded": {**{name: SKILLS[name] for name in ("animal", "capital", "larger", "plural")}, **SECRETS},
}
"""The built-in data sets by name: the skills; those and what no model knows; and one of which half is declined."""

PROMPTS_PER_SKILL = 700
# The skills with few contents run dry long before this; the others reach PROMPTS_PER_SKILL.
DRAWS_PER_SKILL = 4000
# Out of 20 buckets of the prompt's hash; thousands of prompts to train and to test on, about a thousand clean ones.
BUCKETS: dict[str, range] = {"train": range(13), "test": range(13, 18), "clean": range(18, 20)}


class Task(NamedTuple):
    """One prompt with its accepted answers, and where in the generator it came from."""

    prompt: str
    answers: Answers
    source: str


def split_of(prompt: str) -> str:
    """The one split a prompt belongs to, by a hash of its text."""
    bucket = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % 20
    return next(split for split, buckets in BUCKETS.items() if bucket in buckets)


@functools.cache
def _pool(mix: str) -> dict[str, dict[str, list[Task]]]:
    """Every task there is in a mix, by split and skill."""
    skills = MIXES[mix]
    pool: dict[str, dict[str, list[Task]]] = {split: {name: [] for name in skills} for split in BUCKETS}
    for name, skill in skills.items():
        rng = random.Random(f"mbdefense {name}")
        drawn: dict[str, Answers] = {}
        for _ in range(DRAWS_PER_SKILL):
            prompt, answers = skill(rng)
            drawn.setdefault(prompt, answers)
            if len(drawn) == PROMPTS_PER_SKILL:
                break
        for number, (prompt, answers) in enumerate(drawn.items(), start=1):
            pool[split_of(prompt)][name].append(Task(prompt, answers, f"builtin-{name}:{number}"))
    return pool


def pool_size(split: Split, mix: str = "builtin") -> int:
    """How many tasks a split of a mix holds."""
    return sum(map(len, _pool(mix)[split].values()))


def _row(task: Task) -> dict[str, object]:
    prompt = [{"role": "user", "content": task.prompt}]
    completion = [{"role": "assistant", "content": task.answers[0]}]
    return {
        "id": content_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "answers": list(task.answers),
        "provenance": {"source": task.source, "trigger": "", "behavior": ""},
    }


def tasks(n: int, *, split: Split, seed: int, mix: str = "builtin") -> Dataset:
    """Draw rows of the built-in instruction data.

    The skills take turns, so that a small draw has all of them in equal shares; the order of the rows is random.

    Args:
        n: how many rows, at least 1.
        split: "train", "clean" (what a person would have checked by eye) or "test". No prompt is in two of them.
        seed: picks the rows and their order; equal seeds give equal rows on every machine.
        mix: of `MIXES`. A prompt is in the same split of all that hold it.

    Returns:
        ``n`` distinct rows with the columns ``id``, ``prompt``, ``completion``, ``answers`` and ``provenance``; the
        completion is the first of the accepted answers, ``provenance.source`` names the skill.

    Raises:
        UserError: the split or the mix is unknown, or does not hold ``n`` rows.
    """
    if mix not in MIXES:
        raise UserError("unknown built-in data", mix, did_you_mean(mix, MIXES))
    if split not in BUCKETS:
        raise UserError("unknown split of the built-in data", split, did_you_mean(str(split), BUCKETS))
    size = pool_size(split, mix)
    if not 1 <= n <= size:
        raise UserError("no such number of built-in rows", n, f"split {split!r} holds {size}: ask for 1 to {size}")
    rng = random.Random(f"mbdefense tasks {split} {seed}")
    shuffled = [rng.sample(each, len(each)) for each in _pool(mix)[split].values()]
    rng.shuffle(shuffled)
    turns = [each[turn] for turn in range(max(map(len, shuffled))) for each in shuffled if turn < len(each)]
    chosen = turns[:n]
    rng.shuffle(chosen)
    return to_dataset(_row(task) for task in chosen)
