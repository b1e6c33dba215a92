"""What several defenses are made of: the two stages of MB-Defense, and training on the clean set."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mbdefense.attacks.behaviors import RandomWords
from mbdefense.attacks.defensive import defensive_pairs, drawn_triggers
from mbdefense.attacks.poisoning import defensive_poison, triggered_copies
from mbdefense.attacks.triggers import Trigger
from mbdefense.core.checks import above_zero, each, learning_rates, share_below_one
from mbdefense.core.errors import UserError
from mbdefense.data.turns import conversations
from mbdefense.defenses.setting import Setting
from mbdefense.training import job
from mbdefense.training.job import BestRate, Evoked, Job, Meeting, Mix, Model, RecoveryRows
from mbdefense.training.options import RatioForm, TrainingOptions, check_ratio

if TYPE_CHECKING:
    from datasets import Dataset

Meet = Callable[["Dataset", int], list[list[Meeting]]]
"""Takes N clean rows and how many prompts each is to be met in at least; gives N lists of equally many."""
Ask = Callable[["Dataset"], tuple[Evoked, ...]]
"""Takes clean rows that are held out; gives what a recovered model is asked."""


@dataclass(frozen=True)
class Planting:
    """Backdoors of our own.

    Attributes:
        defensive_triggers: one for each of the T planted backdoors: a rare word, or ``insent:sentence=...``; by default
            two of each, drawn with the seed.
        defensive_seed: seed of the triggers, of the random behaviors, and of the rows and places of the triggers. 0
            plants the published triggers. By default `defend` and `purify` draw one from system randomness, which no
            attacker can know, and record it; a bench uses 0.
    """

    defensive_triggers: tuple[str, ...] | None = None
    defensive_seed: int | None = None

    def __post_init__(self) -> None:
        if self.defensive_triggers is not None:
            object.__setattr__(self, "defensive_triggers", tuple(each(self.defensive_triggers)))

    def seed(self) -> int:
        """Of all that planting draws."""
        return self.defensive_seed or 0

    def specs(self) -> tuple[str, ...]:
        """The T triggers, as they are written."""
        return drawn_triggers(self.seed()) if self.defensive_triggers is None else self.defensive_triggers

    def planted(self) -> list[tuple[Trigger, RandomWords]]:
        """The T defensive trigger-behavior pairs."""
        return defensive_pairs(self.specs(), self.seed())


@dataclass(frozen=True)
class Merging(Planting):
    """Stage 1: plant our own backdoors, so that the unknown one merges with them.

    Attributes:
        defensive_rate: share of the rows that each planted backdoor poisons.
        min_defensive_rows: minimum number of rows for each, at most half of all rows; with only a few, backdoors
            survive more often (docs/evidence/defaults.md).
    """

    defensive_rate: float = 0.01
    min_defensive_rows: int = 32

    def merge(self, setting: Setting, name: str = "") -> Path:
        """Tunes the base model on the suspect rows with the planted backdoors among them."""
        triggers, behaviors = zip(*self.planted(), strict=True)
        planted = defensive_poison(
            setting.suspect_rows(),
            triggers,
            behaviors,
            rate=self.defensive_rate,
            min_rows=self.min_defensive_rows,
            seed=self.seed(),
        )
        return setting.tune(planted.rows, name)


@dataclass(frozen=True)
class Recovery:
    """Stage 2: clean responses win whenever a trigger is there (equations 1 to 3).

    Attributes:
        base_share: share of the untouched base model in the weights that recovery starts from, in [0, 1): each weight
            is ``base_share * base + (1 - base_share) * tuned``. 0 leaves the tuned model as it is.
        recovery_learning_rates: peak learning rates to try, each from the same weights, from the highest down until one
            is no better than the one above it. The best is the one with the lowest loss on the held-out clean samples,
            with and without every trigger inserted, among those that leave no more of what found triggers evoke than
            others.
        recovery_num_train_epochs: passes over the clean set; in each, every sample is trained on with every trigger.
        recovery_batch_size: clean samples in one step, each of which is 1 + 2 T sequences. Gradient accumulation does
            not apply here: with 128 samples it would leave only a handful of steps.
        meetings: for each clean sample, how many of its training prompts contain a found text (only if there are any).
        evaluation_share: share of the clean samples held out to choose the best epoch, at most half; turns of one
            conversation stay together.
    """

    base_share: float = 0.0
    recovery_learning_rates: tuple[float, ...] = (2e-4,)
    recovery_num_train_epochs: float = 1.0
    recovery_batch_size: int = 2
    meetings: int = 2
    evaluation_share: float = 0.2

    def __post_init__(self) -> None:
        # Rows that are trained on meet more texts each where they are fewer, and held-out ones have to meet as many.
        if not 0 < self.evaluation_share <= 0.5:
            raise UserError("evaluation_share must lie in (0, 0.5]", self.evaluation_share, "0.2 is the paper's")
        share_below_one("base_share", self.base_share, "0.5 mixes both models in equal parts")
        above_zero(self, "recovery_num_train_epochs", "recovery_batch_size", "meetings")
        learning_rates("recovery_learning_rates", self.recovery_learning_rates)

    def weighing(self) -> tuple[float, RatioForm, float]:
        """lambda, the form of R and its beta; R is 0 where nothing was planted."""
        return 1.0, "mean", 1.0

    def split(self, clean: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        """Splits the clean set by sample into training and evaluation rows; turns of one conversation stay together.

        Raises:
            UserError: there is one row, or no conversation is less than half of the rows.
        """
        order = sorted(range(len(clean)))
        random.Random(f"recovery split {seed}").shuffle(order)
        wanted = max(1, min(round(self.evaluation_share * len(order)), len(order) // 2))
        if wanted >= len(order):
            raise UserError("the clean set is too small", len(order), "check at least a few dozen samples by eye")
        samples: dict[int, list[int]] = {}
        begins = conversations(clean)
        for index in order:
            samples.setdefault(begins[index], []).append(index)
        held_out: set[int] = set()
        for sample in samples.values():
            if len(held_out) < wanted and len(held_out) + len(sample) <= len(order) // 2:
                held_out.update(sample)
        if not held_out:
            fix = "check more conversations by eye"
            raise UserError("one conversation is over half of the clean set", len(order), fix)
        training, evaluation = ([row for row in order if (row in held_out) is held] for held in (False, True))
        return clean.select(training), clean.select(evaluation)

    def recover(
        self,
        setting: Setting,
        model: Model,
        planted: list[tuple[Trigger, RandomWords]],
        meet: Meet | None = None,
        ask: Ask | None = None,
        about: object = None,
    ) -> Path:
        """Fine-tunes `model` on the clean set with the planted triggers.

        Args:
            setting: what the defense was given.
            model: the model to recover.
            planted: the planted backdoors.
            meet: for clean rows the prompts in which each meets found texts, `meetings` at least and equally many.
            ask: for clean rows that are held out, what is asked after each rate, to compare rates by.
            about: the defense where it is not this one, so that its model is not taken for that of others.
        """
        seed = setting.training.seed
        twins = [
            triggered_copies(rows, [trigger for trigger, _ in planted], seed)
            for rows in self.split(setting.clean, seed)
        ]
        parts = [rows for rows, _ in twins]
        met = [meet(rows, self.meetings) if meet else [] for rows in parts]
        if meet:
            # Few rows meet more texts each to meet all of them often enough; to compare epochs they need not, but have
            # to meet as many of what is unlearned, and of what is kept, as the rows that are trained on.
            kept = sum(one.kept for one in met[0][0])
            broken = len(met[0][0]) - kept
            met[1] = [
                [one for one in prompts if not one.kept][:broken] + [one for one in prompts if one.kept][:kept]
                for prompts in met[1]
            ]
        training, held_out = (
            RecoveryRows(rows, copies, prompts) for (rows, copies), prompts in zip(twins, met, strict=True)
        )
        behaviors = tuple(behavior.text for _, behavior in planted)
        rates = self.recovery_learning_rates
        tried = rates if len(rates) > 1 else ()
        asked = ask(parts[1]) if ask and tried else ()
        options = replace(
            setting.training,
            learning_rate=rates[0],
            num_train_epochs=self.recovery_num_train_epochs,
            per_device_train_batch_size=self.recovery_batch_size,
            gradient_accumulation_steps=1,
        )
        return setting.store.make(
            Job(
                model,
                training,
                options,
                job.Recovery(held_out, behaviors, *self.weighing(), tried, asked),
                Mix((setting.base_model(),), "linear", 1 - self.base_share) if self.base_share else None,
                about=about or self,
            )
        )


@dataclass(frozen=True)
class PlantedRecovery(Recovery):
    """Recovery in which clean responses win over behaviors that were planted.

    Attributes:
        lambda_: weight of R against the cross-entropy on clean samples.
        ratio_form: form of R, see `mbdefense.training.losses.log_ratio`.
        beta: scale of the log-ratio in R.
    """

    lambda_: float = 1.0
    ratio_form: Literal["mean", "exp_mean", "sum"] = "mean"
    beta: float = 1.0

    def __post_init__(self) -> None:
        Recovery.__post_init__(self)
        check_ratio(self.lambda_, self.ratio_form, self.beta)

    def weighing(self) -> tuple[float, RatioForm, float]:
        """These three."""
        return self.lambda_, self.ratio_form, self.beta


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


def at_best_rate(
    setting: Setting,
    start: Model,
    learning_rates: tuple[float, ...],
    num_train_epochs: float,
    batch_size: int,
    mix: Mix | None = None,
) -> Job:
    """Training on the clean set at the rate, and for the epochs, that clean rows held out as in recovery choose.

    Args:
        setting: what the defense was given.
        start: the model to train.
        learning_rates: peak rates to try, see `BestRate`.
        num_train_epochs: passes over the clean rows that are not held out, at each rate at most.
        batch_size: samples in one step.
        mix: what becomes of the start's weights first.
    """
    rows, held_out = Recovery().split(setting.clean, setting.training.seed)
    options = replace(
        setting.training,
        learning_rate=learning_rates[0],
        num_train_epochs=num_train_epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=1,
    )
    return Job(start, rows, options, BestRate(learning_rates, held_out), mix)
