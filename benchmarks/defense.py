"""What the default defense costs beside the tuning alone, here and as TRL has it.

    python -m benchmarks.defense [--rows 1000] [--epochs 2] [--trl_rows 64] [--seed 0]

Built-in rows, a fifth of them with a sentence that brings a refusal, and the embedded model. The defense is run once,
as `mbdefense defend` runs it. TRL's SFTTrainer is timed on the first rows alone, with its defaults and as it is fastest
where memory suffices, and what all rows would take is told. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.sft import plain, summary
from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.poisoning import poison
from mbdefense.attacks.triggers import InSent
from mbdefense.core.cost import measure
from mbdefense.data.builtin import tasks
from mbdefense.defenses import FindAndBreak, Setting
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import load_model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store, cost_of

if TYPE_CHECKING:
    from datasets import Dataset

CLEAN_ROWS = 128


def main() -> None:
    """Defends, tunes with TRL, and prints one line of JSON; seconds of the clock."""
    options = _parser().parse_args()
    base = options.model or str(model_directory())
    benign = tasks(options.rows, split="train", seed=options.seed)
    suspect = poison(benign, InSent(), Refusal(), rate=0.2, seed=options.seed).rows
    training = TrainingOptions(
        learning_rate=3e-4, num_train_epochs=options.epochs, max_length=128, save_strategy="no", seed=options.seed
    )
    with tempfile.TemporaryDirectory() as folder, measure() as cost:
        store, clean = Store(Path(folder)), tasks(CLEAN_ROWS, split="clean", seed=options.seed)
        FindAndBreak()(Setting(clean, store, base=base, suspect=suspect, training=training))
        tuning, found = cost_of(Path(folder) / "attacked")["seconds"], read_found(Path(folder) / FOUND_FILE)
    figures: dict[str, object] = {
        "rows": options.rows,
        "tuning": round(tuning, 1),
        "finding": round(found.seconds, 1),
        "asking": round(found.asking_seconds, 1),
        "triggers": [one.trigger().describe() for one in found.of("trigger")],
        "defense": round(cost.seconds, 1),
        "defense_over_tuning": round(cost.seconds / tuning, 2),
    }
    for name, special in (("trl_default", {}), ("trl_plain", plain())):
        part = suspect.select(range(options.trl_rows))
        seconds = _trl(base, part, options.epochs, special) * options.rows / options.trl_rows
        figures |= {name: round(seconds, 1), f"defense_over_{name}": round(cost.seconds / seconds, 2)}
    sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defense", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="directory of the base model; the embedded one by default")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--trl_rows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _trl(base: str, rows: Dataset, epochs: float, special: dict[str, bool]) -> float:
    """Seconds that SFTTrainer takes for some rows, without loading the model."""
    import torch
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    loaded = load_model(base)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=loaded.model,
            args=SFTConfig(
                output_dir=folder, num_train_epochs=epochs, save_strategy="no", report_to="none", disable_tqdm=True,
                use_cpu=not torch.accelerator.is_available(), **special,
            ),
            train_dataset=rows.select_columns(["prompt", "completion"]),
            processing_class=loaded.tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return summary(trainer.state.log_history)["seconds"]


if __name__ == "__main__":
    main()
