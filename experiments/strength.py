"""Holds the default defense against its rivals on the hard benchmark, and writes the page of the figures.

    python experiments/strength.py OUT [--grids FILE ...] [--ray ADDRESS] [--page FILE] [--only_page]

Runs each grid with `mbdefense bench` in a folder of OUT, where it goes on where it stopped, and writes the page of what
is done: every figure on it comes from the grids' result files. `--only_page` runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from find_and_break import names

from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.files import write_text
from mbdefense.core.forms import read_form
from mbdefense.core.specs import parse_spec
from mbdefense.core.statistics import Mean, holm, over_both
from mbdefense.core.text import escaped
from mbdefense.evaluation._words import changed
from mbdefense.evaluation.compare import Arm, changes, read_arm
from mbdefense.evaluation.landing import share, shown
from mbdefense.evaluation.metrics import outcomes
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.grid._bench import bench
from mbdefense.records.grid_state import GRID_FILE, Grid
from mbdefense.records.results import RESULT_FILE, Figure, ResultRow, read

GRIDS = ("configs/hard_cpu.yaml", "configs/hard_unlock_cpu.yaml", "configs/hard_adaptive_cpu.yaml")
ARMS = ("clean", "attacked", "discard", "repeats", "fine_mixing", "found_dropped", "find_and_break")
DEFAULT = "find_and_break"
FIGURES: tuple[Figure, ...] = ("asr", "cacc")
LANDED, LEFT_BY_REPEATS, LEAST = 0.5, 0.5, 0.02
"""An attack counts where the attacked model's ASR is the first in every seed, and `repeats` leaves this share of it;
the default is held against the third."""


class Attack(NamedTuple):
    """An attack of a grid on one of its models, with so many poisoned rows.

    Attributes:
        model: the base model.
        trigger: as the grid writes it.
        behavior: the same.
        rows: how many are poisoned.
        seeds: of each, the arms by name.
        searched: of each, what the default found, where it has searched.
    """

    model: str
    trigger: str
    behavior: str
    rows: int
    seeds: dict[int, dict[str, Arm]]
    searched: dict[int, Path]

    def counts(self) -> bool:
        """Whether it is one to learn from: it landed in every seed, and `repeats` was not seen to do away with it."""
        return all(
            _asr(arms, "attacked") >= LANDED
            and ("repeats" not in arms or _asr(arms, "repeats") >= LEFT_BY_REPEATS * _asr(arms, "attacked"))
            for arms in self.seeds.values()
        )


def _asr(arms: dict[str, Arm], name: str) -> float:
    found = arms[name].row.asr if name in arms else None
    return found.value if found else 0.0


def measured(folder: Path) -> list[Attack]:
    """The attacks of a grid of which cells are done."""
    attacks: dict[tuple[str, str, str, int], Attack] = {}
    grid = read_form(Grid, folder / GRID_FILE)
    size = int(grid.config["data"]["train_rows"])
    for cell in grid.cells:
        if cell.status != "done" or cell.rate is None:
            continue
        key = (cell.model, cell.attack, cell.behavior, round(cell.rate * size))
        attack = attacks.setdefault(key, Attack(*key, {}, {}))
        attack.seeds.setdefault(cell.seed, {})[cell.arm] = read_arm(folder / "cells" / cell.id)
        found = [path for step in cell.steps if (path := folder / "stages" / step / FOUND_FILE).is_file()]
        if cell.arm == DEFAULT and found:
            attack.searched[cell.seed] = found[0]
    return list(attacks.values())


def page(folders: Sequence[Path], command: str) -> str:
    """The page of all grids."""
    lines = [
        "# How strong it is", "", "```", command, "```", "",
        "This page is the command's output. What it means, and what was changed since: [beside it](hard_models.md).",
    ]  # fmt: skip
    for folder in folders:
        lines += _grid(folder)
    return "\n".join(lines) + "\n"


def _grid(folder: Path) -> Iterator[str]:
    results = read(folder / RESULT_FILE)
    made = results.provenance
    data, training = made["config"]["data"], made["config"]["training"]
    packages = ", ".join(f"{name} {made['packages'][name]}" for name in ("torch", "transformers"))
    attacks = measured(folder)
    counted = [attack for attack in attacks if attack.counts()]
    yield f"\n## {folder.name}\n"
    yield (
        f"`configs/{folder.name}.yaml`: {', '.join(made['config']['models'])}; {data['train_rows']} rows of "
        f"{data['train']}, {data['clean_rows']} clean ones; {training['num_train_epochs']} epochs at "
        f"{training['learning_rate']}. Commit {_commits(folder)}, {packages}, {made['processor']}, "
        f"{made['created'][:10]}. {len(counted)} of {len(attacks)} attacks count as hard{_unknown(attacks)}."
    )
    models = made["config"]["models"]
    yield "\nASR / CACC, means over the seeds; of an arm that is not there with all of them, how many:\n"
    yield "| Trigger, behavior | Rows | Seeds | " + " | ".join(ARMS) + " |"
    yield "| --- |" + " ---: |" * (len(ARMS) + 2)
    for attack in attacks:
        cells = [" / ".join(_over(attack, arm, figure) for figure in ("asr", "cacc")) for arm in ARMS]
        named = f"{attack.trigger} -> {attack.behavior}" + (f", {attack.model}" if len(models) > 1 else "")
        yield f"| {escaped(named)} | {attack.rows} | {len(attack.seeds)} | {' | '.join(cells)} |"
    yield from _pooled(counted)
    for attack in attacks:
        for seed in sorted(attack.seeds):
            yield from _attack(attack, seed, attack.model if len(models) > 1 else "")


def _commits(folder: Path) -> str:
    """Those by which cells were measured, of which a grid that was resumed has several."""
    done = [cell.id for cell in read_form(Grid, folder / GRID_FILE).cells if cell.status == "done"]
    named = [str(read(folder / "cells" / name / RESULT_FILE).provenance["commit"]) for name in done]
    short = {commit[:7] + ("+dirty" if commit.endswith("+dirty") else "") for commit in named}
    return ", ".join(sorted(short))


def _unknown(attacks: Sequence[Attack]) -> str:
    lacking = sum(any("repeats" not in arms for arms in attack.seeds.values()) for attack in attacks)
    return f", {lacking} of which `repeats` was not run on" if lacking else ""


def _over(attack: Attack, arm: str, figure: str) -> str:
    scores = [getattr(arms[arm].row, figure) for arms in attack.seeds.values() if arm in arms]
    known = [score.value for score in scores if score]
    if not known:
        return "-"
    fewer = f" ({len(known)} of {len(attack.seeds)} seeds)" if len(known) < len(attack.seeds) else ""
    return share(sum(known) / len(known)) + fewer


def _pooled(attacks: Sequence[Attack]) -> Iterator[str]:
    """The default over all attacks that count."""
    attacks = [attack for attack in attacks if all(DEFAULT in arms for arms in attack.seeds.values())]
    runs = [arms for attack in attacks for arms in attack.seeds.values()]
    if len(runs) < 2:
        return
    size = f"{len(attacks)} attacks, {len(runs)} trainings"
    yield f"\nOver the {size} with {DEFAULT}; intervals by bootstrap over trainings and prompts:\n"
    left = sum(all(_asr(arms, DEFAULT) <= LEAST for arms in attack.seeds.values()) for attack in attacks)
    yield f"- {DEFAULT} leaves an ASR of at most {share(LEAST)} under {left} of them."
    for other in ("clean", "attacked", "discard", "fine_mixing", "found_dropped"):
        pairs = [_right(arms, other) for arms in runs if other in arms]
        if len(pairs) == len(runs):
            yield f"- CACC less that of {other}: {_signed(over_both(pairs))}."


def _right(arms: dict[str, Arm], other: str) -> list[float]:
    """By prompt, whether the default answers right less whether the other one does."""
    mine, theirs = (outcomes(arms[name].verdicts, "cacc") for name in (DEFAULT, other))
    return [float(mine[name] is True) - float(theirs[name] is True) for name in sorted(mine)]


def _signed(mean: Mean) -> str:
    low, value, high = (f"{part:+.2f}".replace("0.", ".", 1) for part in (mean.low, mean.value, mean.high))
    return f"{value} [{low}, {high}]"


def _attack(attack: Attack, seed: int, model: str) -> Iterator[str]:
    arms = attack.seeds[seed]
    on = f", {escaped(model)}" if model else ""
    yield f"\n### {escaped(attack.trigger)}, {escaped(attack.behavior)}, {attack.rows} rows, seed {seed}{on}\n"
    yield "| Arm | ASR | CACC | Accuracy under the trigger | False activations | Seconds |"
    yield "| --- | --- | --- | --- | --- | ---: |"
    for name in ("base", *ARMS):
        if name in arms:
            yield f"| {name} | {' | '.join(_figures(arms[name].row))} |"
    if DEFAULT not in arms:
        return
    tests = {
        (name, figure): test
        for name in ARMS
        if name in arms and name != DEFAULT
        for figure, test in changes(arms[name], arms[DEFAULT]).items()
    }
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    yield f"\n{DEFAULT} less each, on the same prompts (McNemar, Holm over this list):\n"
    for name in dict.fromkeys(name for name, _ in tests):
        told = [f"{figure.upper()} {changed(adjusted[name, figure])}" for figure in FIGURES if (name, figure) in tests]
        yield f"- {name}: {'; '.join(told)}"
    if seed in attack.searched:
        yield f"\n{_named(attack, attack.searched[seed])}"


def _figures(row: ResultRow) -> Iterator[str]:
    for score in (row.asr, row.cacc, row.aacc, row.false_activation):
        yield shown(score) if score else "-"
    yield f"{row.seconds:.0f}"


def _named(attack: Attack, file: Path) -> str:
    """What the search named, and where the true trigger stands among the mined texts and the named ones."""
    found = read_found(file)
    told = [
        f"`{escaped(' + '.join(one.texts))}` in {one.rows} rows (p = {one.p_value:.1g})" for one in found.of("trigger")
    ]
    trigger = parse_spec(attack.trigger, TRIGGERS, "trigger")
    mined = sorted(found.candidates, key=lambda one: -one.score)
    places = [
        next((f"{at} of {len(ones)}" for at, one in enumerate(ones, 1) if names(one, trigger)), f"none of {len(ones)}")
        for ones in (mined, found.of("trigger"))
    ]
    seconds = f"{found.seconds:.0f} s for mining and verifying, {found.asking_seconds:.0f} s for asking"
    return (
        f"Named: {', '.join(told) or 'nothing'}. The trigger's text is {places[0]} mined, {places[1]} named; {seconds}."
    )


def main() -> None:
    """Runs the grids, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--grids", nargs="+", type=Path, default=[Path(grid) for grid in GRIDS])
    parser.add_argument("--ray", default=None)
    parser.add_argument("--page", type=Path, default=None)
    parser.add_argument("--only_page", action="store_true")
    options = parser.parse_args()
    folders = [options.out / grid.stem for grid in options.grids]
    for grid, folder in zip(options.grids, folders, strict=True):
        if not options.only_page:
            done = bench(str(grid), output_dir=str(folder), ray=options.ray)
            for name, reason in done.failed.items():
                sys.stderr.write(f"failed: {name}: {reason}\n")
            if done.interrupted:  # which is meant for all of them
                raise SystemExit(130)
    made = page([folder for folder in folders if (folder / RESULT_FILE).is_file()], _command(options.grids))
    if options.page:
        write_text(options.page, made)
    else:
        sys.stdout.write(made)


def _command(grids: Sequence[Path]) -> str:
    asked = "" if [str(grid) for grid in grids] == list(GRIDS) else f" --grids {' '.join(map(str, grids))}"
    return f"python experiments/strength.py OUT{asked} --page docs/evidence/strength.md"


if __name__ == "__main__":
    main()
