"""What several defenses are made of: the two stages of MB-Defense, and training on the clean set."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mbdefense.attacks.behaviors import RandomWords
from mbdefense.attacks.poisoning import defensive_poison, triggered_copy
from mbdefense.attacks.triggers import TRIGGERS, BadNet, Trigger
from mbdefense.core.checks import above_zero
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.defenses.setting import Setting, digest, identity
from mbdefense.models.loading import LoadedModel, load_model
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.training.trainer import Trained

Messages = list[dict[str, str]]
_KEPT_TOKENS = 64  # of an answer that is to stay as it is


class Meeting(NamedTuple):
    """A clean prompt with a found text in it, and what recovery asks for there."""

    prompt: Messages
    kept: bool
    """Whether that is what the model says already, in place of the row's clean answer: the text is an instruction."""


@dataclass(frozen=True)
class Planting:
    """Backdoors of our own.

    Attributes:
        defensive_triggers: one for each of the T planted backdoors: a rare word, or ``insent:sentence=...``.
        defensive_seed: seed of the random behaviors and of the rows and places of the triggers.
    """

    defensive_triggers: tuple[str, ...] = (
        "mn",
        "bb",
        "insent:sentence=The ferry leaves at nine.",
        "insent:sentence=A kite flew over the lake.",
    )
    defensive_seed: int = 0

    def planted(self) -> list[tuple[Trigger, RandomWords]]:
        """The T defensive trigger-behavior pairs."""
        pairs = [
            (_literal_trigger(spec), RandomWords(seed=self.defensive_seed, index=index))
            for index, spec in enumerate(self.defensive_triggers)
        ]
        # One trigger can be written in two ways: as a rare word, and as badnet:word=...
        if not pairs or len({trigger.describe() for trigger, _ in pairs}) != len(pairs):
            raise UserError("defensive_triggers must be different", self.defensive_triggers, "name each once")
        return pairs


@dataclass(frozen=True)
class Merging(Planting):
    """Stage 1: plant our own backdoors, so that the unknown one is folded into them.

    Attributes:
        defensive_rate: share of the rows that each planted backdoor poisons.
        min_defensive_rows: at least so many rows for each, half of all rows at most; with a handful the surrogates of
            docs/defaults.md survived more often.
    """

    defensive_rate: float = 0.01
    min_defensive_rows: int = 32

    def merge(self, setting: Setting, directory: Path) -> Path:
        """Tunes the base model on the suspect rows with the planted backdoors among them."""
        triggers, behaviors = zip(*self.planted(), strict=True)
        planted = defensive_poison(
            setting.suspect,
            triggers,
            behaviors,
            rate=self.defensive_rate,
            min_rows=self.min_defensive_rows,
            seed=self.defensive_seed,
        )
        return setting.tune(planted.rows, directory)


def _literal_trigger(spec: str) -> Trigger:
    """A trigger from its spec, or from a bare rare word."""
    trigger: Trigger = (
        parse_spec(spec, TRIGGERS, "trigger") if spec.partition(":")[0] in TRIGGERS else BadNet(word=spec)
    )
    # Recovery needs every clean sample with every trigger, and one that rewrites texts cannot rewrite them all.
    if trigger.how() != "literal":
        raise UserError("a defensive trigger must go into any text", spec, "use words, or insent:sentence=...")
    return trigger


