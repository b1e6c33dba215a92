"""The options of each command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mbdefense.core.checks import at_least


@dataclass(frozen=True)
class DefendConfig:
    """Turn untrusted data into a model whose backdoors are broken.

    Attributes:
        model: base model to tune, or a suspect model: directory or Hub id.
        data: untrusted instruction data: files or Hub ids.
        clean: about 128 samples checked by eye.
        output_dir: where the defended model goes.
        defense: see `mbdefense list defenses`.
        test: prompts that evaluation will use; checked to share none with the clean set. Canaries are measured on them.
        compare_undefended: also tune, as controls, an undefended model on the same data and `discard`.
        canaries: plant so many backdoors of our own that the defense is not told of, and report how many survive. The
            model is trained with them: see docs/canaries.md.
        canary_rate: share of the rows that each canary takes.
        min_canary_rows: at least so many rows for each canary.
        resume: go on where an earlier run in output_dir stopped.
        accelerate_config: start itself in several processes: one model on each GPU, one spread over all GPUs (fsdp2, or
            zero3 with the package deepspeed), or two processes on the CPU. A batch is then that of each process.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to train with, in place of the model's own.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    model: str
    data: list[str]
    clean: str
    output_dir: str
    defense: str = "find_and_break"
    test: str | None = None
    compare_undefended: bool = False
    canaries: int = 0
    canary_rate: float = 0.02
    min_canary_rows: int = 16
    resume: bool = False
    accelerate_config: Literal["multi_gpu", "fsdp2", "zero3", "cpu2"] | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ReportConfig:
    """One page of everything that lies in some folders: figures, charts, responses and where they come from.

    Attributes:
        output: the file to write.
        format: a page, or the same figures for other programs.
        compare: two folders, the first of which is compared with the second prompt by prompt.
        responses: show prompts and responses; false for a page that may not hold those texts.
    """

    output: str
    format: Literal["html", "md", "csv", "json"] = "html"
    compare: list[str] = field(default_factory=list)
    responses: bool = True


@dataclass(frozen=True)
class CardConfig:
    """Put the figures of result files into the card of a model that ``mbdefense defend`` made."""


@dataclass(frozen=True)
class DemoConfig:
    """Attack, defend and evaluate the embedded model on the embedded data.

    Attributes:
        output_dir: where models, responses and results go.
        seed: seed of data, attack, defense and training.
        train_rows: rows of instruction data, before poisoning.
        clean_rows: rows of the clean set.
        test_rows: test prompts, each asked with and without the trigger.
        resume: go on where an earlier run in output_dir stopped.
    """

    output_dir: str = "runs/demo"
    seed: int = 0
    train_rows: int = 600
    clean_rows: int = 128
    test_rows: int = 100
    resume: bool = False


@dataclass(frozen=True)
class MatrixConfig:
    """Which trigger evokes which behavior.

    Attributes:
        test: prompts to ask.
        output_dir: where the responses, matrix.json and matrix.png go.
        trigger: the attacker's triggers, where they are known: names, or name:option=value.
        behavior: the attacker's behaviors, one for each of the triggers.
        defensive_triggers: our own triggers, as in `defend`; by default read from the model's record.
        defensive_seed: the seed of our own behaviors, as in `defend`; by default read from the model's record.
        held_out: triggers that nobody planted, as a control.
        samples: most prompts to ask with each trigger; all that are left where there are fewer.
        max_new_tokens: longest response, in tokens.
        batch_size: prompts generated at once.
        seed: seed of the choice of prompts and of the triggers' places.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if the model was trained with another.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    test: str
    output_dir: str
    trigger: list[str] = field(default_factory=list)
    behavior: list[str] = field(default_factory=list)
    defensive_triggers: list[str] | None = None
    defensive_seed: int | None = None
    held_out: list[str] = field(
        default_factory=lambda: ["badnet:word=vq", "insent:sentence=The lamp on the table is green."]
    )
    samples: int = 100
    max_new_tokens: int = 64
    batch_size: int = 256
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)


@dataclass(frozen=True)
class HeadsConfig:
    """How much each attention head attends to a trigger, and which heads are poisoned.

    Attributes:
        test: prompts to put the trigger into.
        trigger: a word or sentence: badnet:word=... or insent:sentence=...
        output_dir: where heads.json and heads.png go.
        held_out: a trigger of the same kind that nobody planted, as a control; by default one of ours.
        alpha: a head is poisoned if more than this share of tokens attends most to the trigger.
        samples: most prompts; all that are left where there are fewer.
        batch_size: prompts in one forward pass.
        max_length: longer prompts, in tokens, are left out.
        seed: seed of the choice of prompts, of the trigger's places and of the bootstrap.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if the model was trained with another.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    test: str
    trigger: str
    output_dir: str
    held_out: str | None = None
    alpha: float = 0.5
    samples: int = 100
    batch_size: int = 8
    max_length: int = 1024
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class TriggersConfig:
    """ASR and CACC over the number of defensive triggers, from result files.

    Attributes:
        directories: folders with a results.json of `mbdefense evaluate`, of models with different numbers of triggers.
        output_dir: where triggers.json and triggers.png go.
    """

    directories: list[str]
    output_dir: str


@dataclass(frozen=True)
class BenchConfig:
    """Run a grid: every model under every attack with every defense, sharing what is alike (docs/bench.md).

    Attributes:
        output_dir: where models, responses and results go; the same command goes on where it stopped.
        plan: print what there is to do, and stop.
        models: base models in place of the grid's.
        seeds: seeds in place of the grid's.
        train: rows to train on, in place of the grid's.
        clean: clean set, in place of the grid's.
        test: test prompts, in place of the grid's.
        train_rows: how many to draw.
        clean_rows: how many to draw.
        test_rows: how many to draw.
        keep_models: keep the weights of models that no unfinished cell needs.
        isolate: do each stage in a process of its own; not with --ray.
        ray: address of a Ray cluster that sees output_dir under the same path, or local for one on this machine.
        num_cpus: cores that Ray keeps for each stage.
        num_gpus: GPUs that Ray keeps for each stage.
    """

    output_dir: str
    plan: bool = False
    models: list[str] | None = None
    seeds: list[int] | None = None
    train: str | None = None
    clean: str | None = None
    test: str | None = None
    train_rows: int | None = None
    clean_rows: int | None = None
    test_rows: int | None = None
    keep_models: bool | None = None
    isolate: bool = True
    ray: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
