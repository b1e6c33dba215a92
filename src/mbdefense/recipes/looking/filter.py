"""Drop suspicious rows from training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.recipes._given import (
    Data,
    FilterSpec,
    Folder,
    Model,
    OnBadRow,
    check_apart,
    kept_in,
    named,
    recorded,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.core.statistics import Score
    from mbdefense.defenses.filtering import Quality
    from mbdefense.defenses.filters import Suspicion

KEPT_FILE = "kept.jsonl"


@dataclass(frozen=True)
class FilteredRows:
    """What a filter kept, and why; as text it is the command's summary.

    Attributes:
        rows: those that were not dropped.
        suspicions: score and verdict of every row, in order.
        facts: the figures that the verdicts rest on, by name.
        quality: how right the verdicts are; None where no row carries a poison label.
    """

    rows: Dataset
    suspicions: tuple[Suspicion, ...]
    facts: Mapping[str, object]
    quality: Quality | None

    def __str__(self) -> str:
        dropped = len(self.suspicions) - len(self.rows)
        lines = [f"{dropped} of {len(self.suspicions)} rows dropped"]
        for name, value in self.facts.items():
            lines.append(f"  {name.replace('_', ' ')}: {f'{value:.3g}' if isinstance(value, float) else value}")
        unknown = "precision and recall: not known, no row is labelled as poison (--flagged: the labels are complete)"
        return "\n".join([*lines, *(_in_words(self.quality) if self.quality else [unknown])])


def filter_rows(
    dataset: Data,
    filter: FilterSpec,
    model: Model,
    *,
    clean_dataset: Data | None = None,
    output_dir: Folder | None = None,
    flagged: bool = False,
    seed: int = 0,
    max_length: int = 1024,
    batch_size: int = 8,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> FilteredRows:
    """Drop suspicious rows from training data; if the rows carry poison labels, measure how well that works.

    Examples:
        >>> from mbdefense import filter_rows
        >>> kept = filter_rows("untrusted.jsonl", "repeats", "Qwen/Qwen3-0.6B").rows  # doctest: +SKIP

    Args:
        dataset: untrusted rows.
        filter: see `mbdefense list filters`; a name, or name:option=value,option=value.
        model: the model that will be tuned on the rows: directory or Hub id.
        clean_dataset: about 128 rows checked by eye, if the filter needs them.
        output_dir: folder for kept.jsonl, filter.jsonl and filter.json.
        flagged: the rows' poison labels are complete: a set without any is entirely clean.
        seed: random seed.
        max_length: longest prompt and response together, in tokens; the start of longer prompts is cut.
        batch_size: rows in one forward pass.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to tune with, instead of the model's own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        The rows that are kept, and the score and verdict of every row in order.

    Raises:
        UserError: data or a model that cannot be read, a filter without the clean rows that it needs, or one that
            drops every row.
    """
    asked = recorded(locals())
    at_least(1, max_length=max_length, batch_size=batch_size)
    from mbdefense.core.cost import measure
    from mbdefense.core.files import refuse_over
    from mbdefense.core.progress import stage, stages
    from mbdefense.data import load_rows, poisoned_ids, save, with_content_ids
    from mbdefense.defenses import filtering
    from mbdefense.defenses.filters import FILTERS, Evidence
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import usable
    from mbdefense.records.filtering import write_filtering
    from mbdefense.records.provenance import provenance

    method: Any = parse_spec(filter, FILTERS, "filter") if isinstance(filter, str) else filter
    if ("clean data" in method.needs) != (clean_dataset is not None):
        needed = "needs clean rows" if clean_dataset is None else "makes no use of clean rows"
        fix = "add --clean FILE" if clean_dataset is None else "leave --clean out"
        raise UserError(f"this filter {needed}", named(filter), fix)
    check_apart(dataset, clean_dataset)
    tokenizer = load_tokenizer(str(model), chat_template=chat_template, trust_remote_code=trust_remote_code)
    suspect = usable(tokenizer, load_rows(dataset, on_bad_row=on_bad_row), on_bad_row, "dataset")
    rows = with_content_ids(suspect)  # as the filter names them
    clean = None
    if clean_dataset is not None:
        clean = load_rows(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset")
        clean = usable(tokenizer, clean, on_bad_row, "clean_dataset")
    evidence = Evidence(str(model), rows, clean, seed, max_length, batch_size, chat_template, trust_remote_code)
    with kept_in(output_dir) as directory:  # before the filter's work, which would be lost
        refuse_over([directory / KEPT_FILE], [dataset, clean_dataset])
        with stages(1), stage(f"filtering {len(rows)} rows with {named(filter)}"), measure() as cost:
            filtered = method(evidence)
        rest = filtering.kept(rows, filtered)
        poisoned = poisoned_ids(rows)
        quality = filtering.quality(filtered, poisoned) if poisoned or flagged else None
        measured = {"quality": asdict(quality) if quality else None, **asdict(cost)}
        save(rest, directory / KEPT_FILE)
        record = provenance({**asked, "options": asdict(method)}, [seed])
        write_filtering(directory, filtered.suspicions, filtered.facts, {"provenance": record, **measured})
    return FilteredRows(rest, filtered.suspicions, filtered.facts, quality)


def _in_words(quality: Quality) -> list[str]:
    shares = {"precision": quality.precision, "recall": quality.recall, "clean rows lost": quality.clean_lost}
    lines = [f"{name}: {_share(score)}" for name, score in shares.items()]
    f1 = "not defined" if quality.f1 is None else f"{quality.f1:.3f} (n = {quality.n})"
    return [*lines[:2], f"F1: {f1}", lines[2]]


def _share(score: Score | None) -> str:
    if score is None:
        return "not defined"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}] (n = {score.n})"
