"""One run of a defense, and how many known backdoors survive it: planted, hidden, and found in the suspect data."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.attacks.triggers import Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.files import check_free_space, write_text
from mbdefense.core.processes import is_main_process, wait_for_everyone
from mbdefense.core.progress import stage, stages
from mbdefense.core.text import short
from mbdefense.data import overlap
from mbdefense.defenses import P2P, PDB, Defense, Discard, FineMixing, Locphylax, Setting
from mbdefense.defenses.found import Finding
from mbdefense.defenses.setting import VICTIM
from mbdefense.defenses.stages import CleanTuning, Planting, Recovery
from mbdefense.evaluation.compare import compare
from mbdefense.evaluation.planted.canaries import plant
from mbdefense.evaluation.planted.survival import Known, on_shared_prompts, survival
from mbdefense.evaluation.telling import MOST_TRIGGERS, summarized
from mbdefense.finding.record import FOUND_FILE, Found, read_found
from mbdefense.integrations.model_card import model_card
from mbdefense.models.loading import CARD_FILE, load_model
from mbdefense.models.weights import check_mixable
from mbdefense.recipes._given import refuse_figures_of_others
from mbdefense.recipes.making._defended import Defended
from mbdefense.recipes.making._planting import keep
from mbdefense.records.provenance import provenance
from mbdefense.records.results import ResultRow, Results, write
from mbdefense.training._rows import keeping_triggers
from mbdefense.training.options import without_effect
from mbdefense.training.store import PlannedStore, cost_of
from mbdefense.training.trainer import check_options, check_trainable

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
_LONGEST_BEHAVIOR = 400  # characters
_ALL_CLEAN = (CleanTuning, Discard, FineMixing, Locphylax, P2P, PDB)
"""Defenses that train on every clean row, or choose by it."""


def run(
    defense: Defense,
    name: str,
    setting: Setting,
    *,
    compare_undefended: bool = False,
    canaries: int = 0,
    canary_rate: float = 0.02,
    min_canary_rows: int = 16,
    test: Dataset | None = None,
    suspected: Known | None = None,
) -> Defended:
    """Runs a defense and writes the model directory with ``results.json`` and a model card.

    Controls: the base model costs nothing but its answers, so it is always measured. The undefended model costs as much
    training as the defense and is left to `compare_undefended`, unless the defense finds triggers with it and makes it
    anyway. The option also throws the suspect data away and tunes the base model on the clean set alone
    (`defenses.Discard`), into ``discard``. That is the only clean data a user of real, untrusted data has: an honest
    control for ASR and false activations, since no attacker touched it, and what a defense has to be more accurate
    than, or its data were not worth their risk.

    Args:
        defense: from `mbdefense.defenses.DEFENSES`.
        name: its name there.
        setting: model, data and options.
        compare_undefended: also tune the undefended model, into ``attacked``, and ``discard``.
        canaries: backdoors to plant before the defense sees the data, or a finished model; it is not told
            (`mbdefense.evaluation.planted.canaries`). A finished model is tuned on the suspect rows with them, or the
            clean ones where there are no suspect rows, which takes the place of the undefended model.
        canary_rate: share of the rows for each.
        min_canary_rows: at least so many rows for each.
        test: prompts to measure canaries on; by default the clean rows that the defense does not train on.
        suspected: a backdoor that the user asks about, measured on what of `test` is not in the suspect rows.

    Returns:
        The model and what ``results.json`` holds; without rows on processes other than the main one.
    """
    directory = setting.store.directory
    refuse_figures_of_others(directory, "defense")
    check_free_space(directory)
    start = setting.victim or setting.base_model().path
    check_options(setting.training, start, trust_remote_code=setting.trust_remote_code)
    planted, prompts, infected = None, setting.clean if test is None else test, None
    carriers = setting.clean if setting.suspect is None else setting.suspect
    if canaries or suspected is not None:
        prompts = _unseen_prompts(defense, setting, carriers, test)
    if canaries:
        own: list[Trigger] = [one for one, _ in defense.planted()] if isinstance(defense, Planting) else []
        planted = plant(
            carriers, setting.clean, own, canaries,
            rate=canary_rate, min_rows=min_canary_rows, seed=setting.training.seed,
        )  # fmt: skip
        begin = setting.base_model() if setting.victim is None else setting.victim_model()
        kept = keeping_triggers(begin, planted.rows, setting.training.max_length)
        infected = kept if setting.victim else None
        if setting.suspect is not None:
            setting = replace(setting, suspect=kept)  # which drops the labels of the rows
    plan = PlannedStore(directory)
    # Which also refuses what it cannot work with.
    planned = _with_canaries(replace(setting, store=plan), infected)
    _made(defense, planned, compare_undefended)
    if setting.victim and setting.base and any(job.mix for job in plan.jobs):
        # Here, since the mixture may come after hours of searching or training. What is made of the base model fits it.
        check_trainable(setting.base, trust_remote_code=setting.trust_remote_code)
        check_mixable(setting.victim, setting.base, trust_remote_code=setting.trust_remote_code)
    adapters = setting.training.use_peft or any(job.options.use_peft for job in plan.jobs)
    for line in without_effect(setting.training, adapters=adapters):
        logger.warning("%s", line)
    if isinstance(defense, Planting) and is_main_process():
        keep(defense, setting.store)
    asks = bool(canaries) or suspected is not None or _knows_triggers(defense)
    rows, found = tuple[ResultRow, ...](), None
    with stages(len(plan.places) + asks):
        setting = _with_canaries(setting, infected)
        model = _made(defense, setting, compare_undefended)
        if is_main_process():
            found = _found(defense, setting)
        if is_main_process() and asks:
            with stage("measuring which known backdoors are left"):
                hidden = [] if suspected is None else [suspected]
                for canary in planted.canaries if planted else ():
                    hidden.append(Known(canary.describe(), "canary", canary.trigger, canary.behavior))
                rows = _survivors(defense, setting, {name: str(model)}, hidden, prompts, found)
    options = {**asdict(defense), **asdict(setting.training)}  # type: ignore[call-overload]
    if planted:
        described = [f"{canary.describe()}: {canary.behavior.text}" for canary in planted.canaries]
        options |= {"canaries": described, "rows_of_each_canary": planted.rows_each}
    given = {"purified": True, "reference": setting.base} if setting.victim else {}
    config = {"defense": name, "base": start, **given, **options}
    section = summarized(found, given=isinstance(defense, Finding) and defense.found != "search") if found else None
    results = Results(provenance(config, [setting.training.seed]), rows, found=section)
    if is_main_process():
        write(directory / "results.json", results)
        write_text(directory / "README.md", model_card(results, start, name, options, purified=bool(setting.victim)))
    wait_for_everyone()
    return Defended(Path(model), results, found)


def _with_canaries(setting: Setting, rows: Dataset | None) -> Setting:
    """The setting with its finished model tuned on these rows, where there are any."""
    if rows is None:
        return setting
    victim = setting.victim_model()
    tuned = replace(setting, victim=None, base=victim.path, suspect=rows, chat_template=victim.chat_template)
    return replace(setting, victim=tuned.victim_model().path)


def _made(defense: Defense, setting: Setting, compare_undefended: bool) -> Path:
    """The defended model, and before it the controls."""
    if compare_undefended:
        # Given on, since a store makes no model twice.
        setting = replace(setting, victim=setting.victim_model().path)
        Discard()(replace(setting, store=setting.store.below("discard")))
    return defense(setting)


def _knows_triggers(defense: Defense) -> bool:
    """Whether there may be triggers to ask the models with: the defense's own, or found ones."""
    plants = isinstance(defense, Planting) and isinstance(defense, Recovery)
    return plants or (isinstance(defense, Finding) and defense.found != "none")


