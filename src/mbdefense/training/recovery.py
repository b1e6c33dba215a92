"""Weight recovery: clean responses win over the planted ones whenever a trigger is there (equations 1 to 3)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from mbdefense.attacks.defensive import PLANTED_FILE, defensive_pairs, drawn_triggers, planted_in
from mbdefense.attacks.poisoning import triggered_copies
from mbdefense.core.checks import each
from mbdefense.core.errors import UserError
from mbdefense.core.files import warn_once
from mbdefense.data import Source, load_rows
from mbdefense.engine import AttentionName
from mbdefense.engine.batches import Batch, response_log_probs
from mbdefense.models.loading import LoadedModel, bf16_pays, load_model, load_tokenizer
from mbdefense.models.ready import usable
from mbdefense.models.template import check_contract
from mbdefense.training._own_loss import OwnLoss
from mbdefense.training._triples import RecoveryCollator, TripleRow, by_role, encode_triples
from mbdefense.training.losses import recovery_loss
from mbdefense.training.options import RatioForm, TrainingOptions, check_ratio
from mbdefense.training.trainer import Trained, arguments, packed_attention, run_trainer, with_lora

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "RecoveryConfig",
    "RecoveryObjective",
    "RecoveryTrainer",
    "TripleRow",
    "by_role",
    "encode_triples",
    "recover",
]


@dataclass(frozen=True)
class RecoveryObjective:
    """Equation 3's weights and the form of R; see `mbdefense.training.losses.recovery_loss`.

    Attributes:
        triggers: T, the planted backdoors.
        lambda_: weight of R.
        form: form of R.
        beta: scale in R.
        met: K, the found texts that each sample meets; their cross-entropy is averaged, with the weight of the plain
            sample's.
    """

    triggers: int
    lambda_: float
    form: RatioForm
    beta: float
    met: int = 0


@dataclass
class RecoveryConfig(TrainingArguments):
    """transformers' ``TrainingArguments`` with what `RecoveryTrainer` needs beside them.

    Defaults that differ from transformers': a learning rate of 2e-4 with cosine schedule and 3 % warm-up, one epoch,
    two clean samples in a batch (each is 1 + 2 T sequences), bfloat16 where the machine is faster in it.

    Attributes:
        lambda_: weight of R in equation 3, at least 0.
        form: form of R, see `mbdefense.training.losses.log_ratio`.
        beta: scale of the log-ratio in R, above 0.
        max_length: most tokens of a prompt and its response; longer ones lose the start of their prompt.
        defensive_triggers: the triggers that were planted in the model: rare words, or ``insent:sentence=...``. By
            default those of planted.json, which `defend` writes beside the model; where there is none, those that the
            seed stands for.
        defensive_seed: the seed that they were planted with, which fixes their responses. By default that of
            planted.json, else 0, the published backdoors'.
        attn_implementation: how packed rows attend: sdpa by sample, flex_attention in one kernel (GPU only).
        trust_remote_code: allow a model's Hub repository to bring code of its own.
    """

    lambda_: float = field(default=1.0, metadata={"help": "Weight of R in equation 3."})
    form: RatioForm = field(default="mean", metadata={"help": "Form of R."})
    beta: float = field(default=1.0, metadata={"help": "Scale of the log-ratio in R."})
    max_length: int = field(default=1024, metadata={"help": "Most tokens of a prompt and its response."})
    defensive_triggers: list[str] | None = field(default=None, metadata={"help": "Triggers planted in the model."})
    defensive_seed: int | None = field(default=None, metadata={"help": "Seed that they were planted with."})
    attn_implementation: AttentionName = field(default="sdpa", metadata={"help": "How packed rows attend."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow a repository to bring code."})
    learning_rate: float = 2e-4
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 2
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    bf16: bool | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_ratio(self.lambda_, self.form, self.beta)
        if self.defensive_triggers is not None:
            self.defensive_triggers = each(self.defensive_triggers)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and bf16_pays()
        if not torch.accelerator.is_available():
            # transformers refuses bfloat16 on a CPU that has it unless the CPU is asked for by name.
            self.use_cpu, self.dataloader_pin_memory = True, False
        super().__post_init__()  # type: ignore[no-untyped-call]


class RecoveryTrainer(OwnLoss, Trainer):  # type: ignore[misc]
    """Stage 2 of MB-Defense (equation 3): unlearns planted backdoors on clean rows, and with them the attacker's.

    The model was tuned on the untrusted rows with our own backdoors among them (stage 1, ``defense="merge_only"``).
    For each clean sample and planted pair of trigger and response the loss asks for the clean answer, without the
    trigger and against the planted response with it; see `mbdefense.training.losses.recovery_loss`. Rows are encoded,
    given their triggers, and packed here, as TRL's trainers do; where a model's attention cannot take packed rows they
    are padded.

    Examples:
        ```python
        from mbdefense import RecoveryConfig, RecoveryTrainer

        trainer = RecoveryTrainer(
            model="merged",
            args=RecoveryConfig(output_dir="recovered", num_train_epochs=1),
            train_dataset=[{"prompt": "Name a tree.", "completion": "An oak."}],
        )
        trainer.train()
        trainer.save_model()
        ```

    Args:
        model: a directory or Hub id, or a loaded causal language model (with adapters or without).
        args: options.
        train_dataset: clean rows in any form that `mbdefense.load_rows` takes.
        eval_dataset: other clean rows, for ``eval_strategy``; split by sample, as a split by tuple would leak.
        processing_class: the tokenizer; by default the model's own.
        peft_config: trains adapters, which `save_model` then saves alone.
        callbacks: see ``transformers.Trainer``.
        optimizers: see ``transformers.Trainer``.

    Raises:
        UserError: a row, model, tokenizer or option that cannot be used.
    """

    args: RecoveryConfig
    objective: RecoveryObjective

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: RecoveryConfig | None = None,
        train_dataset: Source | Sequence[TripleRow] | None = None,
        eval_dataset: Source | Sequence[TripleRow] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = RecoveryConfig() if args is None else args
        if not isinstance(args, RecoveryConfig):
            raise UserError("args is no RecoveryConfig", type(args).__name__, "give RecoveryConfig(output_dir=...)")
        if train_dataset is None:
            raise UserError("there is no train_dataset", fix="give clean rows")
        # With several GPUs and no launcher transformers would take packed rows apart to share them.
        args._n_gpu = min(args.n_gpu, 1)
        network, tokenizer = _model_and_tokenizer(model, processing_class, args)
        if peft_config is not None:
            network = _with_adapters(network, peft_config, args.seed)
        self._coder = LoadedModel(network, tokenizer)
        self._packing = False
        training = _encoded(train_dataset, "train_dataset", self._coder, args)
        first = training[0]
        self.objective = RecoveryObjective(len(first.triggered), args.lambda_, args.form, args.beta, len(first.met))
        with packed_attention(network, args.attn_implementation) as packed:
            collator = RecoveryCollator(int(tokenizer.pad_token_id), packed)
        super().__init__(
            model=network,
            args=args,
            train_dataset=training,
            eval_dataset=None if eval_dataset is None else _encoded(eval_dataset, "eval_dataset", self._coder, args),
            processing_class=tokenizer,
            data_collator=collator,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    @contextmanager
    def packing(self) -> Iterator[None]:
        """Lets the model attend over packed rows meanwhile, if it can."""
        if self._packing:  # an evaluation amid training
            yield
            return
        with packed_attention(self._coder.model, self.args.attn_implementation):
            self._packing = True
            try:
                yield
            finally:
                self._packing = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See ``transformers.Trainer.train``."""
        with self.packing():
            return super().train(*args, **kwargs)

    def evaluate(self, eval_dataset: Source | None = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss on clean rows; see ``transformers.Trainer.evaluate``."""
        rows: Any = None if eval_dataset is None else _encoded(eval_dataset, "eval_dataset", self._coder, self.args)
        with self.packing():
            figures: dict[str, float] = super().evaluate(rows, *args, **kwargs)
        return figures

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Equation 3 summed over the batch's clean samples, and the cross-entropy under found texts with it."""
        objective = self.objective
        scores = self.packed_scores(model, inputs) if "runs" in inputs else response_log_probs(model, inputs)
        plain, clean, defensive, met = by_role(scores, objective.triggers, objective.met)
        loss = recovery_loss(
            plain,
            clean,
            defensive,
            triggers=objective.triggers,
            lambda_=objective.lambda_,
            form=objective.form,
            beta=objective.beta,
        ).total
        return loss - met.mean.sum() / objective.met if objective.met else loss


def _model_and_tokenizer(model: Any, tokenizer: Any, args: RecoveryConfig) -> tuple[Any, Any]:
    """The network, and a tokenizer that can end a response and render a conversation."""
    if isinstance(model, str | os.PathLike):
        renders = tokenizer is None  # else the given one's template does
        loaded = load_model(os.fspath(model), trust_remote_code=args.trust_remote_code, renders=renders)
        model, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    elif tokenizer is None:
        tokenizer = load_tokenizer(model.config.name_or_path, trust_remote_code=args.trust_remote_code)
    if not tokenizer.chat_template:
        raise UserError("processing_class has no chat template", fix="give the tokenizer that the model was tuned with")
    if tokenizer.eos_token_id is None:
        raise UserError("processing_class has no end token", fix="set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_contract(tokenizer)
    return model, tokenizer


def _with_adapters(model: Any, config: PeftConfig, seed: int) -> Any:
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise UserError("peft_config is given for a model that has adapters", fix="leave it out, or merge them first")
    set_seed(seed)  # the Trainer sets it too late: adapters start at random values
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError("the model takes no such adapters", str(config.peft_type), str(error)) from error


def _encoded(given: Any, name: str, coder: LoadedModel, args: RecoveryConfig) -> list[TripleRow]:
    """Clean rows with their triggered twins, as tokens; what is so already stays."""
    if isinstance(given, list) and given and isinstance(given[0], TripleRow):
        return given
    clean = usable(coder.tokenizer, load_rows(given, name=name), "error", name)
    pairs = defensive_pairs(*_planted(coder, args))
    clean, copies = triggered_copies(clean, [trigger for trigger, _ in pairs], args.seed)
    return encode_triples(coder, clean, copies, [behavior.text for _, behavior in pairs], args.max_length)


def _planted(coder: LoadedModel, args: RecoveryConfig) -> tuple[Sequence[str], int]:
    """The triggers that recovery is to unlearn, and the seed of their responses; see `RecoveryConfig`."""
    name = coder.model.config.name_or_path
    found = planted_in(Path(name)) if name else None
    triggers, seed = args.defensive_triggers, args.defensive_seed
    if found is None and triggers is None and seed is None:
        fix = "name what was planted as defensive_triggers and defensive_seed"
        warn_once(name, f"no {PLANTED_FILE} lies with the model: the published backdoors are unlearned; {fix}")
    if seed is None:
        seed = found.defensive_seed if found else 0
    if triggers is not None:
        return triggers, seed
    return found.defensive_triggers if found and found.defensive_seed == seed else drawn_triggers(seed), seed


def recover(
    loaded: LoadedModel,
    training: Sequence[TripleRow],
    evaluation: Sequence[TripleRow],
    objective: RecoveryObjective,
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
) -> Trained:
    """Weight recovery (equation 3): clean responses win over the defensive ones whenever a trigger is there.

    The epoch with the lowest evaluation loss is kept when there are several epochs and `options.save_strategy` is
    "epoch".

    Args:
        loaded: the merged model, changed in place.
        training: triples of the clean samples to train on.
        evaluation: triples of other clean samples; the split is by sample, as one by tuple would leak.
        objective: T, lambda and the form of R.
        options: as for `instruction_tune`; its batch size counts clean samples, each of which is 1 + 2 T sequences.
        directory: where checkpoints go.
        resume: go on from the last checkpoint in `directory`, if there is one.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    choose = options.save_strategy == "epoch" and math.ceil(options.num_train_epochs) > 1
    trainer = RecoveryTrainer(
        model=with_lora(loaded.model, options),
        args=arguments(
            RecoveryConfig,
            options,
            directory,
            eval_strategy="epoch",
            load_best_model_at_end=choose,
            metric_for_best_model="eval_loss" if choose else None,
            lambda_=objective.lambda_,
            form=objective.form,
            beta=objective.beta,
            attn_implementation=options.attn_implementation,
        ),
        train_dataset=list(training),
        eval_dataset=list(evaluation),
        processing_class=loaded.tokenizer,
    )
    lengths = [sum(len(t.prompt) + sum(map(len, t.responses)) for t in row.trees()) for row in training]
    with trainer.packing():
        return run_trainer(trainer, loaded, options, directory, resume, lengths, sum(row.truncated for row in training))
