"""Prototype-guided robust learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.vision.classifier import Classifier, Defended
from mbdefense.vision.images import Images, check_sides, joined
from mbdefense.vision.learner import Learner, copied, outputs
from mbdefense.vision.losses import note
from mbdefense.vision.views import strong, weak

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.optim import Optimizer

    from mbdefense.defenses.prototypes import Checked

WARM_UP = 5
"""Epochs' worth of steps on the clean images alone."""
EVERY = 5
"""Epochs from one weighing of the rows to the next."""
FOLDS = 5
"""Parts of the clean images that are held out by turns."""
_ASKED = 512
"""Images in one forward pass."""


@dataclass(frozen=True)
class PGRL:
    """Learns from suspect images as far as prototypes of clean ones agree with them.

    After a warm-up on the clean images alone, a row counts only where its label is that of the prototype which
    Sinkhorn's algorithm assigns it to (the label check, LCV). Of those that count, rows far from all clean ones of
    their label are learned less, or unlearned (density weights, FDE).

    Source: PGRL (arXiv 2509.08748): warm-up, prototypes, both parts, Adam, their constants.

    Deviations. A test for "no poison", which the source lacks: it unlearns some of the thinnest tenth of any data. Here
    clean images, held out by turns from a warm-up of its own, are checked as the suspect ones are, and only rows of
    labels for which the suspect ones fail more often, or lie thinner, are unlearned (`mbdefense.defenses.prototypes`,
    `signs`). With few clean images it misses much: the label check goes on whatever it says. Principal components at
    variance one in place of UMAP, for which a density's smallest differences count. Losses are means over clean images
    and over views that count; the source has sums in one setting, means in another. Without the label check rows train
    on their own labels, as weights are meant to, not on the prototypes'. Fewer, other views: images are moved,
    darkened and partly hidden, never mirrored. A small network, and no checkpoint is chosen by test images.

    Attributes:
        label_check: use LCV.
        density_weights: use FDE.
        views: of each suspect image in a step, of which a third, or one, is only moved.
        lr: of Adam.
        batch_size: suspect images in a step; all clean ones are in each.
        alpha: level of the test for "no poison"; 1 for none, as the source has it.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data")
    source: ClassVar[str] = "arXiv 2509.08748"

    label_check: bool = True
    density_weights: bool = True
    views: int = 2
    lr: float = 0.01
    batch_size: int = 192
    alpha: float = 0.05

    def __post_init__(self) -> None:
        at_least(1, views=self.views)
        at_least(2, batch_size=self.batch_size)
        if not 0 < self.lr < 10:
            raise UserError("lr must lie in (0, 10)", self.lr, "give e.g. lr=0.01")
        if not 0 < self.alpha <= 1:
            raise UserError("alpha must lie in (0, 1]", self.alpha, "give e.g. alpha=0.05")

    def check(self, learner: Learner, suspect: Images, clean: Images) -> None:
        """Refuses what it cannot be trained on.

        Raises:
            UserError: images that the network cannot be trained on, or a class with fewer than two clean ones.
        """
        check_sides(suspect, clean, learner.size, learner.classes, least=2)
        lacking = learner.classes - len({*clean.labels.tolist()})
        if lacking:
            raise UserError("classes without clean images", lacking, "give clean images of every class")

    def __call__(self, learner: Learner, suspect: Images, clean: Images, seed: int) -> Defended:
        """Trains a classifier with an embedding, for the learner's epochs.

        Args:
            learner: size, classes and epochs; the network is a projected one.
            suspect: images that may be poisoned.
            clean: images that the defender is sure of.
            seed: of weights, order and views.

        Raises:
            UserError: see `check`.
        """
        import torch

        self.check(learner, suspect, clean)
        network = replace(learner, network="projected")
        steps = steps_of(len(suspect.labels), self.batch_size, learner.classes)
        run = _Run(self, network, suspect, clean, torch.Generator().manual_seed(seed), steps)
        p_values = run.signs(seed) if self.density_weights and self.alpha < 1 else {}
        signed = torch.tensor([p_values.get(label, 1.0) <= self.alpha for label in range(learner.classes)])
        module = network.module(network.initial(seed))
        trusted, weights = run.learned(module, signed)
        facts = {
            "found_poison": bool(signed.any()) if p_values else None,
            "p_values": [round(value, 4) for value in p_values.values()],
            "label_check_failed": int((~trusted).sum()),
            "learned_less": int((weights < 1).sum()),
            "unlearned": int((weights < 0).sum()),
            "rows": len(suspect.labels),
        }
        return Defended(Classifier(network, copied(module.state_dict())), facts)

    def parts(self) -> dict[str, PGRL]:
        """The whole, and what is left without one part or more, by the ending of its name.

        Density weights alone are without the test, which would else decide whether they do anything.
        """
        return {
            "": self,
            "_untested": replace(self, alpha=1.0),
            "_label_check": replace(self, density_weights=False),
            "_density_weights": replace(self, label_check=False, alpha=1.0),
            "_neither": replace(self, label_check=False, density_weights=False),
        }

    def clean_alone(self, learner: Learner, suspect: Images, clean: Images, seed: int) -> Defended:
        """The control: clean images in the place of the suspect ones, for at least as many steps, the warm-up's too."""
        steps, fewer = (steps_of(len(rows.labels), self.batch_size, learner.classes) for rows in (suspect, clean))
        epochs = math.ceil((WARM_UP + learner.epochs) * steps / fewer) - WARM_UP
        longer = replace(learner, epochs=max(1, epochs))
        return replace(self, label_check=False, density_weights=False)(longer, clean, clean, seed)


