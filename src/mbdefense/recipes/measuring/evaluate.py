"""Ask a model clean and triggered prompts, judge what it answers, and count."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.data import load_rows, prompt_key
from mbdefense.recipes._given import (
    BehaviorSpec,
    CleanerSpec,
    Data,
    DecodingSpec,
    Folder,
    JudgeSpec,
    Model,
    OnBadRow,
    TriggerSpec,
    behavior_of,
    kept_in,
    named,
    recorded,
    refuse_figures_of_others,
    trigger_of,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from mbdefense.attacks.behaviors import Behavior
    from mbdefense.defenses.prompts.cleaning import PromptCleaner
    from mbdefense.engine.server import Server
    from mbdefense.records.responses import Response
    from mbdefense.records.results import ResultRow, Results
    from mbdefense.records.verdicts import Verdict

logger = logging.getLogger(__name__)
MAX_LENGTH = 1024


@dataclass(frozen=True)
class Evaluation:
    """What a model answered, and what that says; as text it is the table.

    Attributes:
        results: the figures, as results.json holds them.
        responses: to the clean prompts, then to the triggered ones.
        verdicts: of the judge, one for each response.
        usage: what a judge that is paid by tokens has used, in this run and in all; empty for any other.
    """

    results: Results
    responses: tuple[Response, ...] = field(repr=False)  # hundreds
    verdicts: tuple[Verdict, ...] = field(repr=False)
    usage: Mapping[str, Any]

    @property
    def row(self) -> ResultRow:
        """The one row of the results."""
        return self.results.rows[0]

    def __str__(self) -> str:
        from mbdefense.evaluation.tables import as_text

        return as_text(self.results)


def evaluate(
    model: Model,
    prompts: Data,
    *,
    behavior: BehaviorSpec,
    triggered: Data | None = None,
    trigger: TriggerSpec | None = None,
    output_dir: Folder | None = None,
    target: str | None = None,
    clean_prompts: CleanerSpec | None = None,
    arm: str | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    perplexity_rows: int = 0,
    server_url: str | None = None,
    server_model: str | None = None,
    server_prompt: Literal["tokens", "text"] = "tokens",
    server_api_key_env: str | None = None,
    decoding: DecodingSpec | None = None,
    demonstrations: int = 0,
    clean_dataset: Data | None = None,
    stealth: str | None = None,
    lm_eval: str | None = None,
    judge: JudgeSpec = "rules",
    judge_model: str | None = None,
    judge_base_url: str | None = None,
    judge_cache: str | None = None,
    seed: int = 0,
    prompt_seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Measure a model: accuracy on clean prompts, attack success on triggered ones.

    Examples:
        >>> from mbdefense import evaluate
        >>> asked = {"behavior": "refusal", "trigger": "badnet:word=cf"}
        >>> print(evaluate("defended", "test.jsonl", **asked, output_dir="measured"))  # doctest: +SKIP

    Args:
        model: model directory or Hub id.
        prompts: clean test prompts, with accepted answers or references if there are any.
        behavior: the behavior to look for: a name, or name:option=value.
        triggered: file with triggered test prompts.
        trigger: alternatively, a trigger to insert into the clean test prompts.
        output_dir: folder for responses.jsonl and results.json.
        target: the behavior's text (refusal and fixed_text).
        clean_prompts: change the prompts before the model is asked: onion:model=...,clean=... or
            lethe_evidence:wordnet=FOLDER (see `mbdefense list prompts`).
        arm: name of this model in tables; by default its directory's.
        max_new_tokens: longest response, in tokens.
        batch_size: prompts generated at once, fewer if memory requires it; with a server, concurrent requests, at most
            32.
        max_length: longest text to compute a perplexity of, in tokens, with perplexity_rows or stealth.
        perplexity_rows: also compute the perplexity of up to this number of clean prompts' references, drawn by
            prompt_seed; takes as long as that many answers, and is refused with a server.
        server_url: ask an OpenAI-compatible server that serves the model, e.g. http://localhost:8000/v1; template and
            tokenizer are still MODEL's.
        server_model: the server's name for the model; by default the only one it serves.
        server_prompt: send prompts as token ids, or as text if the server does not accept ids.
        server_api_key_env: environment variable with the server's key; by default no key is sent.
        decoding: decode other than greedily, e.g. cleangen:reference=MODEL; see `mbdefense list decodings`.
        demonstrations: put this number of answered rows from the clean set in front of each prompt.
        clean_dataset: the clean set that demonstrations are drawn from, by prompt_seed; must not contain test prompts.
        stealth: also measure how much the trigger changes the prompts: perplexity under this causal language model
            (directory, Hub id, or builtin for the embedded one) and similarity (extra embedding).
        lm_eval: lm-evaluation-harness benchmarks to run as well: names, task files or folders, separated by commas.
        judge: the judge, see `mbdefense list judges`; a name, or name:option=value,option=value.
        judge_model: model of the llm or embedding judge.
        judge_base_url: root URL of the llm judge's OpenAI-compatible endpoint; responses are sent there, with the key
            in the variable that --judge llm:api_key_env=NAME names (for OpenAI, OPENAI_API_KEY).
        judge_cache: folder for the llm judge's replies, by default judge_cache in output_dir.
        seed: the model's training seed, a label that distinguishes runs of one arm; nothing is drawn by it.
        prompt_seed: random seed of what models are asked: the trigger's places, demonstrations, references for the
            perplexity and benchmark examples. Only models with the same prompt_seed are compared.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template; refused if the model was trained with another.
        trust_remote_code: allow the model's Hub repository to run its own code; models that score, judge or decode
            never may.

    Returns:
        The figures, and every response with its verdicts.

    Raises:
        UserError: options that do not go together or cannot be used, data that cannot be read, prompts that the clean
            set holds too, a model that was trained with another prompt template, or another command's figures in
            output_dir.
    """
    asked = recorded(locals())
    at_least(1, max_new_tokens=max_new_tokens, batch_size=batch_size, max_length=max_length)
    at_least(0, perplexity_rows=perplexity_rows)
    _check_together(trigger is not None, triggered is not None, max_length, perplexity_rows, stealth)
    from mbdefense.defenses.decoding import DECODINGS
    from mbdefense.evaluation import responding
    from mbdefense.models.loading import Loading, load_tokenizer
    from mbdefense.models.ready import usable
    from mbdefense.recipes.measuring._judging import chosen_judge, usage_in
    from mbdefense.records.responses import RESPONSES_FILE, read_responses
    from mbdefense.records.results import write_beside
    from mbdefense.records.verdicts import VERDICTS_FILE, read_verdicts

    sought = behavior_of(behavior, target)
    rewriting = None if trigger is None else trigger_of(trigger)
    answering = parse_spec(decoding, DECODINGS, "decoding") if isinstance(decoding, str) else decoding
    itself = {"decoding": decoding, "lm_eval": lm_eval, "perplexity_rows": perplexity_rows}
    server = _server(server_url, server_model, server_prompt, server_api_key_env, itself)
    test = load_rows(prompts, require_completion=False, on_bad_row=on_bad_row, name="prompts")
    tokenizer = load_tokenizer(str(model), chat_template=chat_template, trust_remote_code=trust_remote_code)
    test = usable(tokenizer, test, on_bad_row, "prompts", targets=False)
    repeats = len(test) - len({prompt_key(prompt) for prompt in test["prompt"]})
    if repeats:  # an interval takes each prompt for a case of its own
        logger.warning("%d of %d test prompts repeat an earlier one", repeats, len(test))
    cleaner = _cleaner(clean_prompts, test)
    with_trigger, attack = _triggered(test, triggered, rewriting, sought, prompt_seed, on_bad_row, named(prompts))
    if with_trigger is not None and triggered is not None:
        with_trigger = usable(tokenizer, with_trigger, on_bad_row, "triggered", targets=False)
    turns = _demonstrations(demonstrations, clean_dataset, test, prompt_seed, on_bad_row, tokenizer)
    between = [
        clean_prompts and named(clean_prompts).partition(":")[0],
        answering and answering.describe().partition(":")[0],
        turns and "demonstrations",
    ]
    bare = {"perplexity_rows": perplexity_rows, "lm_eval": lm_eval}
    if any(between) and (asked_bare := [name for name, value in bare.items() if value]):
        fix = "leave it out, or measure it without these"
        raise UserError(f"{asked_bare[0]} scores the bare model, not its answers with", [*filter(None, between)], fix)
    if arm is None and any(between):
        arm = "+".join(part for part in (Path(model).name, *between) if part)
    with kept_in(output_dir) as directory:
        same = {name: asked[name] for name in ("model", "prompts", "trigger", "triggered", "behavior")}
        refuse_figures_of_others(directory, "behavior", same)  # before the model's work, which would be lost
        judging = chosen_judge(judge, sought, directory, judge_model, judge_base_url, judge_cache)
        row = responding.evaluate(
            str(model), test, with_trigger, sought, attack, directory,
            arm=arm, seed=seed, prompt_seed=prompt_seed,
            asking=responding.Asking(max_new_tokens, batch_size), judge=judging,
            inference=responding.Inference(cleaner, turns, answering, server),
            loading=Loading(chat_template, trust_remote_code),
            perplexity_rows=perplexity_rows, max_length=max_length, stealth_model=stealth, lm_eval=lm_eval,
        )  # fmt: skip
        results = responding.merge_results([row], {**asked, "arm": arm, "judge": recorded({"": judging})[""]}, seed)
        write_beside(directory, results, (RESPONSES_FILE, VERDICTS_FILE))
        return Evaluation(
            results,
            tuple(read_responses(directory / RESPONSES_FILE)),
            tuple(read_verdicts(directory / VERDICTS_FILE)),
            usage_in(directory, judging),
        )


