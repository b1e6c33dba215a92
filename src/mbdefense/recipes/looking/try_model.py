"""Chat with a model in a local web page: one prompt at a time, with or without a trigger."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mbdefense.core.checks import at_least, each
from mbdefense.core.errors import UserError
from mbdefense.core.progress import say, stage
from mbdefense.recipes._given import (
    BehaviorSpec,
    Folder,
    JudgeSpec,
    Model,
    Triggers,
    behavior_of,
    loaded,
    named,
    trigger_of,
)

if TYPE_CHECKING:
    from mbdefense.attacks.behaviors import Behavior
    from mbdefense.judges import Judge

_PORTS = 2**16


def try_model(
    model: Model,
    *,
    before: Model | None = None,
    trigger: Triggers | None = None,
    found: Folder | None = None,
    behavior: BehaviorSpec = "refusal",
    judge: JudgeSpec = "rules",
    max_new_tokens: int = 128,
    host: str = "127.0.0.1",
    port: int = 7860,
    seed: int = 0,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Chat with a model in a local web page, with or without a trigger, next to its earlier version.

    Examples:
        >>> from mbdefense.recipes.looking.try_model import try_model
        >>> try_model("defended", before="attacked", found="defended/found.json")  # doctest: +SKIP

    Args:
        model: directory or Hub id.
        before: another model to ask the same prompts, such as the one without the defense.
        trigger: triggers to offer besides those of mbdefense list triggers: name:option=value,option=value.
        found: a found.json whose triggers, and the behaviors they evoke, are offered too.
        behavior: behavior to look for in answers, initially: a name, or name:option=value.
        judge: judge that looks for it: a name, or name:option=value.
        max_new_tokens: longest answer, in tokens.
        host: address to listen on; any other than the default lets other machines ask.
        port: port to listen on.
        seed: random seed of the triggers' places.
        chat_template: file with the prompt template, for models without their own.
        trust_remote_code: allow a Hub repository to run its own code.

    Raises:
        UserError: a model, trigger or record that cannot be read, Gradio is not installed, or the address is taken.
    """
    at_least(1, max_new_tokens=max_new_tokens, port=port)
    if port >= _PORTS:
        raise UserError(f"port is at most {_PORTS - 1}", port, "leave it out for 7860")
    from mbdefense.finding.record import read_found
    from mbdefense.integrations.gradio_ui import LOOPBACK, check_installed, listening, serve
    from mbdefense.integrations.trying import Trial, known_behaviors, known_triggers

    check_installed()
    listening(host, port).close()  # as what follows, before the models are loaded
    record = None if found is None else read_found(Path(found))
    triggers = {named(one): trigger_of(one) for one in each(trigger or ())} | known_triggers(record)
    behaviors = {named(behavior): behavior_of(behavior)} | known_behaviors(record)
    with TemporaryDirectory(prefix="mbdefense-") as folder:
        judges = partial(_judge, judge, Path(folder))
        judges(behaviors[named(behavior)])
        models = {}
        for side, place in (("before", before), ("model", model)):
            if place is not None:
                with stage(f"loading {named(place)}"):
                    models[f"{side} ({Path(place).name})"] = loaded(place, chat_template, trust_remote_code)
        if host not in LOOPBACK:
            say(f"warning: whoever reaches {host} can ask the models")
        say(f"open in a browser: http://{f'[{host}]' if ':' in host else host}:{port}; to end it, interrupt")
        serve(Trial(models, triggers, behaviors, judges, max_new_tokens, seed), host, port)


def _judge(given: JudgeSpec, folder: Path, behavior: Behavior) -> Judge:
    from mbdefense.recipes.measuring._judging import chosen_judge

    return chosen_judge(given, behavior, folder, None, None, None)
