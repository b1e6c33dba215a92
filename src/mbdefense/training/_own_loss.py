"""The one rule by which all stages turn sums over items into a step's loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from mbdefense.core.errors import UserError
from mbdefense.engine.batches import Batch
from mbdefense.engine.log_probs import SequenceLogProbs
from mbdefense.engine.packing import packed_log_probs


class DivergedError(UserError):
    """A training whose loss or weights are no numbers any more; where other rates are left, it has lost to them."""

    def __init__(self, what: str) -> None:
        super().__init__(what, fix="lower --learning_rate or set --bf16 false")


class OwnLoss(ABC):
    """What all trainers share: losses are sums over items, divided by the items of the whole optimizer step.

    transformers counts labelled tokens for that; here each batch says how many items it holds (`items`: response tokens
    in instruction tuning, clean samples elsewhere). So gradient accumulation and several processes give the gradient of
    one large batch.
    """

    def __init__(self, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        # `compute_loss` divides by the items of the whole step itself; transformers must not divide once more, as it
        # does for an architecture whose forward takes no loss arguments.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """A step's batches, and its items over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        items = torch.stack([batch["items"] for batch in batches]).sum().to(device) if batches else torch.tensor(0)
        return batches, self.accelerator.reduce(items, reduction="sum")  # type: ignore[attr-defined]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The batch's share of the step's loss."""
        total = self.summed_loss(model, inputs)
        if num_items_in_batch is None:
            return total / inputs["items"]
        # Gradients are averaged over the processes afterwards; this turns that mean into the sum that is wanted.
        processes: int = self.accelerator.num_processes  # type: ignore[attr-defined]
        return total * processes / num_items_in_batch

    @abstractmethod
    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """The loss summed over the batch's items."""

    def packed_scores(self, model: torch.nn.Module, inputs: Batch) -> SequenceLogProbs:
        """Scores the responses of a batch made by `mbdefense.engine.packing.pack`, in its order."""
        return packed_log_probs(model, self.accelerator.unwrap_model(model), inputs)  # type: ignore[attr-defined]

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """A forward and a backward pass; a loss that is no number stops the run."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if not bool(torch.isfinite(loss)):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise DivergedError(f"the training loss became {loss.item()} at step {step}")
        return loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss of an evaluation batch."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            loss = self.compute_loss(model, inputs).detach()
        if not bool(torch.isfinite(loss)):  # as the best epoch's it would never count, and say nothing
            raise DivergedError(f"the evaluation loss became {loss.item()}")
        return loss, None, None
