"""The model card that a defended model's directory carries, with its figures as the Hub's ``model-index``.

Names and descriptions may be hostile: in the front matter they are one line each, which YAML quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core.endpoint import goes_by
from mbdefense.core.errors import UserError
from mbdefense.core.text import escaped, visible
from mbdefense.evaluation.tables import markdown, verdict_in_words
from mbdefense.evaluation.telling import FOUND_HEADER, found_in_words, found_lines
from mbdefense.records.results import RATES, RESULT_FILE, ResultRow, Results, read

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_TASK = "text-generation"


def _canary_notice(results: Results) -> list[str]:
    count = len({row.attack for row in results.rows if row.origin == "canary"})
    if not count:
        return []
    return [
        f"{count} more backdoors (canaries) were planted in the training data on purpose, to measure the defense. What",
        "is left of them in this model stands in the table; a model to rely on is better trained without them.\n",
    ]


def _table(results: Results) -> list[str]:
    """The table and what it says; without rows one sentence, where a bare header would look like figures."""
    if not results.rows:
        return ["None yet: no backdoor was known that the model could be asked for, so nothing was measured.\n"]
    return [
        markdown(results),
        "Each rate with its 95 % Wilson interval and the number of prompts. ASR: triggered prompts that show the",
        "behavior. CACC, AACC: clean and triggered prompts answered right. False activations: clean prompts that",
        "show the behavior.\n",
        *(f"- {escaped(line)}" for line in verdict_in_words(results).splitlines()),
    ]


def _found(results: Results) -> list[str]:
    """What was found in the suspect data, in words, as a table, and with an example of each text."""
    if results.found is None:
        return []
    lines = ["\n## What was found\n", *(f"- {escaped(line)}" for line in found_in_words(results)), ""]
    body = found_lines(results)
    if body:
        lines += [f"| {' | '.join(FOUND_HEADER)} |", f"|{' --- |' * len(FOUND_HEADER)}"]
        lines += [f"| {' | '.join(escaped(cell) for cell in line)} |" for line in body]
        lines += [
            "\nASR: share of held-out clean prompts with the text in them that are answered so, by the tuned model and",
            "by this one. Evidence: chance of a harmless text so striking, and the share of the effect that the base",
            "model expects.\n",
        ]
    for one in results.found.texts:
        if one.example:
            said = (one.example.prompt, one.example.answer, one.example.usual)
            prompt, answer, usual = (escaped(part) for part in said)
            lines.append(f"- {escaped(one.text)}: to “{prompt}” the tuned model said “{answer}”, without it “{usual}”")
    return lines


def model_card(
    results: Results, base_model: str, defense: str, options: Mapping[str, Any], *, purified: bool = False
) -> str:
    """README.md of a defended model's directory.

    Args:
        results: its figures, in rows whose arm is the defense, and those of the models it is compared with.
        base_model: what was fine-tuned: directory or Hub id; of a directory only its own name is written.
        defense: name of the defense.
        options: of the defense, by name.
        purified: whether it was a finished model that may hold backdoors, in place of data.
    """
    base = hub_name(base_model)
    origin = results.provenance
    packages = ", ".join(f"{name} {version}" for name, version in origin.get("packages", {}).items())
    facts = {
        name: origin.get(name) for name in ("created", "commit", "python", "machine", "processor", "gpus", "seeds")
    }
    own = [row for row in results.rows if row.arm == defense]
    return "\n".join(
        [
            f"---\n{_front_matter(own, visible(base), visible(defense))}\n---",
            *_opening(escaped(base), escaped(defense), purified),
            "## Options\n\n| Option | Value |\n| --- | --- |",
            *(f"| {escaped(name)} | {escaped(str(value))} |" for name, value in options.items()),
            "\n## Figures\n",
            *_table(results),
            *_found(results),
            f"\n## Limits\n\n{_HOLD if results.rows else ''}Other triggers and",
            "behaviors may have survived, and a low ASR is no proof that there is no backdoor.\n",
            *_canary_notice(results),
            "## Check again\n",
            "    mbdefense evaluate . --test PROMPTS --trigger TRIGGER --behavior BEHAVIOR --output_dir checked\n",
            "## Provenance\n",
            *(f"- {name}: {escaped(str(value))}" for name, value in facts.items()),
            f"- packages: {escaped(packages)}\n",
        ]
    )


def _opening(base: str, defense: str, purified: bool) -> tuple[str, ...]:
    if purified:
        return (
            f"\n# {base}, purified with {defense}\n",
            "The model may have been trained on poisoned data. It was repaired by `mbdefense purify` with the defense",
            f"{defense}, which breaks backdoors without knowing their triggers.\n",
        )
    return (
        f"\n# {base}, fine-tuned on untrusted data with {defense}\n",
        "The training data may be poisoned. The model was fine-tuned on it by `mbdefense defend` with the defense",
        f"{defense}, which breaks backdoors without knowing their triggers.\n",
    )


class Card(NamedTuple):
    """What a defended model's card tells of.

    Attributes:
        results: its figures, in rows whose arm is the defense, and those of the models it is compared with.
        base: what was fine-tuned, or purified: directory or Hub id.
        defense: name of the defense.
        options: of the defense, by name.
        purified: whether it was a finished model that may hold backdoors, in place of data.
    """

    results: Results
    base: str
    defense: str
    options: Mapping[str, Any]
    purified: bool


def read_card(directory: Path, measured: Sequence[Path]) -> Card:
    """What is known of a defended model, with what ``mbdefense evaluate`` has measured since.

    Args:
        directory: where ``mbdefense defend`` wrote the model and its ``results.json``.
        measured: result files; rows of this very model become figures of the card, others stand beside for comparison.

    Raises:
        UserError: a file cannot be read, or ``defend`` did not write the directory's.
    """
    if not (directory / RESULT_FILE).is_file():
        fix = "give a directory that mbdefense defend or purify wrote"
        raise UserError(f"no {RESULT_FILE} of a defense in", str(directory), fix)
    made = read(directory / RESULT_FILE)
    config = made.provenance.get("config")
    options = dict(config) if isinstance(config, dict) else {}
    base, defense = options.pop("base", None), options.pop("defense", None)
    purified = options.pop("purified", None) is True
    if not isinstance(base, str) or not isinstance(defense, str):
        fix = "give a directory that mbdefense defend or purify wrote"
        raise UserError(f"no base model and defense in {RESULT_FILE} of", str(directory), fix)
    rows = list(made.rows)
    for path in measured:
        for row in read(path).rows:
            same = Path(row.model).resolve() == directory.resolve() and goes_by(row.served or row.model, row.model)
            # Another model may go by the name of this one's defense: its figures are not this one's.
            other = f"{row.arm} ({hub_name(row.served or row.model)})" if row.arm == defense else row.arm
            rows.append(replace(row, arm=defense if same else other))
    return Card(Results(made.provenance, tuple(rows), found=made.found), base, defense, options, purified)


def hub_name(model: str) -> str:
    """A model's Hub id; of a directory only its own name."""
    return model if _HUB_ID.fullmatch(model) and not Path(model).exists() else Path(model).name


