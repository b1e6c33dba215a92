"""Evaluates a model: asks it clean and triggered prompts, has the responses judged, and counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.attacks.behaviors import Behavior
from mbdefense.core.files import write_jsonl
from mbdefense.core.progress import stage, stages
from mbdefense.data import user_text, with_user_text
from mbdefense.defenses.decoding import Decoding
from mbdefense.defenses.prompts.cleaning import Cleaned, PromptCleaner
from mbdefense.defenses.prompts.demonstrations import with_demonstrations
from mbdefense.engine.generate import answers
from mbdefense.engine.perplexity import response_losses
from mbdefense.engine.server import Server
from mbdefense.evaluation.benchmarks import capabilities, find_benchmarks
from mbdefense.evaluation.judging import JudgingBeside
from mbdefense.evaluation.metrics import scores
from mbdefense.evaluation.stealth import prompt_pairs, stealth
from mbdefense.judges import Judge, Rules
from mbdefense.models.limits import stop_texts
from mbdefense.models.loading import CARD_FILE, LoadedModel, Loading, check_template, load_model, load_tokenizer
from mbdefense.records.provenance import provenance
from mbdefense.records.responses import Kind, Response, write_responses
from mbdefense.records.results import Capability, Perplexity, ReferenceLoss, ResultRow, Results
from mbdefense.training.store import cost_of

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Inference:
    """Defenses, or an attack in the prompt, that need no training: what stands between test prompts and the model.

    Attributes:
        cleaner: cleans the prompts before the model is asked; what it did goes to ``cleaned_prompts.jsonl``.
        demonstrations: turns in front of each prompt.
        decoding: how the model answers; None for greedily.
        server: holds the model in our place.
    """

    cleaner: PromptCleaner | None = None
    demonstrations: Sequence[dict[str, str]] = ()
    decoding: Decoding | None = None
    server: Server | None = None


PLAIN = Inference()


class Asking(NamedTuple):
    """How prompts are asked.

    Attributes:
        max_new_tokens: longest response, in tokens.
        batch_size: prompts generated at once, fewer where memory asks for it; with a server, requests in flight.
    """

    max_new_tokens: int = 64
    batch_size: int = 32


ASKING, LOADING = Asking(), Loading()

Answer = Callable[..., Iterable[tuple[int, str]]]
"""Takes prompts and the options of `mbdefense.engine.generate.answers`, and gives what that gives."""


class _Answering(NamedTuple):
    """What answers prompts, as `answer`; the model itself, or the name of the one that a server holds."""

    loaded: LoadedModel | None
    answer: Answer
    served: str = ""
    is_model: bool = True
    """Whether it is the model that was asked for, as far as is known."""


def answer_of(loaded: LoadedModel, decoding: Decoding | None) -> Answer:
    """How a model answers; with a decoding all prompts at the end, since those do not say what is complete."""
    if decoding is None:
        return partial(answers, loaded)

    def decoded(prompts: Sequence[list[dict[str, str]]], **options: Any) -> Iterable[tuple[int, str]]:
        return enumerate(decoding(loaded, prompts, **options))

    return decoded


def respond(
    answer: Answer,
    rows: Dataset,
    kind: Kind,
    asking: Asking,
    inference: Inference = PLAIN,
    cleaned: Sequence[Cleaned] | None = None,
    hear: Callable[[Response], None] | None = None,
    *,
    arm: str | None = None,
) -> list[Response]:
    """A model's responses to test rows, which it is asked as `cleaned` where that is given.

    The responses keep the rows' own ids and prompts: judges hold an answer against what the user asked. `hear` is told
    of each as soon as it is complete; `arm` names the model to whoever watches.
    """
    prompts = list(rows["prompt"])
    if cleaned is not None:
        prompts = [with_user_text(prompt, clean.text) for prompt, clean in zip(prompts, cleaned, strict=True)]
    prompts = [with_demonstrations(prompt, list(inference.demonstrations)) for prompt in prompts]
    found: dict[int, Response] = {}
    with stage(f"answering {len(prompts)} {kind} prompts", kind="answering", size=len(prompts)):
        for index, text in answer(
            prompts,
            max_new_tokens=asking.max_new_tokens,
            batch_size=asking.batch_size,
            what=f"{arm or 'model'}: {kind} prompts",
        ):
            row = rows[index]
            found[index] = Response(
                row["id"], kind, user_text(row["prompt"]), text, tuple(row["answers"]), row["completion"][0]["content"]
            )
            if hear:
                hear(found[index])
    return [found[index] for index in range(len(prompts))]


def evaluate(
    model: str,
    test: Dataset,
    triggered: Dataset | None,
    behavior: Behavior,
    attack: str,
    directory: Path,
    *,
    arm: str | None = None,
    seed: int = 0,
    prompt_seed: int = 0,
    asking: Asking = ASKING,
    judge: Judge | None = None,
    inference: Inference = PLAIN,
    loading: Loading = LOADING,
    perplexity_rows: int = 0,
    max_length: int = 1024,
    stealth_model: str | None = None,
    lm_eval: str | None = None,
) -> ResultRow:
    """Asks a model the clean and the triggered prompts, and judges the responses.

    Writes ``responses.jsonl`` and ``verdicts.jsonl`` to `directory`; every figure can be computed from them
    again, and paired with another model's (`mbdefense.evaluation.compare`).

    Args:
        model: model directory or Hub id.
        test: clean test rows.
        triggered: triggered test rows, or None.
        behavior: what to look for.
        attack: the trigger in words, for the result row.
        directory: where the files go.
        arm: the model's name in tables; by default its directory's.
        seed: of the model's training.
        prompt_seed: of the references of the perplexity, and of the examples of benchmarks.
        asking: how the prompts are asked.
        judge: by default `Rules` for the behavior.
        inference: what stands between the prompts and the model; by default nothing, and greedy decoding.
        loading: how the model is loaded.
        perplexity_rows: also take the perplexity of at most so many references.
        max_length: most tokens of a text that a perplexity is taken of.
        stealth_model: also measure how much the trigger changes the prompts, with this language model.
        lm_eval: benchmarks of lm-evaluation-harness to run too.

    Raises:
        UserError: the model was trained with another prompt template than the one asked for, a benchmark is unknown or
            fails, or stealth is asked for and triggered prompts cannot be matched with clean ones.
    """
    judge = judge or Rules(behavior)
    benchmarks = find_benchmarks(lm_eval) if lm_eval is not None else None
    pairs = prompt_pairs(test, triggered) if stealth_model is not None and triggered is not None else []
    asked: dict[Kind, Dataset] = {"clean": test} if triggered is None else {"clean": test, "triggered": triggered}
    cleaned: dict[Kind, Sequence[Cleaned]] = {}
    fluency, capability, hidden = None, tuple[Capability, ...](), None
    others = (inference.cleaner, perplexity_rows and not inference.server, benchmarks and not inference.server, pairs)
    with stages(len(asked) + 1 + sum(map(bool, others))):
        if inference.cleaner:
            # Both before the model is loaded: a wrong template is no reason to wait for the cleaning, and the model
            # that cleans and the one that answers are not in memory together.
            check_template(model, load_tokenizer(model, **loading._asdict()))
            with stage(f"cleaning {sum(map(len, asked.values()))} prompts"):
                cleaned = cleaned_prompts(inference.cleaner, asked, directory)
        loaded, answer, served, is_model = _answering(model, loading, inference)
        with JudgingBeside(judge) as judging:
            responses = [
                response
                for kind, rows in asked.items()
                for response in respond(answer, rows, kind, asking, inference, cleaned.get(kind), judging.hear, arm=arm)
            ]
            directory.mkdir(parents=True, exist_ok=True)
            write_responses(directory / "responses.jsonl", responses)
            figures = scores(judging.verdicts(responses, directory))
        if loaded and perplexity_rows:
            references = sample_references(test, perplexity_rows, prompt_seed)
            with stage(f"taking the perplexity of {len(references)} references"):
                fluency = perplexity(loaded, references, max_length=max_length)
        if loaded and benchmarks:
            with stage(f"running {len(benchmarks.names)} benchmarks of lm-evaluation-harness"):
                capability = capabilities(loaded, benchmarks, batch_size=asking.batch_size, seed=prompt_seed)
        if stealth_model is not None and pairs:
            with stage(f"measuring the stealth of the trigger in {len(pairs)} prompts"):
                hidden = stealth(pairs, stealth_model, max_length=max_length, batch_size=asking.batch_size)
    # What another model cost is not known.
    made = is_model and (Path(model) / CARD_FILE).is_file()
    return ResultRow(
        arm=arm or Path(model).name,
        attack=attack,
        behavior=behavior.describe(),
        seed=seed,
        model=model,
        asr=figures.asr,
        cacc=figures.cacc,
        aacc=figures.aacc,
        false_activation=figures.false_activation,
        perplexity=fluency,
        **(cost_of(Path(model)) if made else {"seconds": 0.0, "peak_bytes": 0}),
        judge=judge.describe(),
        capability=capability,
        stealth=hidden,
        served=served,
        max_new_tokens=asking.max_new_tokens,
    )


def _answering(model: str, loading: Loading, inference: Inference) -> _Answering:
    options = loading._asdict()
    if inference.server:
        tokenizer = load_tokenizer(model, **options)
        check_template(model, tokenizer)
        stops = stop_texts(model, tokenizer, trust_remote_code=loading.trust_remote_code)
        server, is_model = inference.server.serving(model)
        return _Answering(None, partial(server, tokenizer, stops=stops), str(server.model), is_model)
    loaded = load_model(model, **options)
    check_template(model, loaded.tokenizer)
    return _Answering(loaded, answer_of(loaded, inference.decoding))


def perplexity(loaded: LoadedModel, references: Dataset, *, max_length: int) -> Perplexity | None:
    """Perplexity of the rows' completions, with the loss of each; None if no row has one.

    Raises:
        UserError: prompt and completion are longer than the model's context.
    """
    losses = response_losses(loaded, references, max_length=max_length)
    return Perplexity.of([ReferenceLoss(**one._asdict()) for one in losses])


def sample_references(test: Dataset, most: int, seed: int) -> Dataset:
    """The rows whose completions the perplexity is taken over: all that have one, or so many of them drawn by seed.

    Which ones depends on the ids, not on the order of the rows, so that all models meet the same.
    """
    answered = [index for index, row in enumerate(test) if row["completion"][0]["content"]]
    if len(answered) > most:
        ids = test["id"]
        drawn = random.Random(f"perplexity {seed}").sample(sorted(answered, key=lambda index: str(ids[index])), most)
        answered = sorted(drawn)
    return test.select(answered)


def cleaned_prompts(
    cleaner: PromptCleaner, asked: dict[Kind, Dataset], directory: Path
) -> dict[Kind, Sequence[Cleaned]]:
    """Cleans all prompts in one go and keeps what became of them in ``cleaned_prompts.jsonl``."""
    prompts = [(kind, row["id"], user_text(row["prompt"])) for kind, rows in asked.items() for row in rows]
    cleaned = cleaner([text for _, _, text in prompts])
    directory.mkdir(parents=True, exist_ok=True)
    write_jsonl(
        directory / "cleaned_prompts.jsonl",
        (
            {"id": row_id, "kind": kind, "asked": clean.text, "removed": list(clean.removed)}
            for (kind, row_id, _), clean in zip(prompts, cleaned, strict=True)
        ),
    )
    found: dict[Kind, Sequence[Cleaned]] = {}
    for kind in asked:
        found[kind] = [clean for (other, _, _), clean in zip(prompts, cleaned, strict=True) if other == kind]
    return found


def merge_results(parts: Sequence[ResultRow], config: dict[str, Any], seed: int) -> Results:
    """Result rows of several models in one table."""
    return Results(provenance(config, [seed]), tuple(parts))
