"""SEEP: rows that are learned early, and what lies next to them in the tuned model's latent space."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mbdefense.core.checks import above_zero
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.records.filtering import Suspicion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mbdefense.models.loading import LoadedModel

LEAST_DOUBT = 1e-3
"""1 - p is never taken for less, so that one memorised row at one epoch does not outweigh all the rest."""


@dataclass(frozen=True)
class SEEP:
    """Drops the rows that are learned earliest and those next to them in the tuned model's latent space.

    Source: SEEP (arXiv 2405.11575): while a model is trained on the suspect rows, ``b = 1 / (1 - p(y | x))`` of each
    row after each epoch, averaged over the epochs; the rows with the highest mean are seeds of poison; labels propagate
    from them to their nearest neighbors in latent space; what is labelled poison is dropped. Deviations:

    - The source classifies; here p is the length-normalised likelihood of the response, ``exp(mean log p(token))``, and
      1 - p is clipped at `LEAST_DOUBT`.
    - The latent vector is the last hidden state averaged over the response's tokens, at unit length, after the last
      epoch: a generated behavior may show at any token.
    - Labels propagate from both sides, by scikit-learn's label propagation over the graph of nearest neighbors: the
      rows with a mean at or below the median are seeds of clean. So less than half of the rows can be dropped, and a
      row is only if it hangs together with the seeds of poison more than with them. Share of seeds and number of
      neighbors are ours.
    - Every epoch is a tuning of its own that starts from the weights of the one before, at a constant rate and with new
      optimizer states. It changes all weights with this package's defaults: of the options of ``defend``, batch size,
      length and seed alone count for it.

    It has no test for clean data: it always drops its seeds and what hangs together with them.

    Attributes:
        watched_epochs: epochs that are watched.
        watched_learning_rate: their learning rate.
        seed_share: share of the rows that are seeds of poison, in (0, 0.5); one row at least.
        neighbors: of each row, in the graph.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "GPU")
    source: ClassVar[str] = "arXiv 2405.11575"
    trains: ClassVar[bool] = True

    watched_epochs: int = 3
    watched_learning_rate: float = 1e-4
    seed_share: float = 0.01
    neighbors: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.seed_share < 0.5:
            raise UserError("seed_share must lie in (0, 0.5)", self.seed_share, "0.01 is the default")
        above_zero(self, "watched_epochs", "watched_learning_rate", "neighbors")

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores every suspect row by the share of poison that propagates to it, from 0 to 1."""
        import numpy as np

        rows = evidence.suspect
        if len(rows) < 4:
            raise UserError("too few rows to find neighbors in", len(rows), "give at least some dozens")
        likelihoods, vectors = [], np.empty(0)
        for watched in self._watch(evidence):
            likelihoods.append(watched.likelihoods)
            vectors = watched.vectors
        means = earliness(np.stack(likelihoods))
        poison = propagated(vectors, means, self.seed_share, self.neighbors)
        found = zip(rows["id"], poison.tolist(), strict=True)
        facts = {
            "seeds": seed_count(len(rows), self.seed_share),
            "mean_b_of_seeds_at_least": float(np.sort(means)[-seed_count(len(rows), self.seed_share)]),
            "median_of_mean_b": float(np.median(means)),
        }
        return Filtered(tuple(Suspicion(row_id, score, score > 0.5) for row_id, score in found), facts)

    def _watch(self, evidence: Evidence) -> Iterator[_Watched]:
        """What the model thinks of each row after each epoch of tuning on all of them."""
        from mbdefense.training.options import TrainingOptions
        from mbdefense.training.sft import instruction_tune

        loaded = evidence.load()
        for epoch in range(self.watched_epochs):
            options = TrainingOptions(
                learning_rate=self.watched_learning_rate,
                num_train_epochs=1,
                per_device_train_batch_size=evidence.batch_size,
                max_length=evidence.max_length,
                lr_scheduler_type="constant",
                warmup_steps=0,
                save_strategy="no",
                seed=evidence.seed + epoch,
            )
            with tempfile.TemporaryDirectory() as directory:
                loaded = instruction_tune(loaded, evidence.suspect, options, Path(directory)).model
            yield _watched(loaded, evidence)


class _Watched(NamedTuple):
    """One epoch's view of N rows."""

    likelihoods: NDArray[Any]
    """(N,), length-normalised."""
    vectors: NDArray[Any]
    """(N, d), unit length."""


def _watched(loaded: LoadedModel, evidence: Evidence) -> _Watched:
    import numpy as np
    import torch

    from mbdefense.defenses.filters._clusters import unit
    from mbdefense.defenses.filters._states import response_states
    from mbdefense.engine.log_probs import body_and_head

    head = body_and_head(loaded)[1]
    likelihoods = np.empty(len(evidence.suspect))
    vectors: list[NDArray[Any]] = [np.empty(0)] * len(evidence.suspect)
    for state in response_states(loaded, evidence.suspect, evidence, "SEEP: likelihoods"):
        with torch.inference_mode():
            log_probs = head(state.hidden).float().log_softmax(dim=-1).gather(1, state.targets[:, None])
            likelihoods[state.row] = log_probs.double().mean().exp().item()
            vectors[state.row] = state.hidden.double().mean(dim=0).cpu().numpy()
    return _Watched(likelihoods, unit(np.stack(vectors)))


def earliness(likelihoods: NDArray[Any]) -> NDArray[Any]:
    """The mean over epochs of ``b = 1 / (1 - p)``; (E, N) to (N,). 1 - p is clipped from below at `LEAST_DOUBT`."""
    import numpy as np

    means: NDArray[Any] = (1 / np.maximum(1 - likelihoods, LEAST_DOUBT)).mean(axis=0)
    return means


def seed_count(rows: int, share: float) -> int:
    """How many of the rows are seeds of poison."""
    return max(1, round(share * rows))


def propagated(vectors: NDArray[Any], means: NDArray[Any], share: float, neighbors: int) -> NDArray[Any]:
    """How much poison propagates to each row; (N, d) and (N,) to (N,), from 0 to 1.

    Seeds keep their label: poison the `seed_count` rows with the highest mean, clean those at or below the median.
    A row that no seed is connected with counts as clean.
    """
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.semi_supervised import LabelPropagation

    labels = np.full(len(means), -1)
    labels[np.argsort(-means, kind="stable")[: seed_count(len(means), share)]] = 1
    labels[(means <= np.median(means)) & (labels != 1)] = 0
    propagation = LabelPropagation(kernel="knn", n_neighbors=min(neighbors, len(means) - 1), max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the labels reached by then are used
        propagation.fit(vectors, labels)
    poison: NDArray[Any] = propagation.label_distributions_[:, 1]
    return poison
