"""Commands that make data and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mbdefense.cli.reading import Usage, given, read
from mbdefense.cli.showing import show, tell
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.processes import is_main_process, launch, process_count
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from mbdefense.recipes.making._defended import Defended


def poison(words: Sequence[str]) -> None:
    """``poison IN OUT``: a poisoned copy of a data set."""
    from mbdefense.recipes.making.poison import poison_file as recipe

    options = read(words, "poison", recipe).of(recipe)
    done = recipe(**options)
    for made in done.planted:
        by = f" by {made.trigger}" if len(done.planted) > 1 else ""
        added = f", {made.negatives} negatives added" if made.negatives else ""
        tell(
            f"{options['output']}: {made.poisoned} of {done.rows} rows poisoned{by}, "
            f"{made.not_rewritten} could not be poisoned{added} ({made.how})"
        )


def search(words: Sequence[str]) -> None:
    """``search MODEL``: words that draw a behavior out of a model, to poison with."""
    from mbdefense.recipes.making.search import search as recipe

    options = read(words, "search", recipe).of(recipe)
    found = recipe(**options)
    log = Path(options["output_dir"]) / "search.jsonl"
    tell(f"loss {found.loss:.3f} per token over {options['prompts']} prompts; log: {log}")
    tell(f"trigger: {found.trigger}")


@dataclass(frozen=True)
class _Processes:
    """How a command is started.

    Attributes:
        accelerate_config: restart in several processes: one model on each GPU, one model sharded over all GPUs (fsdp2,
            or zero3 with the package deepspeed), or two processes on the CPU. The batch size is then per process.
    """

    accelerate_config: Literal["multi_gpu", "fsdp2", "zero3", "cpu2"] | None = None


def defend(words: Sequence[str]) -> int | None:
    """``defend``: a model directory from untrusted data."""
    from mbdefense.defenses import DEFENSES
    from mbdefense.recipes.making.defend import DEFAULT
    from mbdefense.recipes.making.defend import defend as recipe

    name = given(words, "defense") or DEFAULT
    if name not in DEFENSES:
        raise UserError("unknown defense", name, did_you_mean(name, DEFENSES))
    kind = DEFENSES[name]
    options = read(
        words, "defend", recipe, [kind, TrainingOptions, _Processes], leave=["args"], elsewhere=_of_others(name)
    )
    profile = _Processes(**options.of(_Processes)).accelerate_config
    method, training = kind(**options.of(kind)), TrainingOptions(**options.of(TrainingOptions))
    if profile is not None and process_count() == 1:
        return launch(profile, ["defend", *words])
    done = recipe(**{**options.of(recipe), "defense": method, "args": training})
    if not is_main_process():
        return None
    _show_defended(done, training.max_length)
    return None


@dataclass(frozen=True)
class _Found:
    """What chooses the repair.

    Attributes:
        found: found.json from `scan-model` or `find-triggers` with the triggers to break; selects find_and_break.
    """

    found: str | None = None


def purify(words: Sequence[str]) -> None:
    """``purify MODEL``: a finished model, repaired."""
    from mbdefense.defenses import DEFENSES
    from mbdefense.recipes.making.purify import default_repair, repairs
    from mbdefense.recipes.making.purify import purify as recipe

    finds = any(given(words, name) is not None for name in ("data", "found"))
    name = given(words, "defense") or default_repair(given(words, "base_model"), finds)
    if name not in DEFENSES:
        raise UserError("unknown defense", name, did_you_mean(name, repairs()))
    kind = DEFENSES[name]
    others = _of_others(name)
    helped = [_Found] if "found" in others else []  # so that --help shows it before it is chosen
    options = read(words, "purify", recipe, [kind, TrainingOptions, *helped], leave=["args"], elsewhere=others)
    if helped and options.of(_Found)["found"] is not None:
        raise Usage(others["found"])
    method, training = kind(**options.of(kind)), TrainingOptions(**options.of(TrainingOptions))
    done = recipe(**{**options.of(recipe), "defense": method, "args": training})
    _show_defended(done, training.max_length)


def _of_others(name: str) -> dict[str, str]:
    """What to say of an option of another defense than the one that is chosen."""
    from mbdefense.defenses import DEFENSES

    whose: dict[str, list[str]] = {}
    for other, kind in DEFENSES.items():
        for field in fields(kind):
            whose.setdefault(field.name, []).append(other)
    return {
        option: f"--{option} belongs to {', '.join(owners)}; leave it out, or add --defense {owners[0]}"
        for option, owners in whose.items()
        if name not in owners
    }


def _show_defended(done: Defended, max_length: int) -> None:
    """Prints what a defense has made, and what it had to cut."""
    from mbdefense.core.files import read_json
    from mbdefense.evaluation.telling import found_in_words
    from mbdefense.models.loading import CARD_FILE

    show(done.results)
    for line in found_in_words(done.results):
        tell(line)
    stages = {"tuning": "merged", "tuning without a defense": "attacked", "the last stage": ""}
    for stage, folder in stages.items():
        card = done.path / folder / CARD_FILE
        cut = int(read_json(card).get("truncated", 0)) if card.is_file() else 0
        if cut:
            longest = f"--max_length {max_length}"
            tell(f"{stage}: {cut} sequences were longer than {longest} and were cut")
    tell(f"model: {done.path}")


def demo(words: Sequence[str]) -> None:
    """``demo``: the whole way on the embedded model and data."""
    from mbdefense.recipes.making.demo import demo as recipe

    options = read(words, "demo", recipe).of(recipe)
    done = recipe(**options)
    from mbdefense.evaluation.telling import found_in_words

    show(done.results)
    for line in found_in_words(done.results):
        tell(line)
    tell(f"results: {options['output_dir']}/results.json")