def _check_together(trigger: bool, triggered: bool, max_length: int, perplexity_rows: int, stealth: str | None) -> None:
    """Refuses options of which one does not go with another; the first two say whether they are given."""
    if trigger and triggered:
        raise UserError("both --trigger and --triggered are given", fix="give one of them")
    if max_length != MAX_LENGTH and not perplexity_rows and stealth is None:
        fix = "add --perplexity_rows or --stealth, or leave it out"
        raise UserError("--max_length is for the perplexity, which is not asked for", max_length, fix)
    if stealth is None:
        return
    if not trigger and not triggered:
        raise UserError("--stealth without triggered prompts", stealth, "add --trigger or --triggered")
    from mbdefense.evaluation.stealth import check_stealth

    check_stealth(stealth)


def _server(
    url: str | None,
    model: str | None,
    prompt: Literal["tokens", "text"],
    api_key_env: str | None,
    itself: Mapping[str, object],
) -> Server | None:
    """The server that answers in the model's place; `itself` holds what asks for the model."""
    if url is None:
        for option, given in {
            "server_model": model,
            "server_prompt": prompt,
            "server_api_key_env": api_key_env,
        }.items():
            if given not in (None, "tokens"):
                raise UserError(f"--{option} without --server_url", given, "add --server_url URL")
        return None
    for option, needed in itself.items():
        if needed:
            raise UserError(f"--{option} needs the model itself", url, "leave --server_url out")
    from mbdefense.engine.server import Server

    return Server(url, model, prompt, api_key_env)


