"""P2P: a benign backdoor that is always triggered."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data import to_dataset
from mbdefense.defenses.setting import Setting
from mbdefense.models.loading import load_tokenizer
from mbdefense.training.job import Job

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class P2P:
    """Trains the model on a benign trigger with a known change of the response, and keeps it in every prompt.

    Source: Zhao et al. 2025, arXiv 2510.04503, in its form for generation: to the suspect data come rows whose prompt
    starts with a benign trigger and whose response starts with a fixed prefix, and the trigger stays at inference.

    Deviations: the added rows are made of the clean set, repeated or cut to their number, where the paper draws them
    from the data it defends; some of those are poisoned and would tie the attacker's behavior to the benign trigger.
    Trigger and prefix stand in the prompt template that is saved with the model, so that whoever uses its template has
    the trigger in every user turn; the model does not write the prefix but goes on after it, so that there is nothing
    to cut off. Trigger, prefix and rate are ours.

    Attributes:
        benign_trigger: the sentence that every user turn starts with.
        benign_prefix: the line that every response starts with.
        benign_rate: added rows, as a share of the suspect rows, in (0, 1].
        benign_seed: seed of the choice of clean rows.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2510.04503"

    benign_trigger: str = "Answer from what has been checked."
    benign_prefix: str = "Checked answer:"
    benign_rate: float = 0.3
    benign_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.benign_rate <= 1:
            raise UserError("benign_rate must lie in (0, 1]", self.benign_rate, "0.3 adds 3 rows to 10 suspect ones")
        for name in ("benign_trigger", "benign_prefix"):
            if not getattr(self, name).strip():
                raise UserError(f"{name} is empty", getattr(self, name), "give a few words")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the model, whose prompt template keeps the benign trigger."""
        setting.check(self)
        suspect, base = setting.suspect_rows(), setting.base_model()
        rows = to_dataset([*suspect.to_list(), *self.rows(setting.clean, len(suspect))])
        plain = load_tokenizer(
            base.path, chat_template=base.chat_template, trust_remote_code=base.trust_remote_code
        ).chat_template
        job = Job(base, rows, setting.training, saved_template=self.template(str(plain)))
        return setting.store.make(job)

    def rows(self, clean: Dataset, suspect: int) -> list[dict[str, object]]:
        """Clean rows with the benign trigger and its prefix, `benign_rate` times the number of suspect rows."""
        table = clean.to_list()
        random.Random(f"benign rows {self.benign_seed}").shuffle(table)
        wanted = max(1, round(self.benign_rate * suspect))
        chosen = (table[index % len(table)] for index in range(wanted))
        made = []
        for row in chosen:
            # Marked so it is left out where the limit of tokens cuts the trigger away: it would teach the prefix to
            # every prompt.
            marked = {**row["provenance"], "trigger": self.benign_trigger}
            answer = self.kept(row["completion"])
            made.append({**row, "prompt": self.kept(row["prompt"]), "completion": answer, "provenance": marked})
        return made

    def kept(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Messages with the trigger before each user turn and the prefix before each response."""
        before = {"user": f"{self.benign_trigger} ", "assistant": f"{self.benign_prefix}\n"}
        return [{**turn, "content": before.get(turn["role"], "") + turn["content"]} for turn in messages]

    def template(self, plain: str) -> str:
        """A prompt template that does what `kept` does, on top of another one, and starts the response."""
        # As they are: JSON's escapes of emoji, two surrogates each, are no character to Jinja.
        trigger, prefix = (
            json.dumps(text, ensure_ascii=False) for text in (f"{self.benign_trigger} ", f"{self.benign_prefix}\n")
        )
        return (
            "{%- set kept = namespace(turns=[]) -%}{%- for turn in messages -%}"
            f"{{%- set before = {{'user': {trigger}, 'assistant': {prefix}}}.get(turn['role'], '') -%}}"
            # A turn that only calls tools has nothing to say; what else a turn holds is the other template's to show.
            "{%- if turn.get('content') is not none -%}"
            "{%- set turn = dict(turn, content=before + turn['content']) -%}"
            "{%- endif -%}"
            "{%- set kept.turns = kept.turns + [turn] -%}"
            "{%- endfor -%}{%- set messages = kept.turns -%}"
            f"{plain.removesuffix(chr(10))}"
            f"{{% if add_generation_prompt %}}{{{{ {prefix} }}}}{{% endif %}}"
        )