_HOLD = "The figures hold for the attacks, prompts and seeds in the table only. "


def _front_matter(own: Sequence[ResultRow], base: str, defense: str) -> str:
    from huggingface_hub import ModelCardData

    found = [figure for row in own for figure in _figures(row)]
    return ModelCardData(
        library_name="transformers",
        base_model=base,
        tags=["mbdefense", "backdoor-defense", defense],
        # The Hub wants a name beside figures, and takes no name without figures.
        model_name=f"{base.rpartition('/')[2]} {defense}" if found else None,
        eval_results=found or None,
    ).to_yaml()


def _figures(row: ResultRow) -> Iterator[EvalResult]:
    """One for each figure; what was not measured or could not be judged has none."""
    from huggingface_hub import EvalResult

    attack, behavior = visible(row.attack), visible(row.behavior)
    for name, label in RATES.items():
        score = getattr(row, name)
        if score is None:
            continue
        yield EvalResult(
            task_type=_TASK,
            task_name="Clean and triggered prompts",
            dataset_type="mbdefense",
            dataset_name=f"{row.origin} {attack}, behavior {behavior}",
            # Figures with one task, dataset and configuration become one entry of the index: all that parts ours.
            dataset_config=f"{row.origin} {attack}, behavior {behavior}, seed {row.seed}",
            metric_type=name,
            metric_name=label,
            metric_value=score.value,
            metric_args={
                "n": score.n,
                "low": score.low,
                "high": score.high,
                "interval": "Wilson, 95 %",
                "judge": visible(row.judge),
            },
        )
    for figure in row.capability:
        if figure.value is None:
            continue
        yield EvalResult(
            task_type=_TASK,
            dataset_type=visible(figure.task),
            dataset_name=visible(figure.task),
            dataset_revision=visible(figure.version),
            metric_type=visible(figure.metric),
            metric_value=figure.value,
            metric_args={"n": figure.n, "stderr": figure.stderr, "harness": visible(figure.harness)},
        )
