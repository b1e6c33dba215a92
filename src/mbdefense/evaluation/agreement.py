"""How far a judge agrees with labels or with another judge: pure functions, and the labels' file form."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_text
from mbdefense.evaluation.metrics import Score, rate
from mbdefense.records.responses import Kind, Response
from mbdefense.records.verdicts import Question, Verdict

Outcome = Literal["yes", "no", "unparsed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_FIX = 'write lines of the form {"id": "...", "kind": "clean", "shows": true, "follows": false}'


@dataclass(frozen=True)
class Label:
    """What is known of one response; None where it was not labelled."""

    id: str
    kind: Kind
    shows: bool | None
    follows: bool | None


class Kappa(NamedTuple):
    """Cohen's kappa with its 95 % interval."""

    value: float
    low: float
    high: float


class Agreement(NamedTuple):
    """How two judges compare on the responses that both were asked about.

    Attributes:
        agree: share of the responses on which they say the same; two replies that cannot be read are no agreement.
        kappa: agreement beyond chance, unparsed being an outcome like yes and no; None where one of the two gives the
            same outcome throughout, of which kappa can say nothing. With full agreement its interval has no width.
        counts: how often the first said the one and the second the other, by (first, second).
    """

    agree: Score
    kappa: Kappa | None
    counts: Mapping[tuple[Outcome, Outcome], int]


def outcomes(verdicts: Sequence[Verdict] | Sequence[Label], question: Question) -> dict[tuple[str, str], Outcome]:
    """Outcome by (kind, id); what was not judged or not labelled is left out."""
    found: dict[tuple[str, str], Outcome] = {}
    for verdict in verdicts:
        value = verdict.shows if question == "shows" else verdict.follows
        if isinstance(verdict, Verdict) and question in verdict.unparsed:
            found[verdict.kind, verdict.id] = "unparsed"
        elif value is not None:
            found[verdict.kind, verdict.id] = "yes" if value else "no"
    return found


def agreement(first: Mapping[tuple[str, str], Outcome], second: Mapping[tuple[str, str], Outcome]) -> Agreement | None:
    """Compares outcomes of the same responses; those that only one has are passed over. None if they share none.

    Source: Cohen (1960), kappa = (p_o - p_e) / (1 - p_e), p_o being the share of equal outcomes and p_e the one
    expected if the two judged independently; its standard error after Fleiss, Cohen and Everitt (1969).
    """
    from statsmodels.stats.inter_rater import cohens_kappa  # slow to import

    pairs = [(first[key], second[key]) for key in first if key in second]
    if not pairs:
        return None
    counts, kappa = Counter(pairs), None
    if all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
        used = [name for name in OUTCOMES if any(name in pair for pair in pairs)]
        found = cohens_kappa([[counts[one, other] for other in used] for one in used])
        value = float(found.kappa)
        # The normal approximation can leave kappa's range; at full agreement rounding can make its variance negative.
        low, high = (float(bound) if math.isfinite(bound) else value for bound in (found.kappa_low, found.kappa_upp))
        kappa = Kappa(value, max(low, -1.0), min(high, 1.0))
    return Agreement(rate([one == other != "unparsed" for one, other in pairs]), kappa, counts)


def match(labels: Sequence[Label], responses: Sequence[Response]) -> None:
    """Checks that every label is one of a response at hand.

    Raises:
        UserError: one is not, so that the labels belong to other responses.
    """
    known = {(response.kind, response.id) for response in responses}
    strange = [label for label in labels if (label.kind, label.id) not in known]
    if strange:
        what = f"{len(strange)} of {len(labels)} labels belong to no response, the first to {strange[0].kind}"
        raise UserError(what, strange[0].id, "give the labels of these responses")


def read_labels(path: str | Path) -> list[Label]:
    """Reads labels: JSON Lines of objects with ``id``, ``kind``, and ``shows`` and ``follows`` as true, false or null.

    Either may be left out. Other keys are a labeller's notes and are passed over, so that the verdicts.jsonl of another
    judge can stand for labels.

    Raises:
        UserError: the file cannot be read or holds no label; a line (named) is none, or labels a response again.
    """
    path = Path(path)
    lines = read_text(path, "give labels as a UTF-8 file of JSON Lines").split("\n")
    labels: dict[tuple[str, str], Label] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label = _label(line, f"{path.name}:{number}")
        if labels.setdefault((label.kind, label.id), label) is not label:
            raise UserError(
                f"{path.name}:{number}: labels the {label.kind} response again", label.id, "keep one of them"
            )
    if not labels:
        raise UserError("no labels in", str(path), _FIX)
    return list(labels.values())


def _label(line: str, where: str) -> Label:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON", line.strip(), _FIX) from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or row.get("kind") not in get_args(Kind):
        raise UserError(f"{where}: no label with id and kind", line.strip(), _FIX)
    shows, follows = row.get("shows"), row.get("follows")
    if not all(value is None or isinstance(value, bool) for value in (shows, follows)):
        raise UserError(f"{where}: shows and follows must be true, false or null", line.strip(), _FIX)
    return Label(row["id"], cast(Kind, row["kind"]), shows, follows)
