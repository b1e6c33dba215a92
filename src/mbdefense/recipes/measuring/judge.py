"""Judge responses again, and compare a judge with labels; no model is loaded that answered them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.recipes._given import (
    Answered,
    BehaviorSpec,
    Folder,
    JudgeSpec,
    behavior_of,
    kept_in,
    named,
    recorded,
    refuse_figures_of_others,
)

if TYPE_CHECKING:
    from mbdefense.recipes.measuring.evaluate import Evaluation
    from mbdefense.records.responses import Response
    from mbdefense.records.results import ResultRow


def judge(
    responses: Answered,
    *,
    behavior: BehaviorSpec,
    output_dir: Folder | None = None,
    target: str | None = None,
    arm: str | None = None,
    attack: str | None = None,
    seed: int | None = None,
    judge: JudgeSpec = "rules",
    judge_model: str | None = None,
    judge_base_url: str | None = None,
    judge_cache: str | None = None,
) -> Evaluation:
    """Judge responses again, from their file; the model that answered is not loaded.

    Examples:
        >>> from mbdefense import judge
        >>> print(judge("measured/responses.jsonl", behavior="refusal", judge="keywords"))  # doctest: +SKIP

    What a judge has no say in (model, seed, attack, cost, perplexity) is taken from the results.json of one evaluation
    beside the responses, if there is one.

    Args:
        responses: a file that `evaluate` wrote, or what it returned.
        behavior: the behavior to look for: a name, or name:option=value.
        output_dir: folder for verdicts.jsonl and results.json.
        target: the behavior's text (refusal and fixed_text).
        arm: name of the model that answered, for tables; by default that of results.json, else the responses' folder.
        attack: the trigger in words, for tables; by default that of results.json.
        seed: the model's training seed, a label that distinguishes runs of one arm; by default that of results.json,
            else 0.
        judge: the judge, see `mbdefense list judges`; a name, or name:option=value,option=value.
        judge_model: model of the llm or embedding judge.
        judge_base_url: root URL of the llm judge's OpenAI-compatible endpoint; responses are sent there, with the key
            in the variable that --judge llm:api_key_env=NAME names (for OpenAI, OPENAI_API_KEY).
        judge_cache: folder for the llm judge's replies, by default judge_cache in output_dir.

    Returns:
        The figures that the judge gives, and every response with its new verdicts.

    Raises:
        UserError: a file is damaged, there is no such judge or behavior, or another command's figures lie in
            output_dir.
    """
    asked = recorded(locals())
    from mbdefense.core.errors import UserError
    from mbdefense.evaluation.judging import rejudged
    from mbdefense.recipes.measuring._judging import chosen_judge, usage_in
    from mbdefense.recipes.measuring.evaluate import Evaluation
    from mbdefense.records.provenance import provenance
    from mbdefense.records.responses import RESPONSES_FILE, read_responses, write_responses
    from mbdefense.records.results import Results, write_beside
    from mbdefense.records.verdicts import VERDICTS_FILE, read_verdicts

    sought = behavior_of(behavior, target)
    with kept_in(output_dir) as directory:
        refuse_figures_of_others(directory, "behavior")  # `evaluate` names it, too: it wrote what is judged again
        judging = chosen_judge(judge, sought, directory, judge_model, judge_base_url, judge_cache)
        answered, known = _answered(responses)  # refuses a damaged file before a judge is paid
        if (directory / RESPONSES_FILE).is_file() and read_responses(directory / RESPONSES_FILE) != answered:
            raise UserError("other responses lie in", str(directory), "use another --output_dir")
        known = replace(
            known, arm=arm or known.arm, attack=attack or known.attack, seed=known.seed if seed is None else seed
        )
        # Beside the verdicts, so that `compare` reads the folder like one of `evaluate`.
        write_responses(directory / RESPONSES_FILE, answered)
        row = rejudged(judging, answered, sought, directory, known)
        asked = {**asked, "judge": recorded({"": judging})[""]}
        results = Results(provenance(asked, [row.seed]), (row,))
        write_beside(directory, results, (RESPONSES_FILE, VERDICTS_FILE))
        verdicts = tuple(read_verdicts(directory / VERDICTS_FILE))
        return Evaluation(results, tuple(answered), verdicts, usage_in(directory, judging))


@dataclass(frozen=True)
class Calibration:
    """A judge compared with labels; as text it is Markdown.

    Attributes:
        agreement: the same text, as agreement.md holds it.
        usage: what a judge that is paid by tokens has used, in this run and in all; empty for any other.
    """

    agreement: str
    usage: Mapping[str, Any]

    def __str__(self) -> str:
        return self.agreement


def calibrate(
    responses: Answered,
    *,
    behavior: BehaviorSpec,
    labels: str,
    output_dir: Folder | None = None,
    target: str | None = None,
    judge: JudgeSpec = "rules",
    judge_model: str | None = None,
    judge_base_url: str | None = None,
    judge_cache: str | None = None,
) -> Calibration:
    """Compare a judge with labels of the same responses.

    Args:
        responses: a file that `evaluate` wrote, or what it returned.
        behavior: the behavior to look for: a name, or name:option=value.
        labels: JSON Lines file of objects with id, kind, and shows and follows as true or false.
        output_dir: folder for verdicts.jsonl and agreement.md.
        target: the behavior's text (refusal and fixed_text).
        judge: the judge, see `mbdefense list judges`; a name, or name:option=value,option=value.
        judge_model: model of the llm or embedding judge.
        judge_base_url: root URL of the llm judge's OpenAI-compatible endpoint; responses are sent there, with the key
            in the variable that --judge llm:api_key_env=NAME names (for OpenAI, OPENAI_API_KEY).
        judge_cache: folder for the llm judge's replies, by default judge_cache in output_dir.

    Raises:
        UserError: a file is damaged, a label belongs to none of the responses, or the judge cannot tell what they ask.
    """
    from mbdefense.core.files import refuse_over
    from mbdefense.evaluation.agreement import read_labels
    from mbdefense.evaluation.judging import calibrated
    from mbdefense.recipes.measuring._judging import chosen_judge, usage_in
    from mbdefense.records.verdicts import VERDICTS_FILE

    sought = behavior_of(behavior, target)
    with kept_in(output_dir) as directory:
        refuse_over([directory / VERDICTS_FILE], [labels])
        judging = chosen_judge(judge, sought, directory, judge_model, judge_base_url, judge_cache)
        answered, _ = _answered(responses)
        text = calibrated(judging, answered, read_labels(labels), directory)
        return Calibration(text, usage_in(directory, judging))


def _answered(given: Answered) -> tuple[list[Response], ResultRow]:
    """The responses, and what is known of the model that gave them."""
    from mbdefense.evaluation.judging import row_beside, unknown_row
    from mbdefense.records.responses import read_responses

    if isinstance(given, str | PathLike):
        path = Path(fspath(given))
        return read_responses(path), row_beside(path)
    if isinstance(given, list):
        return given, unknown_row("model", named(given))
    return list(given.responses), given.row
