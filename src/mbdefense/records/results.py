"""The typed result file: what stands in it, how it is written and strictly read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mbdefense.core.errors import UserError
from mbdefense.core.files import inside, read_sealed, sha256_of, write_sealed
from mbdefense.core.forms import Count, Form, NotNegative, Positive, Share, parse
from mbdefense.core.statistics import Mean, Paired, Score, SeedScore
from mbdefense.core.text import encodable
from mbdefense.finding.insertion import Kind
from mbdefense.finding.record import Example, Verdict

SCHEMA = 1
RESULT_FILE = "results.json"
RATES = {"asr": "ASR", "cacc": "CACC", "aacc": "AACC", "false_activation": "False activations"}
Figure = Literal["asr", "cacc"]
Origin = Literal["attack", "planted", "canary", "found"]
UNDEFENDED: dict[Origin, str] = {"attack": "attacked", "planted": "merged", "canary": "attacked", "found": "attacked"}
_FIX = "make it again with mbdefense evaluate"


@dataclass(frozen=True)
class ReferenceLoss(Form):
    """Mean negative log-likelihood of one reference's ``tokens``, in nats; ``id`` is that of its prompt."""

    id: str
    nats: NotNegative
    tokens: Positive


@dataclass(frozen=True)
class Perplexity(Form):
    """Perplexity over ``n`` response tokens.

    Attributes:
        value: the perplexity.
        n: tokens.
        references: responses that the tokens are of, where there were more a sample drawn by the prompts' seed; 0
            where a file written before does not say.
        losses: of each of them, by which models are paired; empty where a file written before has none.
    """

    value: NotNegative
    n: Positive
    references: Count = 0
    losses: tuple[ReferenceLoss, ...] = ()

    @classmethod
    def of(cls, losses: Sequence[ReferenceLoss]) -> Perplexity | None:
        """That of all references' tokens together; None where there are none."""
        tokens = sum(one.tokens for one in losses)
        if not tokens:
            return None
        mean = sum(one.nats * one.tokens for one in losses) / tokens
        return cls(math.exp(mean), tokens, len(losses), tuple(losses))

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if not self.losses:
            return ""
        if len({one.id for one in self.losses}) < len(self.losses):
            return "two losses of one reference"
        whole = Perplexity.of(self.losses)
        counted = whole is not None and (whole.n, whole.references) == (self.n, self.references)
        right = counted and whole is not None and math.isclose(whole.value, self.value, rel_tol=1e-6)
        return "" if right else "a perplexity that is not that of its references"


@dataclass(frozen=True)
class Capability(Form):
    """A benchmark's figure over ``n`` items, by lm-evaluation-harness.

    Attributes:
        task: the harness's name of the benchmark.
        metric: the harness's name of the metric, e.g. "acc".
        value: the figure, in the metric's own unit; None where the harness found no finite one.
        stderr: its standard error; None where the harness has none.
        n: items.
        version: of the task.
        harness: the program and its version.
    """

    task: str
    metric: str
    value: float | None
    stderr: NotNegative | None
    n: Positive
    version: str
    harness: str


@dataclass(frozen=True)
class Stealth(Form):
    """What the trigger does to the prompts that carry it (see `mbdefense.evaluation.stealth`).

    Attributes:
        language_model: under which model the prompts' perplexity was taken.
        perplexity_ratio: factor by which the trigger raises it.
        encoder: by which sentence encoder the prompts were compared.
        similarity: cosine similarity of prompts with and without the trigger.
    """

    language_model: str
    perplexity_ratio: Mean
    encoder: str
    similarity: Mean

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if self.perplexity_ratio.low < 0:
            return "a perplexity ratio below 0"
        return "" if self.similarity.low >= -1 and self.similarity.high <= 1 else "a cosine outside of [-1, 1]"


@dataclass(frozen=True)
class SourceScore(Form):
    """CACC on the clean prompts of one source: a file, or a skill of the built-in data."""

    source: str
    score: Score


@dataclass(frozen=True)
class Versus(Form):
    """How a defense differs from a simple way on the same prompts: its rates less those of that way.

    Attributes:
        arm: the simple way: the suspect data thrown away, or rows dropped by a count.
        asr: None where one of the two has none.
        cacc: the same.
    """

    arm: str
    asr: Paired | None = None
    cacc: Paired | None = None


