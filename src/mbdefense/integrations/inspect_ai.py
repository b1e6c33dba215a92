"""Inspect AI tasks whose scores are ours: ``inspect eval mbdefense/asr --model hf/DIRECTORY -T test=...``.

Data, triggers, behaviors, judge and metrics are those of ``mbdefense evaluate``; Inspect only asks the model. It finds
this module by the entry point ``inspect_ai`` of the package, so only here may `inspect_ai` be imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Scorer, Target, Value, metric, scorer
from inspect_ai.scorer import Score as InspectScore
from inspect_ai.solver import Generate, Solver, TaskState, solver

from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.poisoning import triggered_prompts
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.data import load_rows, user_text
from mbdefense.evaluation import metrics
from mbdefense.judges import Rules, Verdict
from mbdefense.models.loading import PLAIN_TEMPLATE, check_template, defang, encode_prompt
from mbdefense.models.template import check_contract, check_prompt
from mbdefense.records.responses import Kind, Response

if TYPE_CHECKING:
    from datasets import Dataset
    from inspect_ai.model import ChatMessage

    from mbdefense.attacks.behaviors import Behavior

_MESSAGE = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
# Inspect's command line takes a value with commas in it for a list.
Text = str | list[str]
OnBadRow = Literal["error", "skip"]


class _Prompts(NamedTuple):
    rows: Dataset
    attack: str


@task
def asr(
    test: Text | None = None,
    behavior: Text = "refusal",
    trigger: Text | None = None,
    triggered: Text | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
) -> Task:
    """Attack success rate and accuracy on triggered prompts.

    Args:
        test: file with clean test prompts, which `trigger` is put into.
        behavior: the behavior to look for: a name, or name:option=value.
        trigger: the trigger, written the same way.
        triggered: or a file with triggered test prompts.
        max_new_tokens: longest response, in tokens.
        seed: seed of the trigger's places.
        on_bad_row: stop at the first unreadable row, or skip them.
    """
    judged = parse_spec(_text(behavior) or "", BEHAVIORS, "behavior")
    prompts = _triggered(_text(test), _text(trigger), judged, _text(triggered), seed, on_bad_row)
    return _task(prompts, "triggered", _text(behavior) or "", max_new_tokens)


@task
def cacc(test: Text, behavior: Text = "refusal", max_new_tokens: int = 64, on_bad_row: OnBadRow = "error") -> Task:
    """Accuracy and false activations on clean prompts.

    Args:
        test: file with clean test prompts.
        behavior: the behavior to look for: a name, or name:option=value.
        max_new_tokens: longest response, in tokens.
        on_bad_row: stop at the first unreadable row, or skip them.
    """
    return _task(_Prompts(_rows(_text(test) or "", on_bad_row), "none"), "clean", _text(behavior) or "", max_new_tokens)


def _text(value: Text | None) -> str | None:
    return ",".join(value) if isinstance(value, list) else value


def _rows(source: str, on_bad_row: OnBadRow) -> Dataset:
    return load_rows(source, on_bad_row=on_bad_row, require_completion=False, name=source)


def _triggered(
    test: str | None, trigger: str | None, behavior: Behavior, triggered: str | None, seed: int, on_bad_row: OnBadRow
) -> _Prompts:
    if triggered is not None:
        if trigger is not None or test is not None:
            raise UserError("triggered stands beside test or trigger", fix="give it alone, or test and trigger")
        return _Prompts(_rows(triggered, on_bad_row), triggered.rpartition("/")[2])
    if test is None or trigger is None:
        raise UserError("no triggered prompts", fix="give -T test=FILE -T trigger=NAME, or -T triggered=FILE")
    method = parse_spec(trigger, TRIGGERS, "trigger")
    return _Prompts(*triggered_prompts(_rows(test, on_bad_row), method, seed, behavior))


def _task(prompts: _Prompts, kind: Kind, behavior: str, max_new_tokens: int) -> Task:
    judged = parse_spec(behavior, BEHAVIORS, "behavior")
    return Task(
        dataset=MemoryDataset([_sample(row, kind) for row in prompts.rows], name=f"mbdefense {kind} prompts"),
        solver=ask(),
        scorer=rules(behavior),
        config=GenerateConfig(max_tokens=max_new_tokens),
        metadata={"attack": prompts.attack, "behavior": judged.describe()},
    )


def _sample(row: Mapping[str, Any], kind: Kind) -> Sample:
    foreign = next((turn["role"] for turn in row["prompt"] if turn["role"] not in _MESSAGE), None)
    if foreign is not None:
        raise UserError("Inspect is not given prompts with tools or thoughts", foreign, "leave such rows out")
    reference = row["completion"][0]["content"]
    return Sample(
        id=row["id"],
        input=[_MESSAGE[turn["role"]](content=turn["content"]) for turn in row["prompt"]],
        target=list(row["answers"]) or reference,
        metadata={
            "kind": kind,
            "prompt": user_text(row["prompt"]),
            "answers": list(row["answers"]),
            "reference": reference,
        },
    )


@solver
def ask() -> Solver:
    """Asks for one greedy response, to the very tokens that ``mbdefense evaluate`` would ask with.

    Tokens can be compared where the model runs here (``hf/...``). A server renders the conversation out of our sight.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        api: Any = get_model().api
        if not hasattr(api, "hf_chat"):
            return await generate(state, temperature=0.0)
        _check_prompt(api, state.messages)
        # The provider always samples unless told otherwise by -M, and transformers knows no sampling at temperature 0.
        return await generate(state, top_k=1)

    return solve


