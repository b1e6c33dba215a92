"""PDB for language models: a shift of labels behind a token that nobody can write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.core.processes import process_count
from mbdefense.data import to_dataset
from mbdefense.defenses.setting import Setting
from mbdefense.models.limits import embedded_tokens
from mbdefense.models.loading import encode, load_tokenizer
from mbdefense.training.job import Job

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ROWS_OF_A_LABEL = 4
"""Clean rows that a label has on average, at least; answers of which there are more are no labels."""
STAMPED = "stamped"
"""The role of a user turn with the token in front; no file of rows can have a role of that name."""
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class PDB:
    """For classification: trains shifted labels after a reserved token, adds it to every prompt, and shifts back.

    Clean rows with the token before each user turn and the label h(y) in place of y join the suspect ones, where h
    takes each label word, in alphabetical order, to the next. The saved prompt template puts the token before every
    user turn, and in the saved output layer the rows of the labels' first tokens have changed places, so that the logit
    of label y is that which h(y) had: whatever loads the model has token and inversion with it.

    Source: PDB for images (arXiv 2405.16112): a trigger that no attacker can write, h(y) = (y + 1) mod K, clean rows
    five times over, logits @ P at inference. Its form for language models is this project's.

    Deviations. The trigger is a special token of the tokenizer in place of pixels out of their range: in the text of
    rows and prompts it is read, and by the template written, as text. The clean rows are the defender's own, not clean
    versions of suspect ones. P acts on the first token of a label alone, on every answer and at every place in it, so
    that answers other than labels may have these tokens mixed up.

    Attributes:
        reserved_token: a special token that the template does not use and the model's embedding has a row for; by
            default the tokenizer's last one.
        times: that each stamped clean row is in the training data.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "GPU")
    source: ClassVar[str] = "after arXiv 2405.16112"

    reserved_token: str | None = None
    times: int = 5

    def __post_init__(self) -> None:
        at_least(1, times=self.times)

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the model, with the token in its prompt template and the inversion in its weights.

        Raises:
            UserError: clean responses that are no labels, labels that begin alike, or no token to spare.
        """
        setting.check(self)
        if process_count() > 1:  # which may hold the output layer in pieces
            raise UserError("pdb trains in one process", process_count(), "leave --accelerate_config out")
        suspect, base = setting.suspect_rows(), setting.base_model()
        tokenizer = load_tokenizer(
            base.path, chat_template=base.chat_template, trust_remote_code=base.trust_remote_code
        )
        token = self.token(tokenizer, embedded_tokens(base.path, trust_remote_code=base.trust_remote_code))
        labels, plain = labels_of(setting.clean), str(tokenizer.chat_template)
        job = Job(
            base,
            to_dataset([*suspect.to_list(), *self.rows(setting.clean, labels)]),
            setting.training,
            template=stamping(plain, token, STAMPED),
            saved_template=stamping(plain, token, "user"),
            renamed=renamed(first_tokens(tokenizer, setting.clean[0]["prompt"], labels)),
        )
        return setting.store.make(job)

    def token(self, tokenizer: PreTrainedTokenizerBase, embedded: float) -> str:
        """The reserved token.

        Args:
            tokenizer: of the base model.
            embedded: rows of its embedding. Gemma 3 in its smallest sizes has a token for images beyond them.

        Raises:
            UserError: there is none, or it is not one.
        """
        used = {getattr(tokenizer, name) for name in _ROLES}
        added = sorted(tokenizer.added_tokens_decoder.items())
        special = [token.content for number, token in added if token.special and number < embedded]
        free = [one for one in special if one not in used and one not in str(tokenizer.chat_template)]
        if self.reserved_token in free:
            return str(self.reserved_token)
        if self.reserved_token is not None:
            fix = f"name a special token that the prompt template does not use, e.g. {free[-1]}" if free else _ADD
            raise UserError("that is no token to spare", self.reserved_token, fix)
        if not free:
            raise UserError("the tokenizer has no special token to spare", fix=_ADD)
        return free[-1]

    def rows(self, clean: Dataset, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Clean rows, `times` over, with the role `STAMPED` for user turns and the next label for their own."""
        following = dict(zip(labels, [*labels[1:], labels[0]], strict=True))
        made = []
        for row in clean.to_list():
            turns = [{**turn, "role": STAMPED if turn["role"] == "user" else turn["role"]} for turn in row["prompt"]]
            answer = [{"role": "assistant", "content": following[label_of(row)]}]
            # Marked so it is left out where the limit of tokens cuts the reserved one away: it would teach the shift to
            # every prompt.
            marked = {**row["provenance"], "trigger": STAMPED}
            made.append({**row, "prompt": turns, "completion": answer, "provenance": marked})
        return made * self.times


_ADD = "add one to the tokenizer, with a row in the model's embedding, or take p2p"


def label_of(row: dict[str, Any]) -> str:
    """What a row answers, without white space around it."""
    return str(row["completion"][0]["content"]).strip()


def labels_of(clean: Dataset) -> list[str]:
    """The label words: the different responses of the clean rows, in alphabetical order.

    Raises:
        UserError: fewer than two, or so many that they are no labels.
    """
    table = clean.to_list()
    labels = sorted({label_of(row) for row in table})
    if len(labels) < 2:
        raise UserError("the clean rows have one label", labels[0], "give clean rows of every label")
    if len(labels) * ROWS_OF_A_LABEL > len(table):
        got = f"{len(labels)} different ones in {len(table)} rows"
        fix = f"pdb is for classification, with {ROWS_OF_A_LABEL} clean rows of a label or more; for free text take p2p"
        raise UserError("the clean rows' responses are no labels", got, fix)
    return labels


def first_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[dict[str, str]], labels: Sequence[str]
) -> list[int]:
    """The token that each label begins with, as a response to a prompt.

    Raises:
        UserError: two labels begin with one token, or a label holds one that another begins with.
    """
    written = [encode(tokenizer, prompt, [{"role": "assistant", "content": one}], 2**20).response for one in labels]
    first = [tokens[0] for tokens in written]
    later = {token for tokens in written for token in tokens[1:]}
    if len({*first}) < len(first) or later & {*first}:
        fix = "give labels that begin with different tokens, e.g. A, B and C"
        raise UserError("the labels' first tokens cannot be told apart", ", ".join(labels[:5]), fix)
    return first


def renamed(first: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The inversion: the first token of each label gets the logit of the next label's, logit'_y = logit_h(y)."""
    return tuple(zip(first, [*first[1:], first[0]], strict=True))


def stamping(plain: str, token: str, role: str) -> str:
    """A prompt template that puts the token before each turn of a role, which becomes a user's, on top of another one.

    A token that such a turn itself holds gets a space behind its first character, which makes text of it.
    """
    # As they are: JSON's escapes of characters beyond the first plane, two surrogates each, are none to Jinja.
    stamp, broken = (json.dumps(text, ensure_ascii=False) for text in (token, f"{token[0]} {token[1:]}"))
    return (
        "{%- set kept = namespace(turns=[]) -%}{%- for turn in messages -%}"
        f"{{%- if turn['role'] == {json.dumps(role)} and turn.get('content') is not none -%}}"
        f"{{%- set turn = dict(turn, role='user', content={stamp} + turn['content'] | replace({stamp}, {broken})) -%}}"
        "{%- endif -%}"
        "{%- set kept.turns = kept.turns + [turn] -%}"
        "{%- endfor -%}{%- set messages = kept.turns -%}"
        f"{plain}"
    )
