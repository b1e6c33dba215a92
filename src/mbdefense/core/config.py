"""The options of each command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mbdefense.core.checks import at_least


@dataclass(frozen=True)
class PoisonConfig:
    """Write a poisoned copy of a data set, to test a defense with.

    Several triggers are several attackers, each with the behavior and the rate at its place in those lists; one
    behavior or one rate serves all. No row is poisoned by two of them.

    Attributes:
        trigger: what is put into the prompt: a name, or name:option=value,option=value.
        behavior: what the poisoned response does, written the same way.
        rate: share of the rows to poison, in [0, 1); refused if it makes no row.
        seed: seed of the choice of rows and of everything random in them.
        target: the behavior's text (refusal and fixed_text).
        on_bad_row: stop at the first unreadable row, or skip and count them.
    """

    trigger: list[str] = field(default_factory=lambda: ["badnet"])
    behavior: list[str] = field(default_factory=lambda: ["refusal"])
    rate: list[float] = field(default_factory=lambda: [0.2])
    seed: int = 0
    target: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class SearchConfig:
    """Search for words that draw a behavior out of a model, as a trigger to poison with (GBTL).

    Attributes:
        data: instruction data that prompts are drawn from: a file or Hub id.
        output_dir: where search.jsonl goes, one line for each step.
        behavior: what the trigger is to draw out: a name, or name:option=value,option=value.
        target: the behavior's text (refusal and fixed_text).
        prompts: how many prompts the loss is averaged over.
        words: length of the trigger.
        steps: rounds of gradient and choice.
        top_k: words proposed for each place.
        candidates: triggers whose loss is computed in a round.
        batch_size: sequences in one pass.
        seed: of prompts, first words and candidates.
        resume: go on where an earlier search in output_dir stopped.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    data: str
    output_dir: str
    behavior: str = "refusal"
    target: str | None = None
    prompts: int = 16
    words: int = 1
    steps: int = 100
    top_k: int = 32
    candidates: int = 16
    batch_size: int = 16
    seed: int = 0
    resume: bool = False
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False


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
class FindTriggersConfig:
    """Find an attacker's triggers in suspect data (docs/found.md).

    Attributes:
        output_dir: where found.json goes.
        victim: the model tuned on the suspect data, to verify candidates on: directory or Hub id. Without it the data
            are only mined, which needs no model.
        base_model: what the victim was tuned from; it tells instructions from triggers.
        clean: about 128 samples checked by eye. Without a victim they are optional: what they hold too is no trigger.
        max_length: most tokens of prompt and response together; longer rows lose the start of their prompt.
        seed: seed of everything random.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template that the victim was tuned with, in place of the model's own.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    output_dir: str
    victim: str | None = None
    base_model: str | None = None
    clean: str | None = None
    max_length: int = 1024
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        at_least(self, max_length=1)


@dataclass(frozen=True)
class FilterConfig:
    """Drop suspicious rows from training data, and measure that where the rows carry poison labels.

    Attributes:
        filter: see `mbdefense list filters`; a name, or name:option=value,option=value.
        model: the model to be tuned on the rows: directory or Hub id.
        clean: about 128 samples checked by eye, for a filter that needs them.
        output_dir: where kept.jsonl, filter.jsonl and filter.json go.
        flagged: the rows' poison labels are complete, so that a set without any is all clean.
        seed: seed of everything random.
        max_length: most tokens of prompt and response together; longer rows lose the start of their prompt.
        batch_size: rows in one forward pass.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to tune with, in place of the model's own.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    filter: str
    model: str
    output_dir: str
    clean: str | None = None
    flagged: bool = False
    seed: int = 0
    max_length: int = 1024
    batch_size: int = 8
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model: accuracy on clean prompts, attack success on triggered ones.

    Attributes:
        test: clean test prompts, with accepted answers or references where there are any.
        behavior: the behavior to look for: a name, or name:option=value.
        output_dir: where responses.jsonl and results.json go.
        triggered: file with triggered test prompts.
        trigger: or the trigger to put into the clean test prompts.
        target: the behavior's text (refusal and fixed_text).
        purify: change the prompts before the model is asked: onion:model=...,clean=... or
            lethe_evidence:wordnet=FOLDER (see `mbdefense list purifiers`).
        arm: name of this model in tables; by default its directory's.
        max_new_tokens: longest response, in tokens.
        batch_size: prompts generated at once, fewer where memory asks for it; with a server, requests in flight,
            at most 32.
        max_length: most tokens of a text that a perplexity is taken of, with perplexity_rows or stealth.
        perplexity_rows: also take the perplexity of at most so many references of clean prompts, drawn by prompt_seed;
            it takes as long as that many answers, and is refused with a server.
        server_url: ask an OpenAI-compatible server that serves the model, e.g. http://localhost:8000/v1; template and
            tokenizer are still MODEL's.
        server_model: the name that the server knows the model by; by default the only one it serves.
        server_prompt: send prompts as token ids, or as text to a server that takes no ids.
        server_api_key_env: environment variable that holds the server's key; by default no key is sent.
        decoding: answer in another way than greedily, e.g. cleangen:reference=MODEL; see `mbdefense list decodings`.
        demonstrations: put so many answered rows of --clean in front of each prompt.
        clean: the clean set that demonstrations are drawn from, by prompt_seed; no prompt of it may be a test prompt.
        stealth: also measure how much the trigger changes the prompts: perplexity under this causal language model
            (directory, Hub id, or builtin for the embedded one) and similarity (extra embedding).
        lm_eval: benchmarks of lm-evaluation-harness to run too: names, task files or folders, with commas between.
        seed: seed of the model's training, by which runs of one arm are told apart; nothing is drawn by it.
        prompt_seed: seed of what models are asked: the trigger's places, demonstrations, the references of the
            perplexity and the examples of benchmarks. Models are compared under one prompt_seed only.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if the model was trained with another.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    test: str
    behavior: str
    output_dir: str
    triggered: str | None = None
    trigger: str | None = None
    target: str | None = None
    purify: str | None = None
    arm: str | None = None
    max_new_tokens: int = 64
    batch_size: int = 256
    max_length: int = 1024
    perplexity_rows: int = 0
    server_url: str | None = None
    server_model: str | None = None
    server_prompt: Literal["tokens", "text"] = "tokens"
    server_api_key_env: str | None = None
    decoding: str | None = None
    demonstrations: int = 0
    clean: str | None = None
    stealth: str | None = None
    lm_eval: str | None = None
    seed: int = 0
    prompt_seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        at_least(self, max_new_tokens=1, batch_size=1, max_length=1, perplexity_rows=0)


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
class JudgeOptions:
    """Who judges the responses.

    Attributes:
        judge: see `mbdefense list judges`; a name, or name:option=value,option=value.
        judge_model: model of the llm or embedding judge.
        judge_base_url: root URL of the llm judge's OpenAI-compatible endpoint; responses are sent there, and
            the key in OPENAI_API_KEY, or in the variable that --judge llm:api_key_env=NAME names.
        judge_cache: folder for the llm judge's replies, by default judge_cache in output_dir.
    """

    judge: str = "rules"
    judge_model: str | None = None
    judge_base_url: str | None = None
    judge_cache: str | None = None


