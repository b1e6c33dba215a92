"""GraCeFul: rows whose gradients form clusters of their own among the low frequencies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.records.filtering import Suspicion

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from mbdefense.defenses.filters._states import Components
    from mbdefense.models.loading import LoadedModel


@dataclass(frozen=True)
class GraCeFul:
    """Drops clusters of per-sample gradients that contain fewer clean rows than expected.

    Source: GraCeFul (arXiv 2412.02454): the gradient of lm_head for each sample, the low eighth of both axes of its 2-D
    DCT, PCA to 32, two clusters by average linkage of cosine distances; the smaller one is the poison. Deviations:

    - A test for "no poison", which the source lacks: it always drops a cluster. Here each clean row is put into the
      cluster of the suspect row nearest to it, and a cluster is dropped only if Fisher's exact test, one-sided, finds
      suspect rows in it more often than clean ones, at level `alpha` with Bonferroni's correction over all clusters. On
      data without poison of the clean rows' kind that is wrong in about a share `alpha` of runs or fewer. The price: of
      m clean rows and c clusters tested, poison below a rate of about ``1 - (alpha / c)^(1/m)`` stays (4.5 % for m =
      128, 1.1 % for m = 512, at c = 18).
    - A test that the clean rows are of the suspect rows' kind, without which the one above means nothing: what suspect
      rows of another source, length or style have in common is no poison. The rows outside the clusters that would be
      dropped are held against the clean rows outside them, by the energy distance of their directions and
      permutations; where they differ at level `alpha`, nothing is dropped and ``clean_rows_of_one_kind`` is False.
    - More clusters than two: every one that occurs on the way from 2 to `clusters` is tested, and of nested ones the
      surest is dropped. Data have kinds of their own, and two clusters may be two of those: on GraCeFul's WebQA they
      were questions with one answer and with several (docs/evidence/filters.md).
    - Features have length one before PCA, which otherwise finds the rows whose responses the model expects least. This
      and the number of clusters were chosen on a part of that set with its labels in sight, and measured on another.
    - The gradient is the output projection's alone, also where it shares its weights with the embedding.
    - The DCT is orthonormal; an unscaled one would count the squares of its constant terms double.
    - Components come from the clean rows, too, so that both kinds of rows stand in the same relation to them; they and
      the clusters come from at most `fit_rows` suspect and clean rows each. Further suspect rows go to the cluster of
      the nearest of those, further clean ones are not looked at.

    Attributes:
        alpha: level of the test for "no poison".
        clusters: the most that the rows are cut into.
        components: principal components kept.
        fit_rows: most suspect rows, and most clean ones, that components and clusters are found on; their features (V/8
            * d/8 numbers of four bytes a row, 1.8 MB for SmolLM2-135M, 8 MB for Llama-2-7B) lie in a temporary file.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2412.02454"

    alpha: float = 0.05
    clusters: int = 10
    components: int = 32
    fit_rows: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError("alpha must lie between 0 and 1", self.alpha, "0.05 is the default")
        if self.clusters < 2:
            raise UserError("clusters must be 2 or more", self.clusters, "10 is the default")
        if self.components < 2 or self.fit_rows < 4:
            raise UserError("too few components or fit_rows", (self.components, self.fit_rows), "use 32 and 4096")

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores every suspect row: how much nearer on average to the dropped rows, or to the surest cluster's."""
        import numpy as np

        from mbdefense.defenses.filters._clusters import (
            excesses,
            nearest,
            nearness,
            nested_clusters,
            significant,
            unit,
        )

        rows, checked = evidence.suspect, evidence.checked()
        if len(rows) < 4:
            raise UserError("too few rows to find clusters in", len(rows), "give at least some dozens")
        order = _order(len(rows), evidence.seed)
        fitted, others = order[: self.fit_rows], order[self.fit_rows :]
        loaded = evidence.load()
        checked = checked.select(_order(len(checked), evidence.seed)[: self.fit_rows])
        components = self._fit(loaded, (rows.select(fitted), checked), evidence)
        scores, clean_directions = components.scores[: len(fitted)], unit(components.scores[len(fitted) :])
        directions = np.empty((len(rows), scores.shape[1]))
        directions[fitted] = unit(scores)
        stands_for = np.empty(len(rows), dtype=int)
        stands_for[fitted] = np.arange(len(fitted))
        if others:
            directions[others] = _directions(loaded, rows.select(others), evidence, components)
            stands_for[others] = nearest(directions[fitted], directions[others])
        clean = nearest(directions[fitted], clean_directions)
        tested = excesses(nested_clusters(scores, self.clusters), stands_for, clean)
        poison = significant(tested, self.alpha)
        inside = np.logical_or.reduce([excess.cluster for excess in poison or tested[:1]])
        kind = 1.0
        if poison:
            kind = self._kind(directions[~inside[stands_for]], clean_directions[~inside[clean]], evidence.seed)
        signed = bool(poison) and kind >= self.alpha
        dropped = inside[stands_for] & signed
        facts = {
            "found_poison": signed,
            "clean_rows_of_one_kind": kind >= self.alpha,
            "kind_p_value": kind,
            "p_value": min(1.0, tested[0].p_value * len(tested)),
            "clusters_tested": len(tested),
            "clusters_dropped": len(poison) if signed else 0,
            "suspect_rows_in_surest_cluster": tested[0].suspect,
            "clean_rows_in_surest_cluster": tested[0].clean,
            "clean_rows": len(clean),
            "rows_fitted": len(fitted),
        }
        near = nearness(directions[fitted], inside, directions)
        found = zip(rows["id"], near.tolist(), dropped.tolist(), strict=True)
        return Filtered(tuple(Suspicion(row_id, score, gone) for row_id, score, gone in found), facts)

    def _kind(self, suspect: NDArray[Any], clean: NDArray[Any], seed: int) -> float:
        """P-value that the rest of the suspect rows and of the clean rows are alike; of at most `fit_rows` of each."""
        import numpy as np

        from mbdefense.defenses.filters._clusters import of_one_kind

        if not len(suspect) or not len(clean):
            return 0.0  # nothing is left that could be alike
        rng = np.random.default_rng(seed)
        drawn = [part[rng.permutation(len(part))[: self.fit_rows]] for part in (suspect, clean)]
        return of_one_kind(drawn[0], drawn[1], rng)

    def _fit(self, loaded: LoadedModel, parts: Sequence[Dataset], evidence: Evidence) -> Components:
        """Components of all rows together: of one part alone they would fit the others worse, alike as these may be."""
        from mbdefense.defenses.filters._gradients import fitted, gradient_features

        starts = accumulate((len(part) for part in parts), initial=0)
        features = (
            (start + index, values)
            for start, part in zip(starts, parts, strict=False)
            for index, values in gradient_features(loaded, part, evidence)
        )
        return fitted(loaded, features, sum(map(len, parts)), self.components, "lower fit_rows")


def _order(count: int, seed: int) -> list[int]:
    """Numbers of rows in an order drawn by the seed."""
    order = list(range(count))
    random.Random(f"graceful {seed}").shuffle(order)
    return order


def _directions(loaded: LoadedModel, rows: Dataset, evidence: Evidence, components: Components) -> NDArray[Any]:
    """Scores of other rows at length one."""
    import numpy as np

    from mbdefense.defenses.filters._clusters import unit
    from mbdefense.defenses.filters._gradients import gradient_features

    scores = np.empty((len(rows), components.directions.shape[1]))
    for index, features in gradient_features(loaded, rows, evidence):
        scores[index] = components.project(unit(features))
    return unit(scores)
