"""What a model holds of a prompt before it answers, and how likely it finds an answer's beginning: in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from mbdefense.core.progress import track
from mbdefense.engine.batches import pad_left
from mbdefense.engine.log_probs import IGNORED, body_and_head, token_log_probs
from mbdefense.models.limits import one_at_a_time
from mbdefense.models.loading import Encoded, LoadedModel, device

if TYPE_CHECKING:
    import numpy


class Held(NamedTuple):
    """What a model holds of N prompts.

    Attributes:
        states: by the number of the layer, in order: hidden states at the last token of each prompt, from which the
            answer begins; each (N, H), float32.
        log_probs: of each response as a whole, (N,).
    """

    states: dict[int, numpy.ndarray]
    log_probs: numpy.ndarray


def held(loaded: LoadedModel, sequences: Sequence[Encoded], shares: Sequence[float], batch_size: int) -> Held:
    """Reads hidden states and log-probabilities.

    Args:
        loaded: the model.
        sequences: N prompts, each with the beginning of a response.
        shares: which layers: each the one at this share of the model's depth, in (0, 1].
        batch_size: sequences in one forward pass.

    Raises:
        UserError: a model whose logits are more than a projection of its last hidden states.
    """
    body, head = body_and_head(loaded)
    step = 1 if one_at_a_time(loaded.model) else batch_size
    found: dict[int, list[torch.Tensor]] = {}
    totals = []
    with torch.inference_mode():
        for start in track(range(0, len(sequences), step), "reading hidden states"):
            part = sequences[start : start + step]
            batch = {name: value.to(device()) for name, value in pad_left(part, loaded.tokenizer.pad_token_id).items()}
            targets = batch.pop("targets")
            made = body(**batch, output_hidden_states=True, use_cache=False)
            predicting = made.last_hidden_state[:, -targets.shape[1] :]
            scored = targets != IGNORED
            values = token_log_probs(predicting[scored], head.weight, head.bias, targets[scored])
            totals.append(torch.zeros(len(part)).index_add(0, scored.nonzero()[:, 0].cpu(), values.float().cpu()))
            # The state that predicts the response's first token is the prompt's last.
            last = torch.tensor([-len(one.response) for one in part], device=targets.device)
            rows = torch.arange(len(part), device=targets.device)
            depth = len(made.hidden_states) - 1  # the first entry is the embeddings
            for layer in sorted({max(1, round(share * depth)) for share in shares}):
                found.setdefault(layer, []).append(made.hidden_states[layer][rows, last].float().cpu())
    return Held({layer: torch.cat(parts).numpy() for layer, parts in found.items()}, torch.cat(totals).numpy())