def _unseen_prompts(defense: Defense, setting: Setting, carriers: Dataset, test: Dataset | None) -> Dataset:
    """Prompts to ask with a backdoor: to those that it was trained on a model repeats the answers it was taught."""
    if test is None:
        if isinstance(defense, _ALL_CLEAN):
            fix = "add --test prompts.jsonl"
            raise UserError("the defense trains on all clean rows, so that canaries want other prompts", fix=fix)
        return _held_out(defense, setting)
    seen = set(overlap(test, carriers))
    prompts = test.select([index for index, row_id in enumerate(test["id"]) if row_id not in seen])
    if not len(prompts):
        raise UserError("every test prompt is in the data", fix="give --test prompts that training does not see")
    return prompts


def _held_out(defense: Defense, setting: Setting) -> Dataset:
    """Clean samples that the defense does not train on."""
    return defense.split(setting.clean, setting.training.seed)[1] if isinstance(defense, Recovery) else setting.clean


def _undefended(defense: Defense, setting: Setting) -> dict[str, str]:
    """The models without a defense that lie there, by arm.

    ``attacked`` may also be an earlier run's in the same folder; then it is taken if it was made of these very rows.
    """
    models = {}
    store = replace(setting.store, resume=True)
    if setting.victim:
        models["attacked"] = setting.victim
    elif (store.place(VICTIM) / CARD_FILE).is_file():
        with contextlib.suppress(UserError):  # of other data or options
            models["attacked"] = replace(setting, store=store).victim_model().path
    if isinstance(defense, Planting) and (store.place("merged") / CARD_FILE).is_file():
        models["merged"] = str(store.place("merged"))
    return models


