"""Judging responses: with any judge of the table, again from a file, or to see how far the judge can be believed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

from mbdefense.attacks.behaviors import Behavior
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.files import write_json, write_text
from mbdefense.core.progress import stage, stages
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import escaped
from mbdefense.evaluation.agreement import OUTCOMES, Agreement, Label, agreement, match, outcomes
from mbdefense.evaluation.landing import shown
from mbdefense.evaluation.metrics import scores
from mbdefense.judges import JUDGES, Embedding, Judge, Metered, Usage, Verdict, write_verdicts
from mbdefense.records.responses import RESPONSES_FILE, Response
from mbdefense.records.results import RESULT_FILE, ResultRow, check_beside, read
from mbdefense.records.verdicts import Question

USAGE_FILE = "judge_usage.json"


def make_judge(
    spec: str,
    behavior: Behavior,
    directory: str | Path,
    *,
    model: str | None = None,
    base_url: str | None = None,
    cache: str | None = None,
) -> Judge:
    """The judge that a spec describes.

    Args:
        spec: a name of `JUDGES`, or name:option=value,option=value.
        behavior: what it looks for.
        directory: where its replies are kept unless `cache` or the spec names a place.
        model: of the llm or embedding judge.
        base_url: root URL of the llm judge's endpoint.
        cache: folder for the llm judge's replies.

    Raises:
        UserError: no such judge, or an option that it does not take or cannot use.
    """
    name, _, rest = spec.partition(":")
    if name not in JUDGES:
        raise UserError("unknown judge", name, did_you_mean(name, JUDGES))
    if cache is None and "cache" in {field.name for field in fields(JUDGES[name])} and "cache=" not in rest:
        cache = str(Path(directory) / "judge_cache")
    given = {"behavior": behavior, "model": model, "base_url": base_url, "cache": cache}
    judge: Judge = parse_spec(spec, JUDGES, "judge", given)
    return judge


class JudgingBeside:
    """Has responses judged while the model answers further prompts, by a judge elsewhere that keeps its replies.

    Of that judge only the replies count, from which `verdicts` takes what it needs. If it fails, `verdicts` asks again
    and says so: the responses are complete and kept by then. A judge that computes on this machine would but slow the
    model down, and is asked at the end.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._thread = ThreadPoolExecutor(1) if isinstance(judge, Metered) else None
        self._waiting: list[Response] = []
        self._asking: Future[None] | None = None
        self._gave_up = False
        self._seen: set[tuple[str, str]] = set()
        self._before = Usage(0, 0, 0, None)  # what the responses seen so far had taken before this run

    def __enter__(self) -> JudgingBeside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def hear(self, response: Response) -> None:
        """Takes a response that is to be judged."""
        if self._thread is None or self._gave_up:
            return
        self._waiting.append(response)
        if self._asking is None or self._asking.done():
            self._asking = self._thread.submit(self._ask, self._waiting)
            self._waiting = []

    def _ask(self, responses: Sequence[Response]) -> None:
        self._count(responses)
        try:
            self.judge(responses)
        except UserError:
            self._gave_up = True

    def _count(self, responses: Sequence[Response]) -> None:
        new = [one for one in responses if (one.prompt, one.text) not in self._seen]
        self._seen |= {(one.prompt, one.text) for one in new}
        if isinstance(self.judge, Metered):
            self._before = self._before.plus(self.judge.usage(new))

    def verdicts(self, responses: Sequence[Response], directory: Path) -> list[Verdict]:
        """The verdicts, which are also written to ``verdicts.jsonl``, and what a metered judge took to its own file."""
        if self._asking:
            self._asking.result()
        self._count(responses)
        with stage(f"judging {len(responses)} responses by {self.judge.describe()}"):
            found = self.judge(responses)
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(self.judge, Metered):
            usage = self.judge.usage(responses)
            spent = {"in_all": asdict(usage), "in_this_run": asdict(usage.since(self._before))}
            write_json(directory / USAGE_FILE, spent)
        write_verdicts(directory / "verdicts.jsonl", found)
        return found


def judge_responses(judge: Judge, responses: Sequence[Response], directory: Path) -> list[Verdict]:
    """As `JudgingBeside.verdicts`, of responses that are all there."""
    with stages(1), JudgingBeside(judge) as judging:
        return judging.verdicts(responses, directory)


def row_beside(responses: Path) -> ResultRow:
    """What is known of responses that an earlier run wrote, by any judge.

    That is the one row of the ``results.json`` beside ``responses.jsonl``, as `mbdefense evaluate` and a grid's cells
    write both. Rows of several models do not say whose the responses are: then, and without such files, the row says
    nothing but the folder's name and the file's.

    Raises:
        UserError: the result file is damaged, or was made of other responses.
    """
    folder = responses.resolve().parent
    if (folder / RESULT_FILE).is_file() and responses.name == RESPONSES_FILE:
        results = read(folder / RESULT_FILE)
        check_beside(folder, results, RESPONSES_FILE)
        if len(results.rows) == 1:
            return results.rows[0]
    return unknown_row(folder.name, str(responses))


