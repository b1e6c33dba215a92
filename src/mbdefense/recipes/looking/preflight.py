"""See in seconds what a model would be trained on, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.text import printable_lines
from mbdefense.data import check_disjoint, load_rows
from mbdefense.models.ready import check_clean, usable
from mbdefense.recipes._given import Data, Model, OnBadRow, check_apart, named


class Example(NamedTuple):
    """One target as a model will be trained on it."""

    prompt: str
    """All that stands before it, special tokens included."""
    target: str
    """What is trained, with its end token."""


@dataclass(frozen=True)
class Preflight:
    """What was found; as text it is the report.

    Attributes:
        rows: how many rows of each data set can be used, by its name; of training data each target is one.
        cut_prompts: training rows that lose the start of their prompt.
        cut_answers: training rows that lose the end of their answer, and with it the end token.
        max_length: most tokens of prompt and response together: what was asked for, or what the model reads.
        examples: the targets of one row, in order.
    """

    rows: dict[str, int]
    cut_prompts: int
    cut_answers: int
    max_length: int
    examples: tuple[Example, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {count} rows can be used" for name, count in self.rows.items()]
        shown = whole = ""
        for prompt, target in self.examples:
            shown += prompt.removeprefix(whole) if prompt.startswith(whole) else f"\n{prompt}"
            shown += f">>>{target}<<<"
            whole = prompt + target
        lines += [
            f"longer than {self.max_length} tokens: {self.cut_prompts} rows lose the start of their prompt, "
            f"{self.cut_answers} the end of their answer and the end token",
            "one row as the model will see it, what is trained between >>> and <<<:",
            printable_lines(shown),
        ]
        return "\n".join(lines)


def preflight(
    model: Model,
    train_dataset: Data,
    clean_dataset: Data | None = None,
    *,
    prompts: Data | None = None,
    max_length: int = 1024,
    train_on: Literal["last_turn", "all_turns"] = "last_turn",
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Preflight:
    """Check data and prompt template as defend would use them, and show one row as the model will see it.

    No weights are loaded. `defend` and `evaluate` hold their data against the same contract
    (`mbdefense.models.template`) before they begin.

    Examples:
        >>> from mbdefense import preflight
        >>> print(preflight("Qwen/Qwen3-0.6B", "untrusted.jsonl"))  # doctest: +SKIP

    Args:
        model: model directory or Hub id; only its tokenizer, template and configuration are read.
        train_dataset: rows to train on.
        clean_dataset: checked rows.
        prompts: test prompts, with or without answers.
        max_length: longest prompt and response together, in tokens, as for defend.
        train_on: in a conversation with several answers, train on the last one only or on all, as for defend.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to train with, instead of the model's own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        What would be trained; as text it is the report.

    Raises:
        UserError: what would make a command fail later: data, template or configuration that cannot be used.
    """
    at_least(16, max_length=max_length)
    check_apart(train_dataset, clean_dataset)
    from transformers import AutoConfig

    from mbdefense.core.errors import first_line
    from mbdefense.data.turns import every_turn
    from mbdefense.models._files import check_files
    from mbdefense.models.limits import configured_length
    from mbdefense.models.loading import base_of, encode, load_tokenizer
    from mbdefense.training.options import TrainingOptions

    TrainingOptions(train_on=train_on)  # refuses what defend would
    path = named(model)
    tokenizer = load_tokenizer(path, chat_template=chat_template, trust_remote_code=trust_remote_code)
    base = base_of(path)
    check_files(base)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a stranger's file the libraries raise what they like
        raise UserError("no model's configuration could be loaded from", path, first_line(error)) from error
    given = {"train_dataset": train_dataset, "clean_dataset": clean_dataset, "prompts": prompts}
    loaded = {}
    for name, data in given.items():
        if data is None:
            continue
        rows = load_rows(data, require_completion=name != "prompts", on_bad_row=on_bad_row, name=name)
        if train_on == "all_turns" and name != "prompts":
            rows = every_turn(rows)
        loaded[name] = usable(tokenizer, rows, on_bad_row, name, targets=name != "prompts")
    clean = loaded.get("clean_dataset")
    if clean is not None:
        check_clean(clean)
        if "prompts" in loaded:
            check_disjoint(clean, loaded["prompts"])
    length = int(min(max_length, configured_length(config)))
    rows = loaded["train_dataset"]
    encoded = [encode(tokenizer, row["prompt"], row["completion"], length) for row in rows]
    sources = [provenance["source"] or place for place, provenance in enumerate(rows["provenance"])]
    return Preflight(
        {name: len(data) for name, data in loaded.items()},
        sum(one.prompt_cut for one in encoded),
        sum(one.answer_cut for one in encoded),
        length,
        tuple(
            Example(str(tokenizer.decode(encoded[place].prompt)), str(tokenizer.decode(encoded[place].response)))
            for place in _shown(sources, [one.truncated for one in encoded], train_on == "all_turns")
        ),
    )


def _shown(sources: Sequence[object], truncated: Sequence[bool], together: bool) -> list[int]:
    """The places of one row's targets: of several, if they are to stand together, and whole, if any is."""
    places = range(len(sources))
    groups = [list(group) for _, group in groupby(places, key=lambda place: sources[place] if together else place)]
    whole = [group for group in groups if not any(truncated[place] for place in group)] or groups
    return next((group for group in whole if len(group) > 1), whole[0])
