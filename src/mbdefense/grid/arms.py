"""The arms of a grid: controls, defenses, and what stands between prompts and the undefended model.

An arm is written as its name in the tables: a control, a defense with its options (``crow:alpha=0``), or, measured on
the undefended model, ``decoding:cleangen``, ``clean_prompts:onion`` and ``demonstrations:4``. Unless the arm names
others, the base model is the reference of a decoding and scores for what cleans prompts, whose own clean prompts are
those of the clean set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.specs import parse_spec

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.attacks.triggers import Trigger
    from mbdefense.defenses import Setting
    from mbdefense.evaluation.responding import Inference

CONTROLS = ("base", "clean", "attacked")
INFERENCE = ("decoding", "clean_prompts", "demonstrations")
_ANY = {"reference": "base model", "model": "base model", "clean": "clean set"}


def check_arm(arm: str) -> None:
    """Refuses an arm that is neither a defense nor a way to ask the undefended model.

    Raises:
        UserError: see above, or options that cannot work.
    """
    from mbdefense.defenses import DEFENSES

    kind = arm.partition(":")[0]
    if kind == "purify":
        raise UserError("cleaning prompts is called clean_prompts", arm, f"write clean_prompts{arm[len(kind) :]}")
    if kind not in INFERENCE and kind not in DEFENSES:
        raise UserError("unknown defense", kind, did_you_mean(kind, [*DEFENSES, *INFERENCE]))
    arm_options(arm)


def arm_options(arm: str, given: Mapping[str, str] = _ANY) -> dict[str, Any]:
    """An arm with all its options, defaults too."""
    method = None if arm in CONTROLS else _method(arm, given)
    return {"arm": arm, "options": asdict(method) if method is not None else {}}


def arm_inputs(arm: str) -> dict[str, Any]:
    """The same as what its figures depend on: with the content of the files and models that options name."""
    from mbdefense.models.identity import contents

    told = arm_options(arm)
    return {**told, "options": contents(told["options"])}


def model_of(arm: str, setting: Setting, train: Dataset) -> Path:
    """Makes the model of an arm; all its trainings go through the setting's store.

    Args:
        arm: see above.
        setting: of the attack.
        train: the rows before poisoning.
    """
    from mbdefense.defenses import DEFENSES, NoDefense

    if arm == "base":
        return Path(setting.base_model().path)
    if arm == "clean":
        return NoDefense()(replace(setting, suspect=train))
    if arm == "attacked" or arm.partition(":")[0] in INFERENCE:
        return Path(setting.victim_model().path)
    defended: Path = parse_spec(arm, DEFENSES, "defense")(setting)
    return defended


def planted_by(arm: str) -> list[Trigger]:
    """The triggers that an arm plants itself; most plant none."""
    from mbdefense.defenses.stages import Planting

    method = None if arm in CONTROLS else _method(arm, _ANY)
    return [trigger for trigger, _ in method.planted()] if isinstance(method, Planting) else []


def inference_of(arm: str, base: str, clean: Dataset, clean_file: Path, seed: int) -> Inference:
    """What stands between the prompts and an arm's model.

    Args:
        arm: see above.
        base: the base model.
        clean: the clean set.
        clean_file: the same as a file.
        seed: of the draw of demonstrations.
    """
    from mbdefense.defenses.prompts.demonstrations import draw_demonstrations
    from mbdefense.evaluation.responding import PLAIN, Inference

    kind = arm.partition(":")[0]
    if kind not in INFERENCE:
        return PLAIN
    if kind == "demonstrations":
        return Inference(demonstrations=draw_demonstrations(clean, _count(arm), seed))
    method = _method(arm, {"reference": base, "model": base, "clean": str(clean_file)})
    return Inference(decoding=method) if kind == "decoding" else Inference(cleaner=method)


def _method(arm: str, given: Mapping[str, str]) -> Any:
    """The dataclass of an arm; None for demonstrations, which have no options besides their number."""
    kind, _, rest = arm.partition(":")
    if kind == "demonstrations":
        return _count(arm) and None
    if kind not in INFERENCE:
        from mbdefense.defenses import DEFENSES

        return parse_spec(arm, DEFENSES, "defense")
    from mbdefense.defenses.decoding import DECODINGS
    from mbdefense.defenses.prompts.cleaning import PROMPT_CLEANERS

    table = DECODINGS if kind == "decoding" else PROMPT_CLEANERS
    name, _, options = rest.partition(":")
    taken = {field.name for field in fields(table[name])} if name in table else set()
    left = {key: value for key, value in given.items() if key in taken and f"{key}=" not in options}
    return parse_spec(rest, table, "decoding" if kind == "decoding" else "prompt cleaner", left)


def _count(arm: str) -> int:
    text = arm.partition(":")[2]
    if not text.isdecimal() or int(text) < 1:
        raise UserError("demonstrations need a number", arm, "write demonstrations:4")
    return int(text)