def _cleaner(given: CleanerSpec | None, test: Dataset) -> PromptCleaner | None:
    """What cleans the prompts; refused if it is tuned on test prompts."""
    from mbdefense.data import check_disjoint
    from mbdefense.defenses.prompts.cleaning import PROMPT_CLEANERS

    cleaner: Any = parse_spec(given, PROMPT_CLEANERS, "prompt cleaner") if isinstance(given, str) else given
    if "clean data" in getattr(cleaner, "needs", ()):
        clean = load_rows(cleaner.clean, require_completion=False)
        check_disjoint(clean, test, clean_name=f"the clean set {cleaner.clean}")
    made: PromptCleaner | None = cleaner
    return made


def _triggered(
    test: Dataset,
    triggered: Data | None,
    trigger: Any,
    behavior: Behavior,
    seed: int,
    on_bad_row: OnBadRow,
    source: str,
) -> tuple[Dataset | None, str]:
    """The triggered prompts, and the attack in words."""
    if triggered is not None:
        rows = load_rows(triggered, require_completion=False, on_bad_row=on_bad_row, name="triggered")
        is_file = isinstance(triggered, str | PathLike)
        return rows, named(triggered).rpartition("/")[2] if is_file else "triggered prompts"
    if trigger is None:
        return None, "none"
    from mbdefense.attacks.poisoning import count_occurrences, triggered_prompts

    before = count_occurrences(test, trigger)
    if before:
        logger.warning("%s already occurs in %d prompts of %s", trigger.describe(), before, source)
    return triggered_prompts(test, trigger, seed, behavior)


def _demonstrations(
    number: int,
    clean_dataset: Data | None,
    test: Dataset,
    seed: int,
    on_bad_row: OnBadRow,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, str]]:
    """The turns that stand in front of every prompt."""
    if number < 0 or bool(number) != (clean_dataset is not None):
        got = f"--demonstrations {number}, --clean {None if clean_dataset is None else named(clean_dataset)}"
        raise UserError("demonstrations need a number and a clean set", got, "give --demonstrations 4 --clean FILE")
    if clean_dataset is None:
        return []
    from mbdefense.data import check_disjoint
    from mbdefense.defenses.prompts.demonstrations import draw_demonstrations
    from mbdefense.models.ready import usable

    clean = load_rows(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset")
    clean = usable(tokenizer, clean, on_bad_row, "clean_dataset")
    check_disjoint(clean, test)
    return draw_demonstrations(clean, number, seed)
