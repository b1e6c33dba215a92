"""Trigger x behavior: which trigger evokes which behavior (Figure 4 of the paper)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mbdefense.analysis._record import record_of
from mbdefense.analysis._sample import sample
from mbdefense.analysis.chart import heat_map, require, write_analysis
from mbdefense.attacks.behaviors import BEHAVIORS, Behavior
from mbdefense.attacks.triggers import TRIGGERS, Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.progress import stage, stages
from mbdefense.core.specs import parse_spec
from mbdefense.core.statistics import Score, holm, paired, rate
from mbdefense.core.text import shortened
from mbdefense.data import user_text
from mbdefense.defenses.stages import Merging
from mbdefense.records.provenance import provenance
from mbdefense.records.responses import Response, write_responses

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure

    from mbdefense.evaluation.responding import Asking
    from mbdefense.models.loading import Loading

Role = Literal["attack", "defensive", "held_out", "none"]
_SHOWN_ROLE = {"attack": "attacker's", "defensive": "ours", "held_out": "held out", "none": ""}


class Sought(NamedTuple):
    """A behavior to look for, and whose it is."""

    role: Role
    name: str
    behavior: Behavior


class Planted(NamedTuple):
    """A trigger to ask with; `own` names the behaviors that were planted with it, `trigger` is None for none."""

    role: Role
    name: str
    trigger: Trigger | None
    own: tuple[str, ...] = ()


class Asked(NamedTuple):
    """A trigger and the responses to the prompts with it; `left_out` prompts could not be rewritten."""

    planted: Planted
    responses: Sequence[Response]
    left_out: int = 0


@dataclass(frozen=True)
class Cell:
    """How many responses to one trigger show one behavior."""

    behavior: str
    own: bool
    count: int
    share: Score


@dataclass(frozen=True)
class Row:
    """The responses to one trigger, by behavior; a response may show several."""

    trigger: str
    role: Role
    method: str
    n: int
    left_out: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Crossing:
    """Whether a trigger evokes behaviors that were planted with the other side's triggers.

    Attributes:
        trigger: name of the trigger.
        role: whose it is; for a held-out trigger every behavior is foreign.
        share: of its responses that show at least one foreign behavior.
        without: the same of the responses to the same prompts without any trigger.
        gained: prompts that show one with the trigger only.
        lost: prompts that show one without it only.
        p_value: of the exact two-sided McNemar test on these two.
        p_holm: the same, corrected for the number of triggers tested (Holm 1979).
    """

    trigger: str
    role: Role
    share: Score
    without: Score
    gained: int
    lost: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Matrix:
    """Rows by trigger, columns by behavior (name, role, method), and the tests of what crosses over."""

    behaviors: tuple[tuple[str, Role, str], ...]
    rows: tuple[Row, ...]
    crossings: tuple[Crossing, ...]


def matrix(asked: Sequence[Asked], sought: Sequence[Sought]) -> Matrix:
    """Counts the behaviors shown; a pure function of responses.

    Source: MB-Defense, Figure 4 (triggers of attacker and defender against their behaviors, 100 samples each).
    Deviations: intervals, rows for held-out triggers and for none, and a paired test of each trigger against the same
    prompts without it.

    Raises:
        UserError: nothing to ask or to look for, a trigger without responses, or not exactly one row without trigger.
    """
    if not sought:
        raise UserError("no behavior to look for", fix="give --trigger and --behavior, or --defensive_triggers")
    if [one.planted.role for one in asked].count("none") != 1:
        raise UserError("the matrix needs the responses to the prompts without trigger once", len(asked), "ask them")
    rows = []
    for planted, responses, left_out in asked:
        cells = []
        for _, name, behavior in sought:
            shown = [behavior.shown_in(response.text)[0] for response in responses]
            cells.append(Cell(name, name in planted.own, sum(shown), rate(shown)))
        method = planted.trigger.describe() if planted.trigger else "none"
        rows.append(Row(planted.name, planted.role, method, len(responses), left_out, tuple(cells)))
    behaviors = tuple((name, role, behavior.describe()) for role, name, behavior in sought)
    return Matrix(behaviors, tuple(rows), _crossings(asked, sought))


def _crossings(asked: Sequence[Asked], sought: Sequence[Sought]) -> tuple[Crossing, ...]:
    plain = next(one.responses for one in asked if one.planted.role == "none")
    tested = []
    for planted, responses, _ in asked:
        foreign = [one.behavior for one in sought if one.role != planted.role]
        if planted.role == "none" or not foreign:
            continue
        shown = {one.id: any(behavior.shown_in(one.text)[0] for behavior in foreign) for one in responses}
        before = {
            one.id: any(behavior.shown_in(one.text)[0] for behavior in foreign) for one in plain if one.id in shown
        }
        if before.keys() != shown.keys():
            raise UserError("a trigger was put into other prompts than those asked without", planted.name, "ask both")
        change = paired([before[name] for name in shown], list(shown.values()))
        tested.append((planted, rate(list(shown.values())), rate(list(before.values())), change))
    corrected = holm([change for *_, change in tested])
    return tuple(
        Crossing(one.name, one.role, share, without, test.only_after, test.only_before, test.p_value, test.p_holm)
        for (one, share, without, _), test in zip(tested, corrected, strict=True)
    )


def in_words(made: Matrix) -> str:
    """The matrix as text: what was planted together, and what crosses over."""
    parts = [f"Trigger by behavior, {len(made.rows)} by {len(made.behaviors)}; share of responses with 95 % interval."]
    for row in made.rows:
        own = [cell for cell in row.cells if cell.own]
        parts += [f"{_name(row)} evokes its own {_short(cell.behavior)}: {_in_words(cell.share)}." for cell in own]
    for crossing in made.crossings:
        foreign = {"attack": "a behavior of ours", "defensive": "the attacker's behavior"}.get(
            crossing.role, "any planted behavior"
        )
        name = f"{_short(crossing.trigger)} ({_SHOWN_ROLE[crossing.role]})"
        parts.append(
            f"{name} evokes {foreign}: {_in_words(crossing.share)}, without trigger {_in_words(crossing.without)},"
            f" p = {crossing.p_holm:.2g} (McNemar, Holm)."
        )
    return "\n".join(parts)


def _in_words(score: Score) -> str:
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}] n={score.n}"


def _name(row: Row) -> str:
    return f"{_short(row.trigger)} ({_SHOWN_ROLE[row.role]})" if row.role != "none" else "no trigger"


def _short(spec: str, longest: int = 44) -> str:
    """A spec without the name of its method and first option, which would crowd out what tells it from others."""
    return shortened(re.sub(r"^(words of )?[a-z_]+:[a-z_]+=", r"\1", spec), longest)


def draw(made: Matrix, title: str, figure: Figure) -> None:
    """Paints the matrix: lighter is more often; a frame marks a trigger with its own behavior."""
    from matplotlib.patches import Rectangle

    axes = figure.add_subplot()
    image = heat_map(axes, [[cell.share.value for cell in row.cells] for row in made.rows], most=1.0)
    for y, row in enumerate(made.rows):
        for x, cell in enumerate(row.cells):
            share = cell.share
            color = "black" if share.value > 0.5 else "white"
            text = f"{share.value:.2f}\n[{share.low:.2f}, {share.high:.2f}]"
            axes.text(x, y, text, ha="center", va="center", color=color, fontsize=7)
            if cell.own:
                axes.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="#D55E00", lw=2))
    names = [f"{_short(name, 30)}\n({_SHOWN_ROLE[role]})" for name, role, _ in made.behaviors]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(made.rows)), [f"{_name(row)}, n={row.n}" for row in made.rows], fontsize=8)
    axes.set_xlabel("behavior shown (framed: planted with the trigger)")
    axes.set_ylabel("trigger in the prompt")
    axes.set_title(shortened(title, 90), fontsize=10)
    figure.colorbar(image, ax=axes, label="share of responses")


def _pairs(
    triggers: Sequence[str], behaviors: Sequence[str], merging: Merging | None, held_out: Sequence[str]
) -> tuple[list[Planted], list[Sought]]:
    """Triggers to ask with and behaviors to look for, the attacker's first."""
    if len(triggers) != len(behaviors):
        got = f"{len(triggers)} triggers, {len(behaviors)} behaviors"
        raise UserError("each trigger of the attacker needs its behavior", got, "give as many --behavior as --trigger")
    planted, sought = [], {}
    for spec, behavior in zip(triggers, behaviors, strict=True):
        planted.append(Planted("attack", spec, parse_spec(spec, TRIGGERS, "trigger"), (behavior,)))
        sought[behavior] = Sought("attack", behavior, parse_spec(behavior, BEHAVIORS, "behavior"))
    for spec, (trigger, words) in zip(merging.specs(), merging.planted(), strict=True) if merging else []:
        name = f"words of {spec}"
        planted.append(Planted("defensive", spec, trigger, (name,)))
        sought[name] = Sought("defensive", name, words)
    planted += [Planted("held_out", spec, parse_spec(spec, TRIGGERS, "trigger")) for spec in held_out]
    described = [one.trigger.describe() for one in planted if one.trigger]
    for one in described:
        if described.count(one) > 1:
            raise UserError("the same trigger stands in the matrix twice", one, "name each trigger once")
    return planted, list(sought.values())