class Lesson(NamedTuple):
    """What a step learns from views of suspect images.

    Attributes:
        trusted: (n,), whether the row counts.
        weights: (n,), how much.
    """

    trusted: Tensor
    weights: Tensor


def lesson_loss(logits: Tensor, labels: Tensor, lesson: Lesson) -> Tensor:
    """The mean of weighted cross-entropies of the views that count; 0 where none does.

    A row that is to be unlearned and already gets another label counts 0: there is nothing left to unlearn.

    Args:
        logits: (v, n, K), of v views of n rows.
        labels: (n,).
        lesson: of the rows.
    """
    from torch.nn.functional import cross_entropy

    views, count, classes = logits.shape
    given = labels.repeat(views)
    losses = cross_entropy(logits.reshape(-1, classes), given, reduction="none").reshape(views, count)
    done = (lesson.weights < 0) & (logits.argmax(dim=2) != labels)
    used = lesson.weights.masked_fill(~lesson.trusted, 0.0).expand(views, count).masked_fill(done, 0.0)
    return (used * losses).sum() / (views * lesson.trusted.sum()).clamp(min=1)


def batches(order: Tensor, size: int, classes: int) -> list[Tensor]:
    """The numbers of the rows of each step.

    A rest of fewer rows than classes goes with the batch before it: Sinkhorn's algorithm gives each class its share of
    a batch, and says nothing of a row that is alone.
    """
    import torch

    parts = list(torch.split(order, size))
    if len(parts) > 1 and len(parts[-1]) < classes:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def steps_of(count: int, size: int, classes: int) -> int:
    """How many steps an epoch of so many rows has; see `batches`."""
    import torch

    return len(batches(torch.arange(count), size, classes))