@dataclass(frozen=True)
class ResultRow(Form):
    """The figures of one model under one attack; a rate is None where it was not measured or could not be judged.

    Attributes:
        arm: what was done to the model: "base", "clean", "discard", "attacked", "merged" or a defense.
        attack: the trigger, as its ``describe`` says it.
        behavior: the behavior, as its ``describe`` says it.
        seed: of the run, that is of its training; the prompts have a seed of their own.
        model: directory or Hub id of the model judged.
        asr: attack success rate.
        cacc: accuracy on clean prompts.
        aacc: accuracy on triggered prompts.
        false_activation: share of clean prompts that show the behavior.
        perplexity: on clean held-out responses.
        seconds: time that making the model took.
        peak_bytes: peak memory of making it.
        origin: whose backdoor it is: an attack's, one that the defense planted itself, a canary, or one found in the
            suspect data.
        asr_change: against the undefended model on the same prompts.
        cacc_change: the same.
        loss_change: of the references' losses against the undefended model's, mean over their tokens, in nats.
        judge: who judged the responses, as its ``describe`` says it.
        capability: benchmarks of lm-evaluation-harness.
        stealth: how much the trigger changes the prompts.
        base_model: what all arms were tuned from, where a table holds several; else "".
        poisoning_rate: share of the training rows that the attacker poisoned, where that is known.
        served: where a server answered, the name of its model, which may be another than `model`; else "".
        cacc_by_source: of a grid whose test prompts have several sources, CACC on each.
        versus: of a defense, against the simple ways measured beside it.
        max_new_tokens: longest response asked for, in tokens; 0 where a file written before does not say, or where no
            text was asked for.
    """

    arm: str
    attack: str
    behavior: str
    seed: int
    model: str
    asr: Score | None
    cacc: Score | None
    aacc: Score | None
    false_activation: Score | None
    perplexity: Perplexity | None
    seconds: NotNegative
    peak_bytes: Count
    origin: Origin = "attack"
    asr_change: Paired | None = None
    cacc_change: Paired | None = None
    loss_change: Mean | None = None
    judge: str = "rules"
    capability: tuple[Capability, ...] = ()
    stealth: Stealth | None = None
    base_model: str = ""
    poisoning_rate: Share | None = None
    served: str = ""
    cacc_by_source: tuple[SourceScore, ...] = ()
    versus: tuple[Versus, ...] = ()
    max_new_tokens: Count = 0

    def setting(self) -> tuple[str, str, str, str, str, float | None]:
        """What rows must have in common, besides the seed, for their figures to be compared."""
        return self.origin, self.attack, self.behavior, self.judge, self.base_model, self.poisoning_rate


@dataclass(frozen=True)
class SeedRow(Form):
    """A figure of one arm under one attack, by one judge, over several training seeds."""

    arm: str
    attack: str
    behavior: str
    figure: Figure
    score: SeedScore
    judge: str = "rules"
    base_model: str = ""
    poisoning_rate: Share | None = None


@dataclass(frozen=True)
class FoundSummary(Form):
    """A text that the suspect prompts hold and that is to be told of; ``found.json`` has all of it.

    Attributes:
        text: what it is, in one line, cut where it is long; no two of a file are alike.
        kind: see `mbdefense.finding.insertion.FoundText`.
        rows: suspect rows that hold it.
        verdict: see `mbdefense.finding.record.FoundCandidate`, as the rest.
        behavior: phrases that the answers under it share.
        p_value: chance of a harmless text so striking.
        explained: how much of its effect the base model expects; None without a base model.
        asr: as the search saw it, on the model that it verified on.
        changed: share of that model's answers that differ with it.
        example: one of them.
    """

    text: str
    kind: Kind
    rows: Count
    verdict: Verdict
    behavior: tuple[str, ...] = ()
    p_value: Share = 1.0
    explained: float | None = None
    asr: Score | None = None
    changed: Share | None = None
    example: Example | None = None

    @property
    def attack(self) -> str:
        """How result rows of it name it."""
        return f"found {self.text}"


