"""What a filter is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.data import unlabelled
from mbdefense.models.loading import LoadedModel, load_model
from mbdefense.records.filtering import Suspicion

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Evidence:
    """All that a filter may know: no poison label, no trigger, no behavior.

    Attributes:
        base: the model to be tuned on the rows: directory or Hub id.
        suspect: untrusted rows; their labels are removed here.
        clean: rows checked by eye, or None; a filter asks for them by `checked`.
        seed: of everything random.
        max_length: most tokens of prompt and response together; longer rows lose the start of their prompt.
        batch_size: rows in one forward pass.
        chat_template: file with a prompt template, or None for the model's own.
        trust_remote_code: see `mbdefense.models.loading.load_model`.
    """

    base: str
    suspect: Dataset
    clean: Dataset | None
    seed: int = 0
    max_length: int = 1024
    batch_size: int = 8
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 16 or self.batch_size < 1:
            raise UserError(
                "max_length or batch_size is too small", (self.max_length, self.batch_size), "use at least 16 and 1"
            )
        for name in ("suspect", "clean"):
            rows = getattr(self, name)
            if rows is None:
                continue
            object.__setattr__(self, name, unlabelled(rows))
            if not len(rows):
                raise UserError(f"there are no {name} rows", fix="give a data set with at least one row")

    def checked(self) -> Dataset:
        """The clean rows.

        Raises:
            UserError: there are none.
        """
        if self.clean is None:
            raise UserError("this filter needs clean rows", fix="give a file of rows checked by eye with --clean")
        return self.clean

    def load(self, model: str | None = None) -> LoadedModel:
        """The base model, or another one, with the prompt template that tuning will use."""
        return load_model(
            model or self.base, chat_template=self.chat_template, trust_remote_code=self.trust_remote_code
        )


class Filtered(NamedTuple):
    """A filter's verdict on every suspect row, in order, and the figures it rests on."""

    suspicions: tuple[Suspicion, ...]
    facts: Mapping[str, object]