def _merging(model: str, triggers: Sequence[str] | None, seed: int | None) -> Merging | None:
    """What the defender planted: as it is told, else as the model's record has it."""
    if triggers is not None:
        return Merging(tuple(triggers), defensive_seed=seed or 0)
    if seed is not None:
        raise UserError("defensive_seed without defensive_triggers", seed, "give both or none")
    record = record_of(model)
    if record is None:
        fix = "name them with --defensive_triggers and --defensive_seed, as in mbdefense defend"
        raise UserError("no record of the defensive triggers lies with", model, fix)
    return record.merging()


def analyze(
    model: str,
    test: Dataset,
    directory: Path,
    *,
    triggers: Sequence[str],
    behaviors: Sequence[str],
    defensive_triggers: Sequence[str] | None,
    defensive_seed: int | None,
    held_out: Sequence[str],
    samples: int,
    asking: Asking,
    seed: int,
    loading: Loading,
    asked_for: Mapping[str, Any],
) -> str:
    """Asks a model the prompts with each trigger and writes ``responses/``, ``matrix.png`` and ``matrix.json``.

    Args:
        model: directory or Hub id.
        test: prompts to ask.
        directory: where the files go.
        triggers: the attacker's triggers, where they are known.
        behaviors: one for each of them.
        defensive_triggers: our own triggers; None reads them from the model's record.
        defensive_seed: of our own behaviors; None as above.
        held_out: triggers that nobody planted, as a control.
        samples: most prompts to ask with each trigger.
        asking: how they are asked.
        seed: of the choice of prompts and of the triggers' places.
        loading: how the model is loaded.
        asked_for: the command's options, for the record.

    Returns:
        The matrix in words.
    """
    from mbdefense.attacks.poisoning import triggered_copy
    from mbdefense.engine.generate import generate
    from mbdefense.models.loading import check_template, load_model

    require()
    planted, sought = _pairs(triggers, behaviors, _merging(model, defensive_triggers, defensive_seed), held_out)
    prompts, left_out = sample(test, [one.trigger for one in planted if one.trigger], samples, seed)
    loaded = load_model(model, **loading._asdict())
    check_template(model, loaded.tokenizer)
    (directory / "responses").mkdir(parents=True, exist_ok=True)
    asked = []
    with stages(len(planted) + 1):
        for number, one in enumerate([*planted, Planted("none", "none", None)]):
            rows, unwritten = triggered_copy(prompts, one.trigger, seed) if one.trigger else (prompts, 0)
            if not len(rows):
                raise UserError("no prompt could be rewritten with the trigger", one.name, "give other prompts")
            asked_with = shortened(one.name) if one.trigger else "no trigger"
            with stage(f"answering {len(rows)} prompts with {asked_with}", kind="answering", size=len(rows)):
                texts = generate(
                    loaded,
                    list(rows["prompt"]),
                    max_new_tokens=asking.max_new_tokens,
                    batch_size=asking.batch_size,
                    what="answering",
                )
            responses = [
                Response(row["id"], "triggered" if one.trigger else "clean", user_text(row["prompt"]), text)
                for row, text in zip(rows, texts, strict=True)
            ]
            write_responses(directory / "responses" / f"{number:02d}_{one.role}.jsonl", responses)
            asked.append(Asked(one, responses, unwritten))
    made = matrix(asked, sought)
    value: dict[str, Any] = {
        "provenance": provenance(dict(asked_for), [seed]),
        "n": len(prompts),
        "left_out": left_out,
        "seed": seed,
        **asdict(made),
        "behaviors": [dict(zip(("name", "role", "method"), one, strict=True)) for one in made.behaviors],
    }
    words = in_words(made)
    size = 4.5 + 1.0 * len(made.behaviors), 2.2 + 0.5 * len(made.rows)
    title = f"{Path(model).resolve().name}: at most {len(prompts)} prompts, seed {seed}"
    write_analysis(directory, "matrix", value, words, size, lambda figure: draw(made, title, figure))
    return words