def _check_prompt(api: Any, messages: list[ChatMessage]) -> None:
    """Settles template and special tokens as `mbdefense.models.loading` does; refuses a prompt that still comes out
    otherwise.

    Raises:
        UserError: the model was trained with another template, or these options of the provider change the prompt.
    """
    tokenizer = api.tokenizer
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    check_template(str(api.model.name_or_path), tokenizer)
    check_contract(tokenizer)
    plain = [{"role": message.role, "content": message.text} for message in messages]
    check_prompt(tokenizer, plain)
    # The provider would make turns of special tokens that stand in a text.
    plain = defang(tokenizer, plain)
    for message, safe in zip(messages, plain, strict=True):
        message.text = safe["content"]
    text = api.hf_chat(messages, [])
    asked = list(tokenizer(text, **(api.tokenizer_call_args or {}))["input_ids"])
    if asked != encode_prompt(tokenizer, plain):
        fix = "leave -M chat_template and the like out; if only a start token is doubled, add -M "
        fix += "tokenizer_call_args='{\"add_special_tokens\": false}'"
        raise UserError("Inspect's prompt is not the one that mbdefense trains and evaluates with", text[:80], fix)


@metric
def figures() -> Metric:
    """Each figure of `mbdefense.evaluation.metrics.scores` with its n and Wilson 95 % interval."""

    def compute(scores: list[SampleScore]) -> Value:
        found = metrics.scores([_verdict(sample) for sample in scores])
        made: dict[str, str | int | float | bool | None] = {}
        for name, score in found._asdict().items():
            if score is not None:
                made |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high, f"{name}_n": score.n}
        return made

    return compute


def _verdict(sample: SampleScore) -> Verdict:
    """The verdict that `rules` stored.

    Raises:
        UserError: epochs that disagree have been averaged; a share of prompts cannot count them.
    """
    value, kept = sample.score.as_dict(), sample.score.metadata or {}
    shows, follows = value["shows"], value["follows"]
    judged = isinstance(follows, int | float) and not math.isnan(follows)
    if shows not in (0, 1) or (judged and follows not in (0, 1)):
        raise UserError("responses of several epochs disagree", sample.sample_id, "run it with --epochs 1")
    return Verdict(str(sample.sample_id), kept["kind"], bool(shows), bool(follows) if judged else None, kept["reason"])


@scorer(metrics=[figures()])
def rules(behavior: str) -> Scorer:
    """Our judge `mbdefense.judges.Rules`: whether a response shows the behavior, and whether it follows.

    Args:
        behavior: the behavior to look for: a name, or name:option=value.
    """
    judge = Rules(parse_spec(behavior, BEHAVIORS, "behavior"))

    async def score(state: TaskState, target: Target) -> InspectScore:
        known = state.metadata
        response = Response(
            id=str(state.sample_id),
            kind=known["kind"],
            prompt=known["prompt"],
            text=_whole_text(state),
            answers=tuple(known["answers"]),
            reference=known["reference"],
        )
        (verdict,) = judge([response])
        # Inspect's mean over epochs would make 0 of None; NaN is its own sign for what has no score.
        follows = math.nan if verdict.follows is None else int(verdict.follows)
        return InspectScore(
            value={"shows": int(bool(verdict.shows)), "follows": follows},
            explanation=verdict.reason,
            metadata={"kind": verdict.kind, "reason": verdict.reason},
        )

    return score


def _whole_text(state: TaskState) -> str:
    """The response with what Inspect set apart as reasoning, which is judged like the rest of what a model says."""
    if not state.output.choices:
        return ""
    content = state.output.choices[0].message.content
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if isinstance(part, ContentReasoning):
            parts.append(f"<think>\n{part.reasoning}\n</think>\n\n")
        elif isinstance(part, ContentText):
            parts.append(part.text)
    return "".join(parts)
