"""Defenses that act while the model answers: other ways to decode, one file each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mbdefense.defenses.decoding.cleangen import CleanGen

if TYPE_CHECKING:
    from mbdefense.models.loading import LoadedModel

__all__ = ["DECODINGS", "CleanGen", "Decoding"]


class Decoding(Protocol):
    """A frozen dataclass whose fields are the options; what it needs besides the model, it loads itself."""

    def __call__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[list[dict[str, str]]],
        *,
        max_new_tokens: int,
        batch_size: int,
        what: str,
    ) -> list[str]:
        """One answer per prompt, in order; see `mbdefense.engine.generate.generate`."""
        ...

    def describe(self) -> str:
        """Name and options in one line."""
        ...


DECODINGS: dict[str, type] = {
    "cleangen": CleanGen,
}
