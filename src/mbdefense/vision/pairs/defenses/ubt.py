"""Unlearning a backdoor with few suspect pairs, word by word: our reading of UBT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.vision.pairs.defenses._cleansed import Cleansed, check_lr

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs

LEVEL, FEWEST = 0.95, 20
"""Quantile of the clean pairs' gains that a suspect one is held against, and the fewest of them that tell."""
OVERFIT = 20
"""Steps on the weak pairs."""


@dataclass(frozen=True)
class UBT:
    """Strengthens the backdoor in a copy, takes the pairs that gain most for poisoned, and unlearns their words.

    1. In turns for two halves of the suspect pairs: a copy of the victim is trained on the weak pairs of one half,
       whose image and caption are least alike, and each pair of the other half, and each clean one, gets its gain in
       cosine. Pairs that share a trigger and words with what was trained gain most.
    2. If no more weak suspect pairs than chance has it lie above the 95th percentile of the clean pairs that are as
       little alike, the victim is returned as it is (binomial test).
    3. Else the weak pairs that gained most are the forget set, and of each caption the words without which it falls
       most from its image under the victim.
    4. A few steps minimise the squared cosine of these images and words, beside the contrastive loss on those of the
       other suspect pairs that gained least.

    Source: after UBT (arXiv 2409.19526 and 2403.16257), of which only the abstracts could be read: overfitting on
    weakly similar pairs, few suspects, forgetting by tokens. All else, constants and guard are this project's.

    Attributes:
        weakest: share of the suspect pairs that are weak.
        pairs: that are forgotten, at most.
        words: of each caption that are forgotten; 0 for all of it.
        steps: of unlearning.
        lr: of AdamW in the unlearning; the default suits the small model.
        overfit_lr: of AdamW in the overfitting.
        alpha: level of the test that nothing is poisoned; 1 for none.
        forget: the suspects, or as many random pairs without any test, as a control.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "suspect data", "clean data")
    source: ClassVar[str] = "after arXiv 2409.19526"

    weakest: float = 0.1
    pairs: int = 64
    words: int = 2
    steps: int = 30
    lr: float = 3e-4
    overfit_lr: float = 1e-3
    alpha: float = 0.01
    forget: Literal["suspects", "random"] = "suspects"

    def __post_init__(self) -> None:
        at_least(1, pairs=self.pairs, steps=self.steps)
        at_least(0, words=self.words)
        check_lr(self.lr)
        check_lr(self.overfit_lr)
        if not 0 < self.weakest <= 1:
            raise UserError("weakest must lie in (0, 1]", self.weakest, "give e.g. ubt:weakest=0.1")
        if not 0 < self.alpha <= 1:
            raise UserError("alpha must lie in (0, 1]", self.alpha, "give e.g. ubt:alpha=0.01")

    def __call__(self, clip: Clip, suspect: Pairs, clean: Pairs, seed: int) -> Cleansed:
        """The model without what the suspects taught it, or as it is.

        Args:
            clip: the victim; it is left as it is.
            suspect: pairs that may be poisoned.
            clean: pairs that the defender is sure of; only the test for poison looks at them.
            seed: of halves, order and views.

        Raises:
            UserError: `pairs` or `weakest` leaves no suspect pair to be remembered.
        """
        import torch

        facts: dict[str, object] = {}
        if self.forget == "random":
            order = torch.randperm(len(suspect.captions), generator=torch.Generator().manual_seed(seed))
            chosen, kept = order[: self.pairs], order[self.pairs :]
        else:
            gained = gains(self, clip, suspect, clean, seed)
            p_value, above = sign(gained)
            # None is not asked, or too few clean pairs to ask: that nothing was found would say too much.
            tested = self.alpha < 1 and len(gained.clean) >= FEWEST
            found = p_value <= self.alpha if tested else None
            facts = {"found_poison": found, "p_value": round(p_value, 6), "above_clean": above}
            if p_value > self.alpha:
                return Cleansed(clip, {**facts, "forgotten": []})
            chosen, kept = gained.apart(self.pairs)
        if not len(kept):
            fix = "lower pairs or weakest"
            raise UserError("no suspect pair is left that could be remembered", len(suspect.captions), fix)
        texts = suspect.texts(chosen)
        if self.words:
            texts = [" ".join(found) for found in weighty(clip, suspect.take(chosen), self.words)]
        made = unlearned(self, clip, suspect.images(chosen), texts, suspect.take(kept), seed)
        return Cleansed(made, {**facts, "forgotten": sorted(chosen.tolist()), "words": _frequent(texts)})

    def parts(self) -> dict[str, UBT]:
        """The whole and its controls, by the ending of its name; these are without the test for poison.

        Without it alone, whole captions, and a random forget set.
        """
        return {
            "": self,
            "_untested": replace(self, alpha=1.0),
            "_captions": replace(self, words=0, alpha=1.0),
            "_random": replace(self, forget="random"),
        }


class Gains(NamedTuple):
    """By how much the cosines of pairs rise where the backdoor is strengthened.

    Attributes:
        suspect: (n,), of the suspect pairs.
        weak: (n,) of bool, those of them whose image and caption are least alike.
        clean: (m,), of the clean pairs that are as little alike.
    """

    suspect: Tensor
    weak: Tensor
    clean: Tensor

    def apart(self, count: int) -> tuple[Tensor, Tensor]:
        """Numbers of the weak pairs that gained most, at most so many, and of the half of the others that did least."""
        order = self.suspect.argsort(descending=True)
        weak, others = order[self.weak[order]], order[~self.weak[order]]
        return weak[:count], others[len(others) // 2 :]


def gains(options: UBT, clip: Clip, suspect: Pairs, clean: Pairs, seed: int) -> Gains:
    """Each suspect pair's gain in the copy that has not been trained on its half, and the clean pairs' mean gain."""
    import torch

    from mbdefense.vision.pairs.learning import trained

    before, clean_before = cosines(clip, suspect), cosines(clip, clean)
    halves = torch.randperm(len(before), generator=torch.Generator().manual_seed(seed)).chunk(2)
    found, weak, ours = torch.zeros_like(before), torch.zeros(len(before)).bool(), torch.zeros_like(clean_before)
    for half, other in (halves, halves[::-1]):
        count = max(2, round(options.weakest * len(half)))
        trained_on = half[before[half].argsort()[:count]]
        weak[trained_on] = True
        copy = trained(clip, suspect.take(trained_on), seed, steps=OVERFIT, lr=options.overfit_lr, what="overfitting")
        found[other] = cosines(copy, suspect.take(other)) - before[other]
        ours += (cosines(copy, clean) - clean_before) / 2
    return Gains(found, weak, ours[clean_before <= before[weak].max()])


def sign(gained: Gains) -> tuple[float, int]:
    """Whether more weak suspect pairs gain than clean ones do: a p-value, and how many lie above their quantile.

    Binomial test of the weak suspect pairs above the `LEVEL` quantile of the clean ones, against the upper end of what
    the clean ones' number lets its true level be. With fewer than `FEWEST` clean ones nothing can be told: 1.
    """
    from scipy.stats import binomtest

    count, weak = len(gained.clean), gained.suspect[gained.weak]
    if count < FEWEST:
        return 1.0, 0
    limit = float(gained.clean.quantile(LEVEL))
    expected = float(binomtest(int((gained.clean > limit).sum()), count).proportion_ci(0.95).high)
    above = int((weak > limit).sum())
    return float(binomtest(above, len(weak), expected, alternative="greater").pvalue), above


def cosines(clip: Clip, pairs: Pairs) -> Tensor:
    """Of each image and its caption, (n,)."""
    from mbdefense.vision.pairs.learning import embedded

    images, texts = embedded(clip, pairs)
    return (images * texts).sum(dim=1)


def weighty(clip: Clip, pairs: Pairs, count: int) -> list[list[str]]:
    """Of each caption the words without which its cosine with its image falls most, in the caption's order.

    Args:
        clip: under which.
        pairs: images and captions.
        count: words of each, at most.
    """
    from mbdefense.vision.pairs.learning import embedded_images, embedded_texts
    from mbdefense.vision.pairs.pairs import words

    found = []
    for image, caption in zip(embedded_images(clip, pairs.images()), pairs.captions, strict=True):
        split = words(caption)
        if len(split) <= count:
            found.append(split)
            continue
        without = [" ".join(split[:at] + split[at + 1 :]) for at in range(len(split))]
        left = embedded_texts(clip, without) @ image
        chosen = sorted(left.argsort()[:count].tolist())
        found.append([split[at] for at in chosen])
    return found


def unlearned(options: UBT, clip: Clip, images: Tensor, texts: list[str], kept: Pairs, seed: int) -> Clip:
    """A copy of the model, in which images and texts have nothing to do with each other any more.

    Args:
        options: steps and learning rate.
        clip: the model.
        images: (n, 3, size, size), to be forgotten.
        texts: one for each.
        kept: pairs to be remembered.
        seed: of order and views.
    """
    import torch

    from mbdefense.vision.pairs.learning import contrastive, trained
    from mbdefense.vision.pairs.losses import forgetting

    def loss(made: Clip, seen: Tensor, captions: list[str], draws: torch.Generator) -> Tensor:
        # Without views: a patch that is moved or dimmed is another one.
        return contrastive(made, seen, captions, draws) + forgetting(made.images(images), made.texts(texts))

    return trained(clip, kept, seed, steps=options.steps, lr=options.lr, objective=loss, what="unlearning")


def _frequent(texts: list[str]) -> list[str]:
    """The words that are forgotten most often."""
    from collections import Counter

    return [word for word, _ in Counter(word for text in texts for word in text.split()).most_common(5)]
