"""Stage 1: `mbdefense.training.sft.instruction_tune` against TRL's SFTTrainer, on the same rows in the same order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.arm import Arm, Benchmark, Done
from benchmarks.machine import training_flops
from benchmarks.workload import Workload
from mbdefense.models import loading as model
from mbdefense.models.loading import encode
from mbdefense.training.options import TrainingOptions


def options(workload: Workload) -> TrainingOptions:
    """One epoch at a constant learning rate, each step logged."""
    return TrainingOptions(
        learning_rate=2e-5,
        num_train_epochs=1,
        per_device_train_batch_size=workload.batch_size,
        max_length=workload.max_length,
        lr_scheduler_type="constant",
        warmup_steps=0,
        save_strategy="no",
        logging_steps=1,
        seed=workload.seed,
        use_peft=workload.use_peft,
        load_in_4bit=workload.load_in_4bit,
        optim=workload.optim,
        gradient_checkpointing=workload.gradient_checkpointing,
    )


def plain() -> dict[str, bool]:
    """TRL's settings that are fastest where memory suffices: our precision, and no activation computed twice."""
    return {"bf16": model.bf16_pays(), "gradient_checkpointing": False}


def shared_settings(workload: Workload, directory: str) -> dict[str, Any]:
    """The same in the words of TRL's configurations; what else they have keeps TRL's default."""
    import torch

    same = (
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "lr_scheduler_type",
        "warmup_steps",
        "optim",
    )
    ours = options(workload)
    return {
        "output_dir": directory,
        **{name: getattr(ours, name) for name in same},
        "max_length": workload.max_length,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": workload.seed,
        "use_cpu": not torch.accelerator.is_available(),
    }


def summary(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The time of training, without evaluation, and the mean loss of its steps, from a Trainer's log."""
    last = next(entry for entry in reversed(history) if "train_runtime" in entry)
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in history)
    return {"seconds": last["train_runtime"] - evaluating, "loss": last["train_loss"]}


def arms(workload: Workload) -> Sequence[Arm]:
    """Ours packed and padded; TRL padded and packed, each with its defaults and as `plain` has them."""
    return [
        Arm("ours", "packed rows, labelled positions only", lambda: _ours(workload, packed=True)),
        Arm("padded", "ours without packing: like lengths padded", lambda: _ours(workload, packed=False)),
        Arm("trl_default", "SFTTrainer", lambda: _trl(workload, {})),
        Arm("trl_plain", "SFTTrainer, our precision, no gradient checkpointing", lambda: _trl(workload, plain())),
        Arm("trl_packing", "SFTTrainer, packing", lambda: _trl(workload, {"packing": True})),
        # One row of `max_length` tokens is about what a step has elsewhere; eight without checkpointing fill 24 GB.
        Arm(
            "trl_packing_plain",
            "SFTTrainer, packing, one row a step, our precision, no gradient checkpointing",
            lambda: _trl(workload, {"packing": True, "per_device_train_batch_size": 1, **plain()}),
        ),
    ]


def _work(workload: Workload, loaded: Any) -> Done:
    encoded = [
        encode(loaded.tokenizer, row["prompt"], row["completion"], workload.max_length) for row in workload.dataset
    ]
    tokens = sum(len(e.prompt) + len(e.response) - 1 for e in encoded)
    scored = sum(len(e.response) for e in encoded)
    return Done(len(encoded), tokens, training_flops(loaded.model, tokens, scored, adapters=workload.use_peft))


def _ours(workload: Workload, *, packed: bool) -> Callable[[], Done]:
    from mbdefense.engine import attention
    from mbdefense.training.sft import instruction_tune

    loaded = workload.load()
    done = _work(workload, loaded)

    def work() -> Done:
        always = patch.object(attention, "packs", attention.packs if packed else lambda _model: False)
        with always, tempfile.TemporaryDirectory() as folder:
            trained = instruction_tune(loaded, workload.dataset, options(workload), Path(folder))
        return done._replace(**summary(trained.history))

    return work


def _trl(workload: Workload, special: dict[str, Any]) -> Callable[[], Done]:
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from mbdefense.training.trainer import with_lora

    loaded = workload.load()
    done = _work(workload, loaded)
    rows = workload.dataset.select_columns(["prompt", "completion"])

    def work() -> Done:
        with tempfile.TemporaryDirectory() as folder:
            trainer = SFTTrainer(
                model=with_lora(loaded.model, options(workload)),
                args=SFTConfig(**{**shared_settings(workload, folder), **special}),
                train_dataset=rows,
                processing_class=loaded.tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return done._replace(**summary(trainer.state.log_history))

    return work


BENCHMARK = Benchmark("rows", arms)
