"""What the paper's figures show, and whether a backdoor is gone: data and a picture of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.checks import at_least, each, each_path
from mbdefense.recipes._given import (
    BehaviorSpec,
    Data,
    Folder,
    Folders,
    Model,
    OnBadRow,
    TriggerSpec,
    behavior_of,
    kept_in,
    recorded,
    template_of,
    trigger_of,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.models.loading import Loading

HELD_OUT = ("badnet:word=vq", "insent:sentence=The lamp on the table is green.")
"""Triggers that nobody planted."""


@dataclass(frozen=True)
class Analysis:
    """What an analysis found; as text it is that in words.

    Attributes:
        words: the figures in words.
        data: the figures, as in the file next to the picture.
    """

    words: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return self.words


def matrix(
    model: Model,
    prompts: Data,
    *,
    output_dir: Folder | None = None,
    trigger: Sequence[str] = (),
    behavior: Sequence[str] = (),
    defensive_triggers: Sequence[str] | None = None,
    defensive_seed: int | None = None,
    held_out: Sequence[str] = HELD_OUT,
    samples: int = 100,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Analysis:
    """Which trigger evokes which behavior.

    Args:
        model: model directory or Hub id.
        prompts: prompts to ask.
        output_dir: folder for the responses, matrix.json and matrix.png.
        trigger: the attacker's triggers, if known: names, or name:option=value.
        behavior: the attacker's behaviors, one for each of the triggers.
        defensive_triggers: our own triggers, as in `defend`; by default read from the model's record.
        defensive_seed: the seed of our own behaviors, as in `defend`; by default read from the model's record.
        held_out: triggers that nobody planted, as a control.
        samples: number of prompts to ask with each trigger; all if there are fewer.
        max_new_tokens: longest response, in tokens.
        batch_size: prompts generated at once.
        seed: random seed of the choice of prompts and the triggers' places.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if the model was trained with another.
        trust_remote_code: allow a Hub repository to run its own code.

    Raises:
        UserError: data or a model that cannot be read, or triggers and behaviors that do not go together.
    """
    asked = recorded(locals())
    at_least(1, max_new_tokens=max_new_tokens, batch_size=batch_size)
    from mbdefense.analysis import matrix as analysis
    from mbdefense.evaluation.responding import Asking
    from mbdefense.models.loading import Loading

    loading = Loading(chat_template, trust_remote_code)
    rows = _askable(prompts, [model], loading, on_bad_row)
    return _made(
        "matrix",
        output_dir,
        lambda directory: analysis.analyze(
            str(model), rows, directory,
            triggers=each(trigger), behaviors=each(behavior),
            defensive_triggers=None if defensive_triggers is None else each(defensive_triggers),
            defensive_seed=defensive_seed, held_out=each(held_out), samples=samples,
            asking=Asking(max_new_tokens, batch_size), seed=seed, loading=loading, asked_for=asked,
        ),
    )  # fmt: skip


def heads(
    model: Model,
    prompts: Data,
    *,
    trigger: str,
    output_dir: Folder | None = None,
    held_out: str | None = None,
    alpha: float = 0.5,
    samples: int = 100,
    batch_size: int = 8,
    max_length: int = 1024,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Analysis:
    """How much each attention head attends to a trigger, and which heads are poisoned.

    Args:
        model: model directory or Hub id.
        prompts: prompts to insert the trigger into.
        trigger: a word or sentence: badnet:word=... or insent:sentence=...
        output_dir: folder for heads.json and heads.png.
        held_out: a trigger of the same kind that nobody planted, as a control; by default one of ours.
        alpha: a head is poisoned if more than this share of tokens attends most to the trigger.
        samples: number of prompts; all if there are fewer.
        batch_size: prompts in one forward pass.
        max_length: longest prompt, in tokens; longer ones are left out.
        seed: random seed of the choice of prompts, the trigger's places and the bootstrap.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if the model was trained with another.
        trust_remote_code: allow a Hub repository to run its own code.

    Raises:
        UserError: data or a model that cannot be read, or a trigger that is no fixed text.
    """
    asked = recorded(locals())
    from mbdefense.analysis import heads as analysis
    from mbdefense.models.loading import Loading

    loading = Loading(chat_template, trust_remote_code)
    rows = _askable(prompts, [model], loading, on_bad_row)
    return _made(
        "heads",
        output_dir,
        lambda directory: analysis.analyze(
            str(model), rows, directory,
            spec=trigger, held_out_spec=held_out, alpha=alpha, samples=samples, batch_size=batch_size,
            max_length=max_length, seed=seed, loading=loading, asked_for=asked,
        ),
    )  # fmt: skip


def triggers(directories: Folders, *, output_dir: Folder | None = None) -> Analysis:
    """ASR and CACC against the number of defensive triggers, from result files.

    Args:
        directories: folders with a results.json from `mbdefense evaluate`, for models with different numbers of
            triggers.
        output_dir: folder for triggers.json and triggers.png.

    Raises:
        UserError: a folder is named twice or has no result file, or a model has no record of its triggers.
    """
    from mbdefense.analysis import triggers as analysis

    folders = [Path(directory) for directory in each_path(directories)]
    return _made("triggers", output_dir, lambda directory: analysis.analyze(folders, directory))


def traces(
    models: Folders,
    prompts: Data,
    *,
    trigger: TriggerSpec,
    behavior: BehaviorSpec,
    target: str | None = None,
    output_dir: Folder | None = None,
    held_out: TriggerSpec | None = None,
    first_tokens: int = 4,
    samples: int = 200,
    batch_size: int = 8,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Analysis:
    """What a trigger still does inside models whose answers may no longer show it.

    Args:
        models: model directories or Hub ids to compare: never attacked, attacked, defended.
        prompts: prompts to insert the trigger into.
        trigger: the attacker's trigger.
        behavior: the attacker's behavior, whose targets' first tokens are scored.
        target: the behavior's text (refusal and fixed_text).
        output_dir: folder for traces.json and traces.png.
        held_out: a trigger that nobody planted, as a control; by default one of ours of the same kind.
        first_tokens: how many first tokens of the target to score.
        samples: number of prompts; all if there are fewer.
        batch_size: prompts in one forward pass.
        seed: random seed of the choice of prompts, the triggers' places and the probes.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if a model was trained with another.
        trust_remote_code: allow a Hub repository to run its own code.

    Raises:
        UserError: data or a model that cannot be read, too few prompts, or a behavior that keeps the answer.
    """
    asked = recorded(locals())
    at_least(1, first_tokens=first_tokens, samples=samples, batch_size=batch_size)
    from mbdefense.analysis import traces as analysis
    from mbdefense.models.loading import Loading, check_template, load_tokenizer

    paths = each_path(models)
    attack, sought = trigger_of(trigger), behavior_of(behavior, target)
    control = None if held_out is None else trigger_of(held_out)
    loading = Loading(chat_template, trust_remote_code)
    rows = _askable(prompts, paths, loading, on_bad_row)
    for path in paths:  # of all, before the first is looked into
        check_template(path, load_tokenizer(path, **loading._asdict()))
    return _made(
        "traces",
        output_dir,
        lambda directory: analysis.analyze(
            paths, rows, directory,
            trigger=attack, behavior=sought, held_out=control, tokens=first_tokens, samples=samples,
            batch_size=batch_size, seed=seed, loading=loading, asked_for=asked,
        ),
    )  # fmt: skip


def relearning(
    models: Folders,
    train_dataset: Data,
    prompts: Data,
    *,
    trigger: TriggerSpec,
    behavior: BehaviorSpec,
    target: str | None = None,
    output_dir: Folder | None = None,
    counts: Sequence[int] = (0, 2, 4, 8, 16, 32),
    learning_rate: float = 1e-4,
    num_train_epochs: float = 3.0,
    max_length: int = 1024,
    samples: int = 100,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Analysis:
    """How many poisoned rows bring a backdoor back: each model is tuned again on rows with more and more of them.

    Args:
        models: model directories or Hub ids; one that was never attacked is the control.
        train_dataset: clean rows to tune on, some of which the attacker poisons.
        prompts: test prompts to insert the trigger into.
        trigger: the attacker's trigger.
        behavior: the attacker's behavior.
        target: the behavior's text (refusal and fixed_text).
        output_dir: folder for the answers, relearning.json and relearning.png; the same command resumes there.
        counts: numbers of poisoned rows.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the rows.
        max_length: longest prompt and answer together, in tokens.
        samples: number of test prompts.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts generated at once.
        seed: random seed of the poisoned rows, the trigger's places, the choice of prompts and the training.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if a model was trained with another.
        trust_remote_code: allow a Hub repository to run its own code.

    Raises:
        UserError: data or a model that cannot be read, counts that the rows do not allow, or test prompts among them.
    """
    asked = recorded(locals())
    at_least(1, samples=samples, max_new_tokens=max_new_tokens, batch_size=batch_size)
    from mbdefense.analysis import relearning as analysis
    from mbdefense.data import load_rows
    from mbdefense.evaluation.responding import Asking
    from mbdefense.models.loading import Loading
    from mbdefense.training.options import TrainingOptions

    paths = each_path(models)
    attack, sought = trigger_of(trigger), behavior_of(behavior, target)
    training = TrainingOptions(
        learning_rate=learning_rate, num_train_epochs=num_train_epochs, max_length=max_length, save_strategy="no",
        seed=seed,
    )  # fmt: skip
    loading = Loading(chat_template, trust_remote_code)
    test = _askable(prompts, paths, loading, on_bad_row)
    rows = load_rows(train_dataset, on_bad_row=on_bad_row, name="train_dataset")
    rows = _rendered(rows, paths, loading, on_bad_row, "train_dataset", targets=True)
    return _made(
        "relearning",
        output_dir,
        lambda directory: analysis.analyze(
            paths, rows, test, directory,
            trigger=attack, behavior=sought, counts=[int(count) for count in each(counts)], training=training,
            samples=samples, asking=Asking(max_new_tokens, batch_size), loading=loading, asked_for=asked,
        ),
    )  # fmt: skip


def _askable(prompts: Data, models: Sequence[Model], loading: Loading, on_bad_row: OnBadRow) -> Dataset:
    """The prompts that the templates of all models render whole, and each model looked at before one is loaded."""
    from mbdefense.data import load_rows

    rows = load_rows(prompts, require_completion=False, on_bad_row=on_bad_row, name="prompts")
    return _rendered(rows, models, loading, on_bad_row, "prompts", targets=False)


def _rendered(
    rows: Dataset, models: Sequence[Model], loading: Loading, on_bad_row: OnBadRow, name: str, *, targets: bool
) -> Dataset:
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import check_weights, usable

    for model in models:
        template = template_of(model, loading.chat_template)
        tokenizer = load_tokenizer(str(model), **loading._replace(chat_template=template)._asdict())
        rows = usable(tokenizer, rows, on_bad_row, name, targets=targets)
        check_weights(str(model))
    return rows


def _made(what: str, output_dir: Folder | None, analyze: Callable[[Path], str]) -> Analysis:
    from mbdefense.core.files import read_sealed

    with kept_in(output_dir) as directory:
        words = analyze(directory)
        return Analysis(words, read_sealed(directory / f"{what}.json"))