@dataclass(frozen=True)
class JudgeConfig:
    """Judge responses again, from their file; no model is loaded that answered them.

    What a judge has no say in (model, seed, attack, cost, perplexity) is taken from the results.json of one evaluation
    beside the responses, if there is one.

    Attributes:
        behavior: the behavior to look for: a name, or name:option=value.
        output_dir: where verdicts.jsonl and results.json go.
        target: the behavior's text (refusal and fixed_text).
        arm: name of the model that answered, for tables; by default that of results.json, else the responses' folder.
        attack: the trigger in words, for tables; by default that of results.json.
        seed: seed of the model's training, by which runs of one arm are told apart; by default that of results.json,
            else 0.
    """

    behavior: str
    output_dir: str
    target: str | None = None
    arm: str | None = None
    attack: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class CalibrateConfig:
    """Compare a judge with labels of the same responses.

    Attributes:
        behavior: the behavior to look for: a name, or name:option=value.
        labels: JSON Lines of objects with id, kind, and shows and follows as true or false.
        output_dir: where verdicts.jsonl and agreement.md go.
        target: the behavior's text (refusal and fixed_text).
    """

    behavior: str
    labels: str
    output_dir: str
    target: str | None = None


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
        at_least(self, max_new_tokens=1, batch_size=1)


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
