"""A training as data: all that it depends on, and the key that is computed from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mbdefense import __version__
from mbdefense.models.identity import identity
from mbdefense.training.options import RatioForm, TrainingOptions

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BitsAndBytesConfig

    from mbdefense.models.loading import LoadedModel

Messages = list[dict[str, str]]
# What the Trainer does beside training: another value of these makes the same model. `save_strategy` is not among
# them: with several epochs of recovery it decides whether the best one is taken.
_BESIDE = ("report_to", "save_steps")


@dataclass(frozen=True)
class Model:
    """A model that is there or will be, and how it is loaded.

    Attributes:
        path: directory or Hub id; a LoRA adapter's directory stands for its base model with the adapter merged in.
        chat_template: file with a prompt template, or None for the model's own.
        trust_remote_code: see `mbdefense.models.loading.load_model`.
    """

    path: str
    chat_template: str | None = None
    trust_remote_code: bool = False

    def load(self, quantization: BitsAndBytesConfig | None = None) -> LoadedModel:
        """Weights and tokenizer; for `quantization` see `mbdefense.models.loading.load_model`."""
        from mbdefense.models.loading import load_model

        return load_model(
            self.path,
            chat_template=self.chat_template,
            trust_remote_code=self.trust_remote_code,
            quantization=quantization,
        )

    def template(self) -> str | None:
        """The text of the template that is given in place of the model's own."""
        return Path(self.chat_template).read_text(encoding="utf-8") if self.chat_template else None


@dataclass(frozen=True)
class Mix:
    """Puts weights of others into the start's before anything is trained; formulas: `mbdefense.models.weights`.

    Attributes:
        others: models of the start's architecture, in the order of the formula.
        formula: ``random`` is `keep_at_random`.
        share: the start's share in [0, 1]; of ``ties`` the density.
        seed: of ``random``.
    """

    others: tuple[Model, ...]
    formula: Literal["linear", "slerp", "ties", "random"]
    share: float
    seed: int = 0


class Carrier(NamedTuple):
    """A suspect prompt that holds a found text, and what is asked for there: what the start says without the text.

    Attributes:
        without: the prompt without the text.
        wrong: the row's own answer, and phrases of what the text evokes. An answer with one of them is not asked for:
            what is left of the prompt is a trigger, too.
    """

    without: Messages
    wrong: tuple[str, ...]


class Meeting(NamedTuple):
    """A prompt with a found text in it, and what recovery asks for there: the row's clean answer, or the start's own.

    Attributes:
        prompt: a clean prompt with the text in it, or a suspect one that holds it.
        kept: the text is an instruction, and what the start says already is asked for.
        carrier: of a suspect prompt, else None.
    """

    prompt: Messages
    kept: bool
    carrier: Carrier | None = None


class Evoked(NamedTuple):
    """Prompts with a found text in them, and phrases that it draws out of the model that is to be recovered.

    None of the prompts is trained on.
    """

    prompts: Sequence[Messages]
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class RecoveryRows:
    """Clean rows with their twins.

    Attributes:
        clean: N rows.
        triggered: T copies of them, copy j with planted trigger j in every prompt, in the same order.
        met: for each row the K prompts in which it meets found texts; empty where there are none.
    """

    clean: Dataset
    triggered: tuple[Dataset, ...] = ()
    met: Sequence[Sequence[Meeting]] = ()

    def twins(self) -> int:
        """How many more sequences than itself each clean row stands for: equation 3 has two answers a trigger."""
        return 2 * len(self.triggered) + (len(self.met[0]) if self.met else 0)


@dataclass(frozen=True)
class Tuning:
    """Cross-entropy on the response tokens: `mbdefense.training.sft.instruction_tune`."""


@dataclass(frozen=True)
class BestRate:
    """The same, from the start at several learning rates; the epoch with the lowest loss on other rows is kept.

    A rate is left at its first epoch that is no better than its best, or worse than the rate below was after as many
    epochs, and no higher one is tried than the first that is no better than the one below it.

    Attributes:
        learning_rates: peak rates to try, from the lowest up; of equals the lowest is kept.
        held_out: rows that the epochs are compared on.
    """

    learning_rates: tuple[float, ...]
    held_out: Dataset


@dataclass(frozen=True)
class Recovery:
    """Equation 3 on rows with their twins: `mbdefense.training.recovery.recover`.

    Attributes:
        held_out: other rows with their twins, to choose epoch and rate by.
        behaviors: the T planted responses.
        lambda_: weight of R.
        form: form of R, see `mbdefense.training.losses.log_ratio`.
        beta: scale in R.
        learning_rates: peak rates to try, from the highest down, until one is no better than the one above it; empty
            for the options' one.
        evoked: what the model is asked after each rate: one that leaves more of the phrases than another has lost to
            it, whatever its loss.
    """

    held_out: RecoveryRows
    behaviors: tuple[str, ...]
    lambda_: float
    form: RatioForm
    beta: float
    learning_rates: tuple[float, ...] = ()
    evoked: tuple[Evoked, ...] = ()


@dataclass(frozen=True)
class ConsistencyObjective:
    """CROW's loss: `mbdefense.training.consistency.tune_consistently`.

    Attributes:
        alpha: weight of the layers' inconsistency.
        epsilon: how far the input embeddings are moved to raise it.
    """

    alpha: float
    epsilon: float