def _found(defense: Defense, setting: Setting) -> Found | None:
    """What the defense knew of the suspect data's triggers; None where nothing was searched for."""
    if not isinstance(defense, Finding) or defense.found == "none":
        return None
    return read_found(setting.store.directory / FOUND_FILE) if defense.found == "search" else defense.given(setting)


def _survivors(
    defense: Defense,
    setting: Setting,
    made: dict[str, str],
    hidden: Sequence[Known],
    prompts: Dataset,
    found: Found | None,
) -> tuple[ResultRow, ...]:
    """How many of the known backdoors answer in each model, paired across models.

    These are the defense's own ones, what was found in the suspect data, and those that are hidden from it: canaries,
    and a backdoor that the user asks about, which alone are measured on `prompts`. A found trigger whose answers share
    no phrase has no figures. `made` is the defended model by its name.
    """
    models = {**({"base": setting.base} if setting.base else {}), **_undefended(defense, setting), **made}
    own: list[Known] = []
    if isinstance(defense, Planting) and isinstance(defense, Recovery):
        own = [Known(f"our own {one.describe()}", "planted", one, behavior) for one, behavior in defense.planted()]
    triggers = zip(summarized(found).of("trigger"), found.of("trigger"), strict=True) if found else ()
    known = [
        Known(summary.attack, "found", one.trigger(), one.shown())
        for summary, one in list(triggers)[:MOST_TRIGGERS]
        if one.behavior
    ]
    arms = []
    for arm, model in models.items():
        # The undefended model never met the defense's own triggers: a control that says no more than the base model.
        asked = [*(own if arm != "attacked" else []), *known]
        if not asked and not hidden:
            continue
        ours = (Path(model) / CARD_FILE).is_file()
        # A model made here has its template with it, which a defense may have changed.
        template = None if ours else setting.chat_template
        loaded = load_model(model, chat_template=template, trust_remote_code=setting.trust_remote_code)
        cost = cost_of(Path(model)) if ours else {"seconds": 0.0, "peak_bytes": 0}
        blank = ResultRow(arm, "", "", setting.training.seed, model, None, None, None, None, None, **cost)
        if asked:
            arms += survival(loaded, asked, _held_out(defense, setting), blank)
        if hidden:
            arms += survival(loaded, hidden, prompts, blank)
    order = [one.attack for one in (*own, *hidden, *known)]
    arms.sort(key=lambda arm: order.index(arm.row.attack))
    # What was found to be answered may be long, as a stranger wrote it.
    arms = [arm._replace(row=replace(arm.row, behavior=short(arm.row.behavior, _LONGEST_BEHAVIOR))) for arm in arms]
    return compare(on_shared_prompts(arms))[0]