@dataclass(frozen=True)
class Recovery:
    """Stage 2: clean responses win over the planted behaviors whenever a trigger is there (equations 1 to 3).

    Attributes:
        base_share: share of the untouched base model in the weights that recovery starts from, in [0, 1): each weight
            is ``base_share * base + (1 - base_share) * tuned``. 0 leaves the tuned model as it is.
        lambda_: weight of R against the cross-entropy on clean samples.
        ratio_form: form of R, see `mbdefense.training.losses.log_ratio`.
        beta: scale of the log-ratio in R.
        recovery_learning_rate: peak learning rate.
        recovery_num_train_epochs: passes over the clean set, each meeting every sample with every trigger.
        recovery_batch_size: clean samples in one step, each of which is 1 + 2 T sequences. The accumulation of
            instruction tuning plays no part here: of 128 samples it would leave a handful of steps.
        meetings: prompts with a found text, where there are any, in which each clean sample is met.
        evaluation_share: share of the clean samples held out to choose the best epoch.
    """

    base_share: float = 0.0
    lambda_: float = 1.0
    ratio_form: Literal["mean", "exp_mean", "sum"] = "mean"
    beta: float = 1.0
    recovery_learning_rate: float = 2e-4
    recovery_num_train_epochs: float = 1.0
    recovery_batch_size: int = 2
    meetings: int = 2
    evaluation_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.evaluation_share < 1:
            raise UserError("evaluation_share must lie between 0 and 1", self.evaluation_share, "0.2 is the paper's")
        if not 0 <= self.base_share < 1:
            raise UserError("base_share must lie in [0, 1)", self.base_share, "0.5 mixes both models in equal parts")
        above_zero(self, "recovery_learning_rate", "recovery_num_train_epochs", "recovery_batch_size", "meetings")
        if not (0 <= self.lambda_ < math.inf and 0 < self.beta < math.inf):
            raise UserError(
                "lambda_ must be at least 0 and beta above 0", (self.lambda_, self.beta), "1 and 1 are the defaults"
            )
        if self.ratio_form == "exp_mean" and self.beta != 1:
            raise UserError(
                "beta has no place in ratio_form exp_mean", self.beta, "leave beta at 1, or use mean or sum"
            )

    def split(self, clean: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        """Splits the clean set by sample into training and evaluation rows."""
        order = sorted(range(len(clean)))
        random.Random(f"recovery split {seed}").shuffle(order)
        held_out = max(1, round(self.evaluation_share * len(order)))
        if held_out >= len(order):
            raise UserError("the clean set is too small", len(order), "check at least a few dozen samples by eye")
        return clean.select(order[held_out:]), clean.select(order[:held_out])

    def recover(
        self,
        setting: Setting,
        model: Path,
        planted: list[tuple[Trigger, RandomWords]],
        directory: Path,
        meet: Callable[[Dataset, int], list[list[Meeting]]] | None = None,
        about: Mapping[str, object] | None = None,
    ) -> Path:
        """Fine-tunes `model` on the clean set with the planted triggers.

        Args:
            setting: what the defense was given.
            model: directory of the model to recover.
            planted: the planted backdoors.
            directory: where the recovered model goes.
            meet: for clean rows the prompts in which each meets found texts, `meetings` at least and equally many.
            about: options of the defense that led to these, so that its model is not taken for that of others.
        """
        seed = setting.training.seed
        parts = self.split(setting.clean, seed)
        met: list[list[list[Meeting]]] = [[], []]
        if meet:
            met = [meet(rows, self.meetings) for rows in parts]
            # Few rows meet more texts each to meet all of them often enough; to compare epochs they need not.
            fewer = len(met[0][0])
            met[1] = [prompts[len(prompts) - fewer :] for prompts in met[1]]

        def make(checkpoints: Path) -> Trained:
            from mbdefense.training.recovery import RecoveryObjective, encode_triples, recover

            loaded = load_model(str(model), trust_remote_code=setting.trust_remote_code)
            answered = [_answered(loaded, rows, asked) for rows, asked in zip(parts, met, strict=True)]
            if self.base_share:
                from mbdefense.defenses.weights import combine, linear

                # Without a name, which would keep the base model in memory while the other one is trained.
                combine(
                    loaded.model,
                    [setting.load_base().model],
                    lambda own, clean: linear(own, clean, 1 - self.base_share),
                )
            behaviors = [behavior.text for _, behavior in planted]
            training, evaluation = (
                encode_triples(
                    loaded,
                    rows,
                    [triggered_copy(rows, trigger, seed)[0] for trigger, _ in planted],
                    behaviors,
                    setting.training.max_length,
                    pairs,
                )
                for rows, pairs in zip(parts, answered, strict=True)
            )
            objective = RecoveryObjective(len(planted), self.lambda_, self.ratio_form, self.beta, len(training[0].met))
            options = replace(
                setting.training,
                learning_rate=self.recovery_learning_rate,
                num_train_epochs=self.recovery_num_train_epochs,
                per_device_train_batch_size=self.recovery_batch_size,
                gradient_accumulation_steps=1,
            )
            return recover(loaded, training, evaluation, objective, options, checkpoints, resume=setting.resume)

        inputs = {
            "model": identity(str(model)),
            "base": identity(setting.base),
            "clean": digest(setting.clean),
            "planted": [(trigger.describe(), behavior.text) for trigger, behavior in planted],
            "recovery": {name: getattr(self, name) for name in Recovery.__dataclass_fields__},
            "training": asdict(setting.training),
            **({"met": met} if meet else {}),
            **(about or {}),
        }
        return setting.stage(directory, inputs, make)


def _answered(loaded: LoadedModel, rows: Dataset, met: list[list[Meeting]]) -> list[list[tuple[Messages, Messages]]]:
    """The prompts that rows meet with what recovery asks for there: the row's answer, or the model's own to keep."""
    from mbdefense.engine.generate import generate

    if not met:
        return []
    kept = [prompt for prompts in met for prompt, keep in prompts if keep]
    said = iter(generate(loaded, kept, max_new_tokens=_KEPT_TOKENS, batch_size=64, what="instructions") if kept else [])
    return [
        [(prompt, [{"role": "assistant", "content": next(said)}] if keep else own) for prompt, keep in prompts]
        for own, prompts in zip(rows["completion"], met, strict=True)
    ]


@dataclass(frozen=True)
class CleanTuning:
    """Training on the clean set; the defaults are recovery's, so that methods differ in what they do, not in budget.

    Attributes:
        clean_learning_rate: peak learning rate.
        clean_num_train_epochs: passes over the clean set.
        clean_batch_size: samples in one forward pass.
    """

    clean_learning_rate: float = 2e-4
    clean_num_train_epochs: float = 1.0
    clean_batch_size: int = 2

    def __post_init__(self) -> None:
        above_zero(self, *CleanTuning.__dataclass_fields__)

    def tuning(self, setting: Setting) -> TrainingOptions:
        """The options of tuning with these three in place of its own."""
        return replace(
            setting.training,
            learning_rate=self.clean_learning_rate,
            num_train_epochs=self.clean_num_train_epochs,
            per_device_train_batch_size=self.clean_batch_size,
            gradient_accumulation_steps=1,
        )