@dataclass(frozen=True)
class Job:
    """One training. Equal jobs give equal models, wherever these lie.

    Attributes:
        start: the model to train.
        rows: what to train on; `RecoveryRows` for `Recovery`. None trains nothing: the mixture is the model.
        options: optimizer, schedule, precision, adapters.
        objective: what to train for.
        mix: what becomes of the start's weights first.
        template: prompt template to train with, where it is not to be the start's.
        saved_template: prompt template to save with the model, where it is not to be the one of training.
        renamed: pairs of tokens; in the model that is made the first gets the logit that the second one had.
        about: the method that led here with its options, so that its model is not taken for that of others.
    """

    start: Model
    rows: Dataset | RecoveryRows | None
    options: TrainingOptions
    objective: Tuning | BestRate | Recovery | ConsistencyObjective = Tuning()
    mix: Mix | None = None
    template: str | None = None
    saved_template: str | None = None
    renamed: tuple[tuple[int, int], ...] = ()
    about: object = None

    def plain_rows(self) -> Dataset:
        """The rows of a training that is no recovery.

        Raises:
            TypeError: it has none.
        """
        if self.rows is None or isinstance(self.rows, RecoveryRows):
            raise TypeError("rows with their twins are for recovery alone")
        return self.rows

    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried, each from the start; empty where there is one."""
        return self.objective.learning_rates if isinstance(self.objective, BestRate | Recovery) else ()

    def trials(self) -> int:
        """How many trainings it is: one, or as many rates as may be tried; of a recovery's mostly the first two are."""
        return max(1, min(2, len(self.rates())) if isinstance(self.objective, Recovery) else len(self.rates()))

    def words(self) -> str:
        """What it does, for whoever waits for it: "tuning on 500 rows with 4 planted backdoors"."""
        rows = self.rows
        if rows is None:
            return f"merging {1 + len(self.mix.others) if self.mix else 1} models"
        if isinstance(rows, RecoveryRows):
            each = len(rows.met[0]) if rows.met else 0
            told = _with(len(rows.triggered), "planted backdoor"), _with(each, "suspect text", " each")
            return f"recovering on {len(rows.clean)} clean rows" + " and".join(filter(None, told))
        planted = {row["trigger"] for row in rows["provenance"]} - {""} if "provenance" in rows.column_names else ()
        at = f" at up to {len(self.rates())} learning rates" if len(self.rates()) > 1 else ""
        return f"tuning on {len(rows)} rows{_with(len(planted), 'planted backdoor')}{at}"

    def size(self) -> float:
        """Characters that pass through the model: of all rows and their twins, in all epochs, at all rates.

        Of a row as many count as can be seen, at some four a token.
        """
        if self.rows is None:
            return 0.0
        rows, twins = (self.rows.clean, self.rows.twins()) if isinstance(self.rows, RecoveryRows) else (self.rows, 0)
        most, total = 4 * self.options.max_length, 0
        for part in rows.select_columns(["prompt", "completion"]).iter(1000):
            for turns in zip(part["prompt"], part["completion"], strict=True):
                total += min(most, sum(len(turn["content"]) for side in turns for turn in side))
        return total * (1 + twins) * self.trials() * self.options.num_train_epochs

    def kind(self) -> str:
        """What trainings have in common whose time grows with their size alike.

        Small steps cost as much as large ones where the update of the weights takes most of the time, so that steps
        must hold about as many sequences; and of several rates some may not be tried.
        """
        options, twins = self.options, self.rows.twins() if isinstance(self.rows, RecoveryRows) else 0
        step = options.per_device_train_batch_size * options.gradient_accumulation_steps * (1 + twins)
        rates = "rates" if isinstance(self.objective, BestRate) else "training"
        return f"{rates} {round(math.log2(step))} {options.use_peft}"

    def key(self) -> str:
        """SHA-256 of all fields and of the version of the package; what a model stands for counts, not its path."""
        return hash_of(self)


def _with(number: int, what: str, behind: str = "") -> str:
    return f" with {number} {what}{'s' if number > 1 else ''}{behind}" if number else ""


def hash_of(value: object) -> str:
    """SHA-256 of a value and of the version of the package.

    Args:
        value: plain values, models, data sets, and dataclasses, mappings and sequences of them.

    Raises:
        TypeError: it holds something of which nobody has said what it stands for.
    """
    return hashlib.sha256(json.dumps([__version__, _told(value)], sort_keys=True).encode()).hexdigest()


def _told(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Model):
        return [identity(value.path), value.template(), value.trust_remote_code]
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        kept = [name for name in names if not (isinstance(value, TrainingOptions) and name in _BESIDE)]
        return {"is": type(value).__name__, **{name: _told(getattr(value, name)) for name in kept}}
    if isinstance(value, Mapping):
        return {str(name): _told(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    if hasattr(value, "select_columns"):  # a Dataset, by what is looked at
        return digest(value)
    raise TypeError(f"a training cannot depend on a {type(value).__name__}")


@lru_cache(maxsize=16)
def digest(rows: Dataset) -> str:
    """SHA-256 of the rows' prompts and completions, in order, and of which trigger we planted in them.

    By that rows are left out that would lose it (`mbdefense.training._rows.encoded_rows`). Computed once for each data
    set, which do not change in place.
    """
    content = hashlib.sha256()
    columns = [name for name in ("prompt", "completion", "provenance") if name in rows.column_names]
    for row in rows.select_columns(columns):
        planted = row.get("provenance", {}).get("trigger", "")
        content.update(json.dumps([row["prompt"], row["completion"], planted]).encode())
    return content.hexdigest()