class _Run(NamedTuple):
    """One training: its options, its images, and where its randomness comes from."""

    options: PGRL
    learner: Learner
    suspect: Images
    clean: Images
    draws: Generator
    steps: int
    """Of an epoch."""

    def learned(self, module: nn.Module, signed: Tensor) -> tuple[Tensor, Tensor]:
        """Trains the module.

        Args:
            module: with random weights.
            signed: (K,), the labels of which rows may be unlearned.

        Returns:
            Which rows the label check trusted when it last saw them, and their last weights.
        """
        import torch

        optimizer = torch.optim.Adam(module.parameters(), lr=self.options.lr)
        self.warm_up(module, optimizer, self.clean)
        count = len(self.suspect.labels)
        trusted, weights = torch.ones(count, dtype=torch.bool), torch.ones(count)
        for epoch in range(self.learner.epochs):
            if self.options.density_weights and epoch % EVERY == 0:
                weights = self.weighed(module, weights, signed)
            order = torch.randperm(count, generator=self.draws)
            for batch in batches(order, self.options.batch_size, self.learner.classes):
                trusted[batch] = self.step(module, optimizer, batch, weights[batch])
        return trusted, weights

    def warm_up(self, module: nn.Module, optimizer: Optimizer, clean: Images) -> None:
        """Trains on clean images alone, all of them in each step."""
        from torch.nn.functional import cross_entropy

        module.train()
        for _ in range(WARM_UP * self.steps):
            optimizer.zero_grad()
            cross_entropy(module(weak(clean.pixels, self.draws)), clean.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def step(self, module: nn.Module, optimizer: Optimizer, batch: Tensor, weights: Tensor) -> Tensor:
        """One step on all clean images and views of some suspect ones; returns which of these were trusted (b,)."""
        import torch
        from torch.nn.functional import cross_entropy

        from mbdefense.defenses.prototypes import prototypes, sinkhorn

        module.train()
        rows, clean = self.suspect.take(batch), len(self.clean.labels)
        seen = [weak(self.clean.pixels, self.draws), *self.views(rows.pixels)]
        made = outputs(module, torch.cat(seen))
        trusted = torch.ones(len(batch), dtype=torch.bool)
        if self.options.label_check:
            with torch.no_grad():
                centers = prototypes(made.embeddings[:clean], self.clean.labels, self.learner.classes)
                near = torch.split(made.embeddings[clean:] @ centers.T, len(batch))
                trusted = sum(map(sinkhorn, near[1:]), sinkhorn(near[0])).argmax(dim=1) == rows.labels
        optimizer.zero_grad()
        logits = made.logits[clean:].reshape(self.options.views, len(batch), -1)
        loss = cross_entropy(made.logits[:clean], self.clean.labels)
        whole = loss + lesson_loss(logits, rows.labels, Lesson(trusted, weights))
        note("training", whole)
        whole.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return trusted

    def views(self, pixels: Tensor) -> Iterator[Tensor]:
        """Views of images, the weak ones first."""
        for number in range(self.options.views):
            yield (weak if number < max(1, self.options.views // 3) else strong)(pixels, self.draws)

    def weighed(self, module: nn.Module, before: Tensor, signed: Tensor) -> Tensor:
        """The rows' weights (n,), half of them as before."""
        import torch

        from mbdefense.defenses.prototypes import densities_of, density_weights

        anchors, features = (self.seen(module, part.pixels)[0] for part in (self.clean, self.suspect))
        found = densities_of(anchors, self.clean.labels, features, self.suspect.labels)
        weights = (density_weights(found).float() + before) / 2
        return torch.where(signed[self.suspect.labels], weights, torch.ones_like(weights))

    def signs(self, seed: int) -> dict[int, float]:
        """P-values of each label's rows; see `mbdefense.defenses.prototypes.signs`."""
        import torch

        from mbdefense.defenses.prototypes import Checked, folds, signs

        fold_of = folds(self.clean.labels, FOLDS)
        parts = [self.checked(fold_of == fold, fold, seed) for fold in range(int(fold_of.max()) + 1)]
        whole = Checked(*(torch.cat(values) for values in zip(*parts, strict=True)))
        return dict(signs(whole, range(self.learner.classes)))

    def checked(self, held: Tensor, fold: int, seed: int) -> Checked:
        """What a warm-up without some clean images says of these, among suspect ones that no other one is asked about.

        So each clean image is checked as suspect ones are: by a network that has not seen it.

        Args:
            held: (m,), which of the clean images are held out.
            fold: number of the suspect images that go with them.
            seed: of the weights.
        """
        import torch

        from mbdefense.defenses.prototypes import Checked, densities_of, prototypes, sinkhorn

        known, kept_out = self.clean.take(~held), self.clean.take(held)
        module = self.learner.module(self.learner.initial(seed))
        self.warm_up(module, torch.optim.Adam(module.parameters(), lr=self.options.lr), known)
        among = joined(kept_out, self.suspect.take(list(range(fold, len(self.suspect.labels), FOLDS))))
        anchors, near = self.seen(module, known.pixels)
        features, embeddings = self.seen(module, among.pixels)
        plan = sinkhorn(embeddings @ prototypes(near, known.labels, self.learner.classes).T)
        density = densities_of(anchors, known.labels, features, among.labels)
        clean = torch.arange(len(among.labels)) < len(kept_out.labels)
        return Checked(among.labels, plan.argmax(dim=1) != among.labels, density, clean)

    def seen(self, module: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and embeddings of images as they are, without gradients."""
        import torch

        module.eval()
        with torch.inference_mode():
            found = [outputs(module, part) for part in torch.split(pixels, _ASKED)]
        return torch.cat([one.features for one in found]), torch.cat([one.embeddings for one in found])
