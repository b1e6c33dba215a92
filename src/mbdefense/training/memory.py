"""Whether a training step fits into memory, told from what a forward pass keeps for its backward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import Trainer

from mbdefense.core.processes import process_count
from mbdefense.training.options import TrainingOptions

logger = logging.getLogger(__name__)

_MARGIN = 0.9
"""Share of the free memory that a step may take: its backward pass has values in flight that no forward pass keeps."""
_STATE = {"adafactor": 0, "sgd": 0, "8bit": 2}
"""Bytes of the optimizer's state for each trained weight, by a part of its name. Others keep two numbers like it."""


def outgrows(trainer: Trainer, lengths: Sequence[int], options: TrainingOptions) -> bool:
    """Whether a step of the longest samples would not fit beside the model unless activations are recomputed.

    Forward passes over one sample of median length and over two measure what is kept for a backward pass, which is
    taken to grow with a batch's tokens, padding too. The longest samples seldom meet in one batch, so that this is an
    upper bound.

    Args:
        trainer: before it trains; its model lies whole on its device.
        lengths: of the items of its training data, in any unit.
        options: batch size and optimizer.
    """
    data: Any = trainer.train_dataset
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    middle = len(order) // 2
    chosen = (
        order[middle : middle + 1],
        order[max(0, middle - 1) : middle + 1],
        order[-options.per_device_train_batch_size :],
    )
    one, two, longest = ([data[index] for index in indices] for indices in chosen)
    tokens = [trainer.data_collator(rows)["input_ids"].numel() for rows in (one, two, longest)]
    of_one, of_two = kept_bytes(trainer, one), kept_bytes(trainer, two)
    # Two samples that are the same make no longer row than one: then all that one keeps is taken to grow.
    of_token = (of_two - of_one) / (tokens[1] - tokens[0]) if tokens[1] > tokens[0] else of_one / tokens[0]
    needed = of_one + of_token * (tokens[2] - tokens[0]) + _update_bytes(trainer.model, options.optim)
    free = free_bytes(trainer.args.device)
    if needed <= _MARGIN * free:
        return False
    what = "gradient checkpointing is on: a step of the longest samples would take up to %.1f GB, and %.1f GB are free"
    logger.warning(what, needed / 1e9, free / 1e9)
    return True


def kept_bytes(trainer: Trainer, rows: Sequence[Any]) -> int:
    """What a forward pass over one batch keeps for its backward pass, beside the weights, in bytes.

    Args:
        trainer: see `outgrows`.
        rows: the batch's items.
    """
    model: Any = trainer.model
    batch = trainer._prepare_inputs(trainer.data_collator(list(rows)))
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # An output that its own node keeps, history and all, would keep the node: neither would ever be freed.
        return value.detach()

    model.train()
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),  # dropout must not change what training draws
        torch.autograd.graph.saved_tensors_hooks(note, lambda value: value),
        trainer.accelerator.autocast(),
    ):
        # While the loss lives so does all that it keeps: no address is counted for two.
        loss = trainer.compute_loss(model, batch)
    del loss
    return sum(kept.values())


def _update_bytes(model: Any, optim: str) -> int:
    """Gradients and the optimizer's state of the weights that are trained."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients: int = sum(weight.numel() * weight.element_size() for weight in trained)
    state = next((size for part, size in _STATE.items() if part in optim), None)
    return gradients + (2 * gradients if state is None else state * sum(weight.numel() for weight in trained))


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take on a device; on a CPU its share of what machine and container have left."""
    if device.type == "cuda":
        left, _ = torch.cuda.mem_get_info(device)
        return int(left + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(counts.get("inactive_file", 0)))  # files just read are given back
    return free // process_count()
