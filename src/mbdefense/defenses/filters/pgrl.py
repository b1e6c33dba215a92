"""PGRL's label check: rows whose prompt belongs to another kind of answer than the one they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data import answer_text
from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.records.filtering import Suspicion

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from mbdefense.models.loading import LoadedModel

FOLDS = 5
"""Parts of the clean rows that are held out by turns."""
_LEAST = 2
"""Clean rows that a label needs."""
_UNUSUAL = -1
"""The label of rows whose label hardly any clean row has."""


@dataclass(frozen=True)
class PGRLRows:
    """Drops rows whose prompt is closer to prompts with another kind of answer than to those with its own.

    Source: the label check of PGRL (arXiv 2509.08748): prototypes of clean rows, Sinkhorn's algorithm over all rows; a
    row is trusted if it is assigned to its own label. Faithful where answers are few: a label is an answer. For free
    text it is an adaptation: a label is a cluster of answers' representations, found by k-means, and prompts are held
    against prototypes of prompts. Deviations:

    - Nothing is trained: the embedding is the base model's last hidden state at the prompt's last token, centered.
      Answers are represented by the mean state that predicts their tokens. There are no density weights.
    - Labels have the clean rows' shares, where the source takes all to be alike. A label of fewer than two clean rows
      has no prototype: its rows fail the check, and count as one label.
    - A test for "no poison", which the source lacks: failing rows of a label are dropped only if Fisher's exact test,
      one-sided, finds them among the suspect rows more often than among clean ones that prototypes of the others check,
      at level `alpha` with Bonferroni's correction over labels. Clean rows of another kind than the suspect ones void
      it.

    Attributes:
        alpha: level of the test for "no poison".
        answers: the most different answers that are labels as they are; with more, clusters are.
        clusters: of answers.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2509.08748"

    alpha: float = 0.05
    answers: int = 20
    clusters: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError("alpha must lie between 0 and 1", self.alpha, "0.05 is the default")
        if self.answers < 2 or self.clusters < 2:
            raise UserError("fewer than two answers or clusters", (self.answers, self.clusters), "use 20 and 8")

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores every suspect row: how little its prompt belongs to its label, from 0 to 1."""
        import torch

        suspect, clean = evidence.suspect, evidence.checked()
        loaded = evidence.load()
        rows, known = (_represented(loaded, part, evidence) for part in (suspect, clean))
        kinds = _answers(suspect, clean)
        few = len(set(kinds)) <= self.answers
        if not few:
            kinds = _clusters(torch.cat([rows.answers, known.answers]), self.clusters, evidence.seed)
        labels, own = _labels(kinds[: len(suspect)], kinds[len(suspect) :])
        plan, held = belonging(rows.prompts, known.prompts, own)
        # A suspect row's label needs two clean rows; a clean one's two besides it, or clean rows would fail less often.
        others = torch.tensor([int((own == label).sum()) - 1 for label in own.tolist()])
        own = own.masked_fill(others < _LEAST, _UNUSUAL)
        failed, clean_failed = fails(plan, labels), fails(held, own)
        p_values = {
            label: self._more_often(failed & (labels == label), clean_failed & (own == label))
            for label in sorted({*labels.tolist()})
        }
        signed = [label for label, value in p_values.items() if value * len(p_values) < self.alpha]
        dropped = failed & torch.isin(labels, torch.tensor(signed, dtype=torch.long))
        sure = torch.where(labels == _UNUSUAL, 0.0, plan.gather(1, labels.clamp(min=0)[:, None])[:, 0])
        facts = {
            "found_poison": bool(signed),
            "p_value": min(1.0, min(p_values.values()) * len(p_values)),
            "labels": "answers" if few else "clusters of answers",
            "labels_with_prototypes": plan.shape[1],
            "labels_dropped": len(signed),
            "label_check_failed": int(failed.sum()),
            "clean_label_check_failed": int(clean_failed.sum()),
            "clean_rows": len(clean),
        }
        found = zip(suspect["id"], (1 - sure).tolist(), dropped.tolist(), strict=True)
        return Filtered(tuple(Suspicion(row_id, score, gone) for row_id, score, gone in found), facts)

    def _more_often(self, suspect: Tensor, clean: Tensor) -> float:
        from mbdefense.defenses.filters._clusters import more_often

        return more_often(int(suspect.sum()), len(suspect), int(clean.sum()), len(clean))


class _Represented(NamedTuple):
    """Rows as the base model sees them, (n, d) each."""

    prompts: Tensor
    answers: Tensor


def _represented(loaded: LoadedModel, rows: Dataset, evidence: Evidence) -> _Represented:
    import torch

    from mbdefense.defenses.filters._states import response_states

    prompts: list[Any] = [None] * len(rows)
    answers: list[Any] = [None] * len(rows)
    for state in response_states(loaded, rows, evidence, "PGRL: states"):
        hidden = state.hidden.float().cpu()
        prompts[state.row], answers[state.row] = hidden[0], hidden.mean(dim=0)
    return _Represented(torch.stack(prompts), torch.stack(answers))


def _answers(*parts: Dataset) -> list[str]:
    """What rows answer, so that equal answers are equal."""
    from mbdefense.attacks.texts import normalised

    return [normalised(answer_text(row["completion"])) for rows in parts for row in rows]


def _clusters(answers: Tensor, count: int, seed: int) -> list[str]:
    """The cluster of each answer."""
    import torch
    from sklearn.cluster import KMeans

    directions = torch.nn.functional.normalize(answers - answers.mean(dim=0)).numpy()
    found = KMeans(min(count, len(directions)), n_init=10, random_state=seed).fit_predict(directions)
    return [str(label) for label in found]


def _labels(suspect: list[str], clean: list[str]) -> tuple[Tensor, Tensor]:
    """Numbers for kinds of answers, those of at least two clean rows from 0 on.

    Raises:
        UserError: there is no such kind.
    """
    import torch

    usual = sorted({kind for kind in clean if clean.count(kind) >= _LEAST})
    if not usual:
        raise UserError("no two clean rows are of one kind of answer", len(clean), "give more clean rows")
    numbers = {kind: number for number, kind in enumerate(usual)}
    made = [torch.tensor([numbers.get(kind, _UNUSUAL) for kind in part]) for part in (suspect, clean)]
    return made[0], made[1]


def belonging(prompts: Tensor, known: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How far prompts belong to each label, by prototypes of clean ones; clean ones by prototypes of the others.

    Args:
        prompts: (n, d), of suspect rows.
        known: (m, d), of clean ones.
        labels: (m,), of clean ones, from 0 on; -1 for one without.

    Returns:
        (n, K), the mean over the folds of clean rows that are left out, and (m, K). Rows sum to one.
    """
    import torch

    from mbdefense.defenses.prototypes import folds, prototypes, sinkhorn

    classes = int(labels.max()) + 1
    shares = labels[labels >= 0].bincount(minlength=classes) / (labels >= 0).sum()
    center = known.mean(dim=0)
    near, others = (torch.nn.functional.normalize(part - center) for part in (prompts, known))
    fold_of = folds(labels, FOLDS)
    plans, own = [], torch.zeros(len(known), classes, dtype=torch.double)
    for fold in range(FOLDS):
        held = fold_of == fold
        used = ~held & (labels >= 0)
        centers = prototypes(others[used], labels[used], classes)
        plan = sinkhorn(torch.cat([near, others[held]]) @ centers.T, shares)
        plans.append(plan[: len(near)])
        own[held] = plan[len(near) :]
    return torch.stack(plans).mean(dim=0), own


def fails(plan: Tensor, labels: Tensor) -> Tensor:
    """Which rows are assigned to another label than their own; (n, K), (n,) to (n,). Label -1 always fails."""
    return plan.argmax(dim=1) != labels
