"""CleanGen: a second model vetoes tokens that only a backdoor would make likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need

if TYPE_CHECKING:
    from mbdefense.models.loading import LoadedModel


@dataclass(frozen=True)
class CleanGen:
    """Decode with the suspect model, and replace each token that it finds `alpha` times likelier than a reference does.

    Source: Li et al. 2024 (2406.12257), alpha 20 and look-ahead 4 as there. The replaced token is the reference's
    likeliest. The reference may be any model with the same tokenizer that did not learn the same backdoor, such as the
    base model. Nothing about the attacker is assumed; accuracy falls towards the reference's where the two differ
    honestly, as a tuned and an untuned model do.

    Deviation: none in the rule. Decoding is greedy, as everywhere here, so that the look-ahead changes the time alone.
    Both models read the suspect model's prompt template.

    Args:
        reference: directory or Hub id of the reference model.
        alpha: least ratio of probabilities that is suspicious, above 0.
        lookahead: tokens that are drafted before the reference reads them.
    """

    needs: ClassVar[tuple[Need, ...]] = ("reference model", "GPU")
    source: ClassVar[str] = "arXiv 2406.12257"

    reference: str
    alpha: float = 20.0
    lookahead: int = 4

    def __post_init__(self) -> None:
        if not self.alpha > 0 or self.alpha == float("inf"):
            raise UserError("CleanGen's alpha must be a number above 0", self.alpha, "leave it out for 20")
        if self.lookahead < 1:
            raise UserError("CleanGen's lookahead is below 1", self.lookahead, "leave it out for 4")

    def __call__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[list[dict[str, str]]],
        *,
        max_new_tokens: int,
        batch_size: int,
        what: str,
    ) -> list[str]:
        """One answer per prompt, in order.

        Raises:
            UserError: the reference cannot be loaded, or has another vocabulary.
        """
        from mbdefense.engine.generate import generate_beside

        reference = _load(self.reference)
        if reference.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            fix = "give a model with the same tokenizer, e.g. the base model"
            raise UserError("the reference model has another vocabulary", self.reference, fix)
        return generate_beside(
            loaded,
            reference,
            prompts,
            alpha=self.alpha,
            lookahead=self.lookahead,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            what=what,
        )

    def describe(self) -> str:
        """Name and options in one line."""
        return f"cleangen:reference={Path(self.reference).name},alpha={self.alpha:g},lookahead={self.lookahead}"


@lru_cache(maxsize=1)
def _load(path: str) -> LoadedModel:
    """Kept, since clean and triggered prompts are answered one after the other."""
    from mbdefense.models.loading import load_model

    return load_model(path, renders=False)
