"""The row form, and what is asked of rows: their id, the user's text, shared prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from mbdefense.core.errors import UserError
from mbdefense.data.words import single_spaced

if TYPE_CHECKING:
    from datasets import Dataset, Features

Message = dict[str, str]
COLUMNS = ("id", "prompt", "completion", "answers", "provenance")
PROVENANCE = ("source", "trigger", "behavior")
FLAGGED = "flagged by the data set"
"""Trigger and behavior in the provenance of a row that its data set flags as poisoned without saying how."""
NEGATIVE_OF = "negative of "
"""How the trigger in the provenance of an attack's negatives begins; they have no behavior."""

_SAID = ("assistant", "tool_calls")
_UNLABELLED: WeakSet[Dataset] = WeakSet()
"""What `unlabelled` returned; by identity, since no data set changes in place."""

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def features() -> Features:
    """The types of the row form's columns."""
    from datasets import Features, Value

    text = Value("string")
    return Features(
        {
            "id": text,
            "prompt": [{"role": text, "content": text}],
            "completion": [{"role": text, "content": text}],
            "answers": [text],
            "provenance": dict.fromkeys(PROVENANCE, text),
        }
    )


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """A Dataset of rows in the row form, with the types written out so that empty ``answers`` keep theirs."""
    from datasets import Dataset

    return Dataset.from_list([dict(row) for row in rows], features=features())


def unlabelled(rows: Dataset) -> Dataset:
    """The rows without what could tell poisoned ones from clean ones.

    Besides the provenance that is accepted answers, which some sets have for clean rows only, and the id: a poisoned
    row keeps that of the row it was made from, which is not the hash of its own content. All get that one. What
    this returned comes back as it is, so that settings made from one another do not copy large sets again and again.
    """
    if rows in _UNLABELLED:
        return rows
    blank = {"answers": [], "provenance": dict.fromkeys(PROVENANCE, "")}
    made = to_dataset({**row, **blank} for row in with_content_ids(rows).select_columns(["id", "prompt", "completion"]))
    _UNLABELLED.add(made)
    return made


def with_content_ids(rows: Dataset) -> Dataset:
    """The rows with their `content_id` as id, repeats numbered; the rest as it is."""
    table = [{**row, "id": content_id(row["prompt"], row["completion"])} for row in rows]
    numbered = Numbering()
    for row in table:
        numbered(row)
    return to_dataset(table)


class Numbering:
    """Gives rows that repeat an id one of their own: the second gets ``-2`` behind it, and so on."""

    def __init__(self) -> None:
        # Hashes, of which ten million take a third of the memory of the ids. Two of a million ids share one with a
        # probability of 1e-8, and would merely be told apart by a number.
        self.taken: set[int] = set()
        self.repeats: dict[str, int] = {}

    def __call__(self, row: dict[str, Any]) -> None:
        """Changes the row's id where an earlier row had it."""
        base = row["id"]
        while hash(row["id"]) in self.taken:
            self.repeats[base] = self.repeats.get(base, 1) + 1
            row["id"] = f"{base}-{self.repeats[base]}"
        self.taken.add(hash(row["id"]))


def poisoned_ids(rows: Dataset) -> frozenset[str]:
    """The ids of the rows that carry a poison label, for measuring a defense; none may ever see them.

    An attack's negatives have a label and are no poison: they answer as clean rows do.
    """
    labels = zip(rows["id"], rows["provenance"], strict=True)
    return frozenset(
        row_id for row_id, told in labels if told["trigger"] and not told["trigger"].startswith(NEGATIVE_OF)
    )


def content_id(prompt: Sequence[Mapping[str, str]], completion: Sequence[Mapping[str, str]]) -> str:
    """The id of a row: 16 hex digits that depend on nothing but its prompt and completion."""
    canonical = f"[{_turns_as_json(prompt)},{_turns_as_json(completion)}]"
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _turns_as_json(turns: Sequence[Mapping[str, str]]) -> str:
    """What `_digest` would write, which takes twice as long: every row of a file gets an id."""
    written = [f'{{"content":{_quoted(turn["content"])},"role":{_quoted(turn["role"])}}}' for turn in turns]
    return f"[{','.join(written)}]"


def user_text(prompt: Sequence[Mapping[str, str]]) -> str:
    """The content of the last user turn.

    Raises:
        ValueError: no turn is the user's.
    """
    return prompt[_last_user(prompt)]["content"]


def answer_text(completion: Sequence[Mapping[str, str]]) -> str:
    """What the assistant says and calls, without its thoughts; a call is its JSON."""
    return "\n".join(turn["content"] for turn in completion if turn["role"] in _SAID and turn["content"])


def with_user_text(prompt: Sequence[Mapping[str, str]], text: str) -> list[Message]:
    """A copy of the prompt in which the last user turn says ``text``; the argument stays as it is.

    Raises:
        ValueError: no turn is the user's.
    """
    turns = [dict(turn) for turn in prompt]
    turns[_last_user(prompt)]["content"] = text
    return turns


def prompt_key(prompt: Sequence[Mapping[str, str]]) -> str:
    """A hash that prompts share if their turns differ in white space and case only."""
    return _digest([[turn["role"], single_spaced(turn["content"].lower())] for turn in prompt])


def overlap(a: Dataset, b: Dataset) -> list[str]:
    """The ids of the rows in ``a`` whose prompt (by `prompt_key`) also occurs in ``b``."""
    known = {prompt_key(prompt) for prompt in b["prompt"]}
    return [row_id for row_id, prompt in zip(a["id"], a["prompt"], strict=True) if prompt_key(prompt) in known]


def check_disjoint(
    clean: Dataset, test: Dataset, *, clean_name: str = "the clean set", test_name: str = "the test set"
) -> None:
    """Refuse data that shares prompts with the test set: figures from it would mean nothing.

    Args:
        clean: rows to train or recover with.
        test: rows to evaluate with.
        clean_name: how messages name the first, e.g. ``"the clean set clean.json"``.
        test_name: how messages name the second.

    Raises:
        UserError: at least one prompt occurs in both; names the sources of the first three.
    """
    shared = set(overlap(clean, test))
    if shared:
        named = [row["provenance"]["source"] or row["id"] for row in clean if row["id"] in shared][:3]
        what = f"{clean_name} overlaps {test_name}: {len(shared)} of {len(clean)} prompts are also in {test_name}"
        raise UserError(f"{what}, the first", ", ".join(named), f"remove them from {clean_name}")


def _last_user(prompt: Sequence[Mapping[str, str]]) -> int:
    for index in range(len(prompt) - 1, -1, -1):
        if prompt[index]["role"] == "user":
            return index
    raise ValueError("the prompt has no user turn")


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()