@dataclass(frozen=True)
class FoundSection(Form):
    """What a search for triggers in the suspect data found, also where that is nothing.

    Attributes:
        suspect_rows: how many it looked through.
        candidates: texts that stood out.
        verified: whether they were verified on a tuned model.
        given: whether the defense was given the search's file and did not search itself.
        texts: those that are no chance, in the order of the search's evidence; and, where nothing was verified, those
            taken for chance that draw one behavior out of many held-out prompts all the same.
    """

    suspect_rows: Positive
    candidates: Count
    verified: bool
    given: bool = False
    texts: tuple[FoundSummary, ...] = ()

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        names = {one.text for one in self.texts}
        if len(names) < len(self.texts):
            return "two found texts of one name"
        return "more texts than candidates" if len(names) > self.candidates else ""

    def of(self, verdict: str) -> tuple[FoundSummary, ...]:
        """The texts with one verdict."""
        return tuple(one for one in self.texts if one.verdict == verdict)


@dataclass(frozen=True)
class Results(Form):
    """All rows of a result file, and what else stands in it.

    Attributes:
        provenance: where they come from, see `mbdefense.records.provenance`.
        rows: the figures.
        over_seeds: figures over several seeds.
        found: None where nothing was searched for.
        files: SHA-256 of the files beside it that the figures were made of, by name; None where there are none.
    """

    provenance: dict[str, Any]
    rows: tuple[ResultRow, ...]
    over_seeds: tuple[SeedRow, ...] = ()
    found: FoundSection | None = None
    files: dict[str, str] | None = None


def write(path: str | Path, results: Results) -> None:
    """Writes a result file that `read` accepts, sealed; it appears complete or not at all.

    Raises:
        UserError: a figure is not finite or out of its range, or the file cannot be written.
    """
    value = {"schema": SCHEMA, "provenance": results.provenance, "rows": [_plain(row) for row in results.rows]}
    if results.over_seeds:
        value["over_seeds"] = [_plain(row) for row in results.over_seeds]
    if results.found is not None:
        value["found"] = _plain(results.found)
    if results.files is not None:
        value["files"] = results.files
    # A file name on the command line may hold bytes that are no text; UTF-8 has no place for them.
    plain = json.loads(encodable(json.dumps(value, ensure_ascii=False)))
    _parse(plain, Path(path).name)
    write_sealed(Path(path), plain)


def write_beside(directory: Path, results: Results, names: Sequence[str]) -> None:
    """Writes ``results.json`` into a folder, with the hashes of the files there that its figures were made of.

    Raises:
        UserError: see `write`.
    """
    write(directory / RESULT_FILE, replace(results, files={name: sha256_of(directory / name) for name in names}))


def check_beside(directory: Path, results: Results, *names: str) -> None:
    """Refuses files that are no longer those that the ``results.json`` beside them was made of.

    Args:
        directory: where they lie.
        results: what stands in ``results.json`` there.
        names: which of them to look at; all without any.

    Raises:
        UserError: names the file.
    """
    for name, said in (results.files or {}).items():
        if (not names or name in names) and sha256_of(inside(directory, name)) != said:
            fix = "evaluate the model again; to judge changed responses, put them into a folder of their own"
            raise UserError(f"not the {name} that {RESULT_FILE} beside it was made of", str(directory), fix)


def _plain(value: Any) -> Any:
    """A row for JSON without optional keys that say nothing, so that a single evaluation keeps the form it had."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if not is_dataclass(value):
        return value
    parts = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: _plain(part) for field, part in parts if part != field.default}


def read(path: str | Path) -> Results:
    """Reads a result file strictly; warns where it has no seal.

    Raises:
        UserError: unreadable, changed since it was written, another schema, an unknown or missing key, or a value of
            the wrong type or range.
    """
    return _parse(read_sealed(Path(path)), Path(path).name)


def _parse(value: dict[str, Any], where: str) -> Results:
    if value.get("schema") != SCHEMA or isinstance(value.get("schema"), bool):
        fix = f"this version reads schema {SCHEMA}; read the file with the version of mbdefense that wrote it"
        raise UserError(f"{where}: unknown schema", value.get("schema", "none"), fix)
    return parse(Results, json.dumps({name: value[name] for name in value if name != "schema"}), where, _FIX)
