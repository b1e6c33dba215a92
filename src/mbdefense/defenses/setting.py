"""What every defense is given."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.data import unlabelled
from mbdefense.data.turns import every_turn
from mbdefense.defenses._needs import check
from mbdefense.models.loading import CARD_FILE
from mbdefense.training.job import Job, Model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

if TYPE_CHECKING:
    from datasets import Dataset

VICTIM = "attacked"
"""Name of the undefended model in a store."""


@dataclass(frozen=True)
class Setting:
    """Everything a defense may know. The attacker's trigger and behavior, and which rows are poisoned, are not in it.

    Attributes:
        clean: the clean set.
        store: where models are made and found; the defended one is the one without a name.
        base: model to tune: directory or Hub id. None where a victim is given alone.
        suspect: untrusted rows, or None where there are none.
        victim: the undefended model: directory, Hub id, or a LoRA adapter's directory. It is taken as it is. None has
            it made of `base` and `suspect`.
        training: options of instruction tuning.
        chat_template: file with a prompt template, or None for the models' own.
        trust_remote_code: see `mbdefense.models.loading.load_model`.

    Provenance is removed from all rows here, so that no defense can read poison labels.
    """

    clean: Dataset
    store: Store
    _: KW_ONLY
    base: str | None = None
    suspect: Dataset | None = None
    victim: str | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("suspect", "clean"):
            rows = getattr(self, name)
            if rows is not None and self.training.train_on == "all_turns":
                rows = every_turn(rows)
            if rows is not None:
                object.__setattr__(self, name, unlabelled(rows))

    def check(self, method: Any) -> None:
        """Refuses a method whose needs are not there; every defense calls it first.

        Raises:
            UserError: one is missing, by the method's name.
        """
        check(method, self)

    def base_model(self) -> Model:
        """The base model, with the prompt template that all trainings share.

        Raises:
            UserError: none is given.
        """
        if self.base is None:
            raise UserError("no base model is given", fix="give the directory or Hub id of one")
        return Model(self.base, self.chat_template, self.trust_remote_code)

    def suspect_rows(self) -> Dataset:
        """The untrusted rows.

        Raises:
            UserError: there are none.
        """
        if self.suspect is None:
            raise UserError("no suspect data are given", fix="give the untrusted rows")
        return self.suspect

    def victim_model(self) -> Model:
        """The undefended model: the one that is given, else the base tuned on the suspect rows as they are."""
        if self.victim is None:
            return self.made(self.tune(self.suspect_rows(), VICTIM))
        # A model made here has its template with it, which a defense may have changed.
        kept = (Path(self.victim) / CARD_FILE).is_file()
        return Model(self.victim, None if kept else self.chat_template, self.trust_remote_code)

    def made(self, path: Path) -> Model:
        """A model from the store, which has its prompt template with it."""
        return Model(str(path), trust_remote_code=self.trust_remote_code)

    def tune(self, rows: Dataset, name: str = "") -> Path:
        """The base model instruction-tuned on `rows`; see `Store.make`."""
        return self.store.make(Job(self.base_model(), rows, self.training), name)