def unknown_row(arm: str, model: str) -> ResultRow:
    """The row of responses of which nothing is known but whose they are said to be."""
    return ResultRow(
        arm=arm,
        attack="as in the responses",
        behavior="",
        seed=0,
        model=model,
        **scores([])._asdict(),
        perplexity=None,
        seconds=0.0,
        peak_bytes=0,
    )


def rejudged(
    judge: Judge, responses: Sequence[Response], behavior: Behavior, directory: Path, known: ResultRow
) -> ResultRow:
    """The result row of responses that an earlier run wrote.

    Args:
        judge: who judges them.
        responses: of one model.
        behavior: what the judge looks for.
        directory: where the verdicts go.
        known: the row's other parts. Rates and changes in it were another judge's, and are not kept.
    """
    return replace(
        known,
        behavior=behavior.describe(),
        **scores(judge_responses(judge, responses, directory))._asdict(),
        asr_change=None,
        cacc_change=None,
        cacc_by_source=(),
        versus=(),
        judge=judge.describe(),
    )


def calibrated(judge: Judge, responses: Sequence[Response], labels: Sequence[Label], directory: Path) -> str:
    """Compares a judge with labels, in Markdown, and writes that to ``agreement.md`` beside the verdicts.

    For the embedding judge it also says which threshold the labels speak for.

    Raises:
        UserError: a label belongs to none of the responses, or the judge was asked nothing that is labelled.
    """
    match(labels, responses)
    named = {(label.kind, label.id) for label in labels}
    judged = [response for response in responses if (response.kind, response.id) in named]
    verdicts = judge_responses(judge, judged, directory)
    parts = [f"# {escaped(judge.describe())}, compared with labels"]
    found = 0
    for question in get_args(Question):
        known = outcomes(labels, question)
        compared = agreement(known, outcomes(verdicts, question))
        if compared is not None:
            found += 1
            parts.append(_section(question, compared, len(known)))
    if not found:
        raise UserError(
            "the judge gave no verdict on anything labelled", judge.describe(), "label what this judge can tell"
        )
    if isinstance(judge, Embedding):
        parts.append(_threshold(judge, judged, labels))
    text = "\n\n".join(parts) + "\n"
    write_text(directory / "agreement.md", text)
    return text


def _section(question: Question, compared: Agreement, labelled: int) -> str:
    not_judged = labelled - compared.agree.n
    lines = [
        f"## {question}\n",
        f"agreement {shown(compared.agree)}; Cohen's kappa {kappa_shown(compared)}"
        + (f"; {not_judged} labelled responses that the judge cannot tell" if not_judged else ""),
        "\n| label | " + " | ".join(f"judge: {name}" for name in OUTCOMES) + " |\n| --- | ---: | ---: | ---: |",
    ]
    for label in ("yes", "no"):
        counts = (str(compared.counts.get((label, name), 0)) for name in OUTCOMES)
        lines.append(f"| {label} | {' | '.join(counts)} |")
    return "\n".join(lines)


def kappa_shown(compared: Agreement) -> str:
    """Kappa with its interval, or why there is none."""
    if compared.kappa is None:
        return "undefined (one side always says the same)"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*compared.kappa)


def _threshold(judge: Embedding, responses: Sequence[Response], labels: Sequence[Label]) -> str:
    """The threshold from one half of the labels, tried on the other: on its own half it would look too good."""
    known = {(label.kind, label.id): label.follows for label in labels}
    halves: tuple[list[Response], list[Response]] = ([], [])
    for response in responses:
        if known[response.kind, response.id] is not None and judge.can_judge(response):
            # A prompt's responses stay together, so that none of them is known from the other half.
            half = hashlib.sha256(response.prompt.encode("utf-8", "replace")).digest()[0] % 2
            halves[half].append(response)
    follows = [bool(known[response.kind, response.id]) for response in halves[0]]
    if len(set(follows)) < 2 or not halves[1]:
        return "## threshold\n\nToo few labels of `follows` to choose and to try a threshold by."
    fitted = judge.calibrated(halves[0], follows)
    tried = agreement(outcomes(labels, "follows"), outcomes(fitted(halves[1]), "follows"))
    told = "" if tried is None else f"agreement {shown(tried.agree)}, kappa {kappa_shown(tried)}"
    choice = f"`embedding:threshold={fitted.threshold:g}`"
    return f"## threshold\n\n{len(follows)} of the labels speak for {choice}. On the others it has {told}."
