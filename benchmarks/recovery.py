"""Stage 2: `mbdefense.training.recovery.recover` against equation 3 as printed, and TRL's DPOTrainer on the same pairs.

A pair is y and y_d after the same x_d. The naive form runs three padded sequences for each, (x, y), (x_d, y) and
(x_d, y_d), and takes log-softmax over all logits. DPO has no (x, y), so that it has less to do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.arm import Arm, Benchmark, Done
from benchmarks.machine import training_flops
from benchmarks.sft import options, plain, shared_settings, summary
from benchmarks.workload import Workload
from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.defenses.stages import Planting
from mbdefense.engine.batches import Batch
from mbdefense.models.loading import LoadedModel
from mbdefense.training._own_loss import OwnLoss
from mbdefense.training.recovery import RecoveryObjective, TripleRow, encode_triples, recover
from mbdefense.training.trainer import arguments, with_lora

LAMBDA = BETA = 1.0


class NaiveTrainer(OwnLoss, Trainer):  # type: ignore[misc]
    """Equation 3 over all tuples: three forward passes for each batch of pairs, padded, with all logits."""

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """The loss summed over clean samples, each the mean over its triggers."""
        plain, clean, defensive = (_mean_log_probs(model, inputs, part) for part in ("plain", "clean", "defensive"))
        losses = -plain - LAMBDA * logsigmoid(BETA * (clean - defensive))
        return losses.mean() * inputs["items"]


def _mean_log_probs(model: torch.nn.Module, inputs: Batch, part: str) -> Tensor:
    ids, mask, labels = (inputs[f"{part}_{name}"] for name in ("ids", "mask", "labels"))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    chosen = logits.log_softmax(dim=-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    scored = labels[:, 1:] >= 0
    return (chosen * scored).sum(dim=1) / scored.sum(dim=1)


def naive_batch(rows: Sequence[TripleRow], pad_token_id: int) -> Batch:
    """All pairs of some samples as three padded batches: ids, mask and labels each."""
    pairs = [(row.plain, pair) for row in rows for pair in row.triggered]
    parts = {
        "plain": [(plain.prompt, plain.responses[0]) for plain, _ in pairs],
        "clean": [(pair.prompt, pair.responses[0]) for _, pair in pairs],
        "defensive": [(pair.prompt, pair.responses[1]) for _, pair in pairs],
    }
    batch = {"items": torch.tensor(len(rows))}
    for part, sequences in parts.items():
        length = max(len(prompt) + len(response) for prompt, response in sequences)
        ids = torch.full((len(sequences), length), pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for index, (prompt, response) in enumerate(sequences):
            end = len(prompt) + len(response)
            ids[index, :end], mask[index, :end] = torch.tensor(prompt + response), 1
            labels[index, len(prompt) : end] = torch.tensor(response)
        batch |= {f"{part}_ids": ids, f"{part}_mask": mask, f"{part}_labels": labels}
    return batch


def arms(workload: Workload) -> Sequence[Arm]:
    """Ours, the naive loss, and DPO with TRL's defaults and as `plain` has them."""
    return [
        Arm("ours", "packed trees, labelled positions only", lambda: _ours(workload)),
        Arm("naive", "three padded passes for each pair, all logits", lambda: _naive(workload)),
        Arm("trl_dpo", "DPOTrainer, reference precomputed (not timed)", lambda: _dpo(workload, {})),
        Arm("trl_dpo_plain", "the same, our precision, no gradient checkpointing", lambda: _dpo(workload, plain())),
    ]


def _samples(workload: Workload) -> Workload:
    """Batches of as many clean samples as make `batch_size` pairs."""
    return replace(workload, batch_size=max(1, workload.batch_size // len(Planting().planted())))


def _triples(workload: Workload, loaded: LoadedModel) -> list[TripleRow]:
    planted = Planting().planted()
    copies = [triggered_copy(workload.dataset, trigger, workload.seed)[0] for trigger, _ in planted]
    return encode_triples(
        loaded, workload.dataset, copies, [behavior.text for _, behavior in planted], workload.max_length
    )


def _work(workload: Workload, loaded: LoadedModel, triples: Sequence[TripleRow]) -> Done:
    trees = [tree for row in triples for tree in (row.plain, *row.triggered)]
    scored = [len(response) for tree in trees for response in tree.responses]
    # The prompt of a tree once, and of each response all but its last token.
    tokens = sum(len(tree.prompt) for tree in trees) + sum(scored) - len(scored)
    flops = training_flops(loaded.model, tokens, sum(scored), adapters=workload.use_peft)
    return Done(sum(len(row.triggered) for row in triples), tokens, flops)


def _ours(workload: Workload) -> Callable[[], Done]:
    loaded = workload.load()
    triples = _triples(workload, loaded)
    objective = RecoveryObjective(len(triples[0].triggered), LAMBDA, "mean", BETA)
    done = _work(workload, loaded, triples)

    def work() -> Done:
        with tempfile.TemporaryDirectory() as folder:
            chosen = options(_samples(workload))
            trained = recover(loaded, triples, triples[:1], objective, chosen, Path(folder))
        return done._replace(**summary(trained.history))

    return work


def _naive(workload: Workload) -> Callable[[], Done]:
    loaded = workload.load()
    triples = _triples(workload, loaded)
    done = _work(workload, loaded, triples)

    def work() -> Done:
        with tempfile.TemporaryDirectory() as folder:
            trainer = NaiveTrainer(
                model=with_lora(loaded.model, options(workload)),
                args=arguments(TrainingArguments, options(_samples(workload)), Path(folder), disable_tqdm=True),
                train_dataset=triples,
                data_collator=lambda rows: naive_batch(rows, loaded.tokenizer.pad_token_id),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return done._replace(**summary(trainer.state.log_history))

    return work


def _dpo(workload: Workload, special: dict[str, Any]) -> Callable[[], Done]:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    loaded = workload.load()
    done = _work(workload, loaded, _triples(workload, loaded))
    pairs = Dataset.from_list(
        [
            {
                "prompt": triggered["prompt"],
                "chosen": row["completion"],
                "rejected": [{"role": "assistant", "content": behavior.text}],
            }
            for trigger, behavior in Planting().planted()
            for row, triggered in zip(
                workload.dataset, triggered_copy(workload.dataset, trigger, workload.seed)[0], strict=True
            )
        ]
    )

    def work() -> Done:
        with tempfile.TemporaryDirectory() as folder:
            settings = {**shared_settings(workload, folder), "precompute_ref_log_probs": True, **special}
            trainer = DPOTrainer(
                model=with_lora(loaded.model, options(workload)),
                args=DPOConfig(**settings),
                train_dataset=pairs,
                processing_class=loaded.tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        found = summary(trainer.state.log_history)
        return done._replace(**found, note="Its loss is another one; it has no (x, y) to compute.")

    return work


BENCHMARK = Benchmark("pairs", arms)
