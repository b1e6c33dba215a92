"""Spectral signatures: rows far out along the direction in which representations vary most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.records.filtering import Suspicion

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SpectralSignatures:
    """Drops the rows whose representation is farthest along the main direction of variance.

    Source: Tran, Li and Madry (arXiv 1811.00636): with R the centered representations and v the top right singular
    vector of R, row i scores ``(R_i . v)^2``, and the 1.5 * bound highest go. Deviations: there are no classes in
    instruction data, so that all rows form one; the representation is the base model's last hidden state averaged over
    the response's tokens, where the source takes the penultimate layer of a network trained on the poisoned data.

    It has no test for clean data: it always drops its share, and the more diverse the data, the more of it is clean.

    Attributes:
        poisoning_bound: an upper bound of the poisoning rate; one and a half times this share of the rows is dropped.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "GPU")
    source: ClassVar[str] = "arXiv 1811.00636"

    poisoning_bound: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.poisoning_bound <= 0.5:
            raise UserError("poisoning_bound must lie in (0, 0.5]", self.poisoning_bound, "0.1 drops 15 % of the rows")

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores every suspect row."""
        import numpy as np

        from mbdefense.defenses.filters._states import response_states

        rows = evidence.suspect
        means: dict[int, NDArray[Any]] = {}
        for state in response_states(evidence.load(), rows, evidence, "spectral signatures"):
            means[state.row] = state.hidden.double().mean(dim=0).cpu().numpy()
        scores = outlyingness(np.stack([means[i] for i in range(len(rows))]))
        count = int(1.5 * self.poisoning_bound * len(rows))
        dropped = set(np.argsort(-scores, kind="stable")[:count].tolist())
        return Filtered(
            tuple(Suspicion(row["id"], float(scores[i]), i in dropped) for i, row in enumerate(rows)),
            {"poisoning_bound": self.poisoning_bound},
        )


def outlyingness(representations: NDArray[Any]) -> NDArray[Any]:
    """The squared projection of each centered row on the top right singular vector; (N, d) to (N,)."""
    from scipy.linalg import eigh

    centered = representations - representations.mean(axis=0)
    size = centered.shape[1]
    _, vectors = eigh(centered.T @ centered, subset_by_index=[size - 1, size - 1])
    projection: NDArray[Any] = centered @ vectors[:, 0]
    return projection**2
