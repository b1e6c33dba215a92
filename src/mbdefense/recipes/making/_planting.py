"""Triggers of our own that an attacker could not know: drawn once for each output folder, and kept there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mbdefense.attacks.defensive import PLANTED_FILE, PlantedRecord
from mbdefense.core.files import write_sealed
from mbdefense.core.forms import read_form
from mbdefense.core.processes import of_main_process
from mbdefense.models.template import CARD_FILE

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.defenses.stages import Planting
    from mbdefense.training.store import Store

logger = logging.getLogger(__name__)
_SEEDS = 2**31


def settled(method: Any, rows: Mapping[str, Dataset], store: Store) -> Any:
    """A defense whose planted triggers and seed are fixed; one that plants nothing is as it was.

    A trigger that the rows hold already would be trained with answers that are not ours, or make the attacker's own
    trigger our own: another one is drawn. One that the user named stays. Both are told.

    Args:
        method: a defense.
        rows: what it will be given, by what each is called.
        store: of its model; an earlier run's choice is taken where it is resumed.

    Raises:
        UserError: the earlier run's record is damaged, or the rows hold whatever is drawn.
    """
    from mbdefense.defenses.stages import Planting

    return of_main_process(_settled(method, rows, store)) if isinstance(method, Planting) else method


def _settled(method: Planting, rows: Mapping[str, Dataset], store: Store) -> Planting:
    from mbdefense.attacks.defensive import drawn_triggers, literal_trigger
    from mbdefense.attacks.poisoning import count_occurrences

    file = store.directory / PLANTED_FILE
    if store.resume and file.is_file():
        before = read_form(PlantedRecord, file)
        if method.defensive_seed in (None, before.defensive_seed):
            triggers = method.defensive_triggers or before.defensive_triggers
            return replace(method, defensive_triggers=triggers, defensive_seed=before.defensive_seed)
    seed = secrets.randbelow(_SEEDS) if method.defensive_seed is None else method.defensive_seed

    def held(spec: str) -> bool:
        trigger = literal_trigger(spec)
        for source, data in rows.items():
            count = count_occurrences(data, trigger)
            if count:
                other = "another trigger is drawn" if method.defensive_triggers is None else "better name another"
                logger.warning("%s already occurs in %d prompts of %s: %s", trigger.describe(), count, source, other)
                return True
        return False

    if method.defensive_triggers is None:
        return replace(method, defensive_triggers=drawn_triggers(seed, held), defensive_seed=seed)
    for spec in method.defensive_triggers:
        held(spec)
    return replace(method, defensive_seed=seed)


def keep(method: Planting, store: Store) -> None:
    """Writes down what is about to be planted.

    Raises:
        UserError: the file cannot be written.
    """
    finished = (store.directory / CARD_FILE, *store.directory.glob(f"*/{CARD_FILE}"))
    if not store.resume and any(card.is_file() for card in finished):
        return  # the run will be refused, and that of the record can still be resumed
    write_sealed(store.directory / PLANTED_FILE, asdict(PlantedRecord(method.specs(), method.seed())))
