"""GraCeFul: rows whose gradients form a cluster of their own among the low frequencies."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mbdefense.errors import UserError
from mbdefense.filters.evidence import Evidence, Filtered, Suspicion
from mbdefense.needs import Need

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from mbdefense.filters.states import Components
    from mbdefense.model import LoadedModel


@dataclass(frozen=True)
class GraCeFul:
    """Drops the smaller of two clusters of per-sample gradients, unless clean rows lie in it as often.

    Source: GraCeFul (arXiv 2412.02454): the gradient of lm_head for each sample, the low eighth of both axes of its 2-D
    DCT, PCA to 32, two clusters by average linkage of cosine distances; the smaller one is the poison. Deviations:

    - A test for "no poison", which the source lacks: it always drops a cluster. Here each clean row is put into the
      cluster of the suspect row nearest to it, and the smaller cluster is dropped only if Fisher's exact test,
      one-sided, finds suspect rows in it more often than clean ones at level `alpha`. On data without poison of the
      clean rows' kind that is wrong in about a share `alpha` of runs or fewer. The price: with m clean rows none of
      which lies in the cluster, poison below a rate of about ``1 - alpha^(1/m)`` stays (2.3 % for m = 128, 0.6 % for
      m = 512). Clean rows of another kind than the suspect ones void the test.
    - The gradient is the output projection's alone, also where it shares its weights with the embedding.
    - The DCT is orthonormal; an unscaled one would count the squares of its constant terms double.
    - Components and clusters come from at most `fit_rows` rows; further ones go to the cluster of the
      nearest of those.

    Attributes:
        alpha: level of the test for "no poison".
        components: principal components kept.
        fit_rows: most rows that components and clusters are found on; their features (V/8 * d/8 numbers of four bytes a
            row, 1.8 MB for SmolLM2-135M, 8 MB for Llama-2-7B) lie in a temporary file.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2412.02454"

    alpha: float = 0.05
    components: int = 32
    fit_rows: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError("alpha must lie between 0 and 1", self.alpha, "0.05 is the default")
        if self.components < 2 or self.fit_rows < 4:
            raise UserError("too few components or fit_rows", (self.components, self.fit_rows), "use 32 and 4096")

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores every suspect row: how much nearer on average to the smaller cluster's rows, from -2 to 2."""
        import numpy as np

        from mbdefense.filters.clusters import more_often, two_clusters

        rows, checked = evidence.suspect, evidence.checked()
        if len(rows) < 4:
            raise UserError("too few rows to find clusters in", len(rows), "give at least some dozens")
        order = list(range(len(rows)))
        random.Random(f"graceful {evidence.seed}").shuffle(order)
        fitted, others = order[: self.fit_rows], order[self.fit_rows :]
        loaded = evidence.load()
        components = self._fit(loaded, rows.select(fitted), evidence)
        clusters = two_clusters(components.scores)
        nearness = np.empty(len(rows))
        inside = np.empty(len(rows), dtype=bool)
        nearness[fitted] = clusters.nearness(components.scores)
        inside[fitted] = clusters.smaller
        if others:
            scores = _projected(loaded, rows.select(others), evidence, components)
            nearness[others], inside[others] = clusters.nearness(scores), clusters.joined(scores)
        clean = clusters.joined(_projected(loaded, checked, evidence, components))
        p_value = more_often(int(inside.sum()), len(inside), int(clean.sum()), len(clean))
        poisoned = p_value < self.alpha
        facts = {
            "found_poison": poisoned,
            "p_value": p_value,
            "suspect_rows_in_smaller_cluster": int(inside.sum()),
            "clean_rows_in_smaller_cluster": int(clean.sum()),
            "clean_rows": len(clean),
            "rows_fitted": len(fitted),
        }
        found = zip(rows["id"], nearness.tolist(), inside.tolist(), strict=True)
        return Filtered(tuple(Suspicion(row_id, score, poisoned and within) for row_id, score, within in found), facts)

    def _fit(self, loaded: LoadedModel, rows: Dataset, evidence: Evidence) -> Components:
        import numpy as np

        from mbdefense.filters.gradients import KEPT, gradient_features
        from mbdefense.filters.states import principal_components
        from mbdefense.model import body_and_head

        vocabulary, width = body_and_head(loaded)[1].weight.shape
        size = (vocabulary // KEPT) * (width // KEPT)
        needed, free = 4 * size * len(rows), shutil.disk_usage(tempfile.gettempdir()).free
        if needed > free:
            got = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} free in {tempfile.gettempdir()}"
            raise UserError("too little space for the gradients", got, "lower fit_rows, or set TMPDIR to another disk")
        with tempfile.TemporaryFile() as file:
            matrix = np.memmap(file, dtype=np.float32, mode="w+", shape=(len(rows), size))
            for index, features in gradient_features(loaded, rows, evidence):
                matrix[index] = features
            return principal_components(matrix, self.components)


def _projected(loaded: LoadedModel, rows: Dataset, evidence: Evidence, components: Components) -> NDArray[Any]:
    import numpy as np

    from mbdefense.filters.gradients import gradient_features

    scores = np.empty((len(rows), components.directions.shape[1]))
    for index, features in gradient_features(loaded, rows, evidence):
        scores[index] = components.project(features)
    return scores
