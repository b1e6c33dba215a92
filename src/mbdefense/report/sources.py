"""What lies in the folders that a report is made of: found by the names of files, read strictly, with their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from mbdefense.core.errors import UserError
from mbdefense.core.files import inside, read_bytes
from mbdefense.core.forms import Form, read_form
from mbdefense.evaluation.compare import Arm, arm_of, check_apart, check_lengths, compare, seed_rows
from mbdefense.evaluation.landing import is_control
from mbdefense.evaluation.metrics import scores
from mbdefense.evaluation.tables import row_verdicts
from mbdefense.records.analyses import (
    ANALYSES,
    Analysis,
    Heads,
    Losses,
    Matrix,
    Pictures,
    Relearning,
    Traces,
    Triggers,
)
from mbdefense.records.federated import FEDERATED_FILE, FederatedCell, FederatedResults, check_name
from mbdefense.records.grid_state import GRID_FILE, Grid, GridCell
from mbdefense.records.responses import Response, read_responses
from mbdefense.records.results import (
    RESULT_FILE,
    UNDEFENDED,
    Figure,
    ResultRow,
    Results,
    SeedRow,
    check_beside,
    read,
)
from mbdefense.records.training_log import LOG_FILE, TrainingLog
from mbdefense.records.verdicts import Verdict, read_verdicts

_FIX = "give folders of mbdefense bench, evaluate, compare, demo, defend, analyze or federated"
Key = tuple[object, ...]
_Of = TypeVar("_Of", bound=Form)


@dataclass(frozen=True)
class InputFile:
    """A file that the page rests on."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Answers:
    """One arm's responses and what was thought of them."""

    row: ResultRow
    responses: Sequence[Response]
    verdicts: Sequence[Verdict]

    def arm(self) -> Arm:
        """As `mbdefense.evaluation.compare` takes it."""
        return Arm(self.row, self.verdicts, {(one.kind, one.id): one.prompt for one in self.responses})


@dataclass(frozen=True)
class Federation:
    """A grid of clients who train together.

    Attributes:
        name: its folder.
        results: its figures.
        cells: round by round.
    """

    name: str
    results: FederatedResults
    cells: tuple[FederatedCell, ...]


@dataclass(frozen=True)
class Sources:
    """Everything found.

    Attributes:
        rows: of all result files; each arm under each setting once.
        over_seeds: figures over several seeds.
        unfinished: cells of a grid that have no result.
        answers: responses of those rows that have them.
        matrices: by file, as the other analyses and logs.
        heads: attention heads.
        triggers: curves over the number of triggers.
        traces: what is left inside models.
        relearning: how soon backdoors come back.
        pictures: images of a run.
        losses: of the trainings of image models.
        logs: of trainings.
        found: result files of defenses that had triggers searched for.
        federated: grids of clients who train together.
        provenance: of each file that carries one.
        files: all files read.
        notes: what the reader of the page must know about what was found.
        refused: whether arms were found that must not be compared, such as of other prompts.
    """

    rows: tuple[ResultRow, ...] = ()
    over_seeds: tuple[SeedRow, ...] = ()
    unfinished: tuple[GridCell, ...] = ()
    answers: tuple[Answers, ...] = ()
    matrices: tuple[tuple[str, Matrix], ...] = ()
    heads: tuple[tuple[str, Heads], ...] = ()
    triggers: tuple[tuple[str, Triggers], ...] = ()
    traces: tuple[tuple[str, Traces], ...] = ()
    relearning: tuple[tuple[str, Relearning], ...] = ()
    pictures: tuple[tuple[str, Pictures], ...] = ()
    losses: tuple[tuple[str, Losses], ...] = ()
    logs: tuple[tuple[str, TrainingLog], ...] = ()
    found: tuple[tuple[str, Results], ...] = ()
    federated: tuple[Federation, ...] = ()
    provenance: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    files: tuple[InputFile, ...] = ()
    notes: tuple[str, ...] = ()
    refused: bool = False

    def verdicts(self) -> dict[int, str]:
        """What each row is worth, by its `id`. Where arms must not be compared, intervals tell nothing of a defense."""
        verdicts = {}
        for row, verdict in zip(self.rows, row_verdicts(Results({}, self.rows)), strict=True):
            verdicts[id(row)] = "not compared" if verdict and self.refused and _unpaired(row) else verdict
        return verdicts


def key_of(row: ResultRow) -> Key:
    """What tells a row from all others of a page."""
    return (row.arm, *row.setting(), row.seed)


@dataclass
class _Collector:
    """Fills `Sources` while folders are walked through."""

    rows: dict[Key, tuple[ResultRow, str]] = field(default_factory=dict)
    over_seeds: dict[SeedRow, None] = field(default_factory=dict)
    unfinished: list[GridCell] = field(default_factory=list)
    answers: list[tuple[Key, Path]] = field(default_factory=list)
    analyses: list[tuple[str, Analysis]] = field(default_factory=list)
    logs: list[tuple[str, TrainingLog]] = field(default_factory=list)
    found: list[tuple[str, Results]] = field(default_factory=list)
    federated: list[Federation] = field(default_factory=list)
    provenance: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    files: dict[str, InputFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note_file(self, path: Path, shown: str) -> bytes:
        data = read_bytes(path, "check the file and its permissions")
        self.files[shown] = InputFile(shown, hashlib.sha256(data).hexdigest(), len(data))
        return data

    def sealed(self, path: Path, shown: str, form: type[_Of]) -> _Of:
        self.note_file(path, shown)
        return read_form(form, path, shown)

    def results(self, path: Path, shown: str) -> None:
        self.note_file(path, shown)
        found = read(path)
        self.provenance.append((shown, found.provenance))
        self.over_seeds.update(dict.fromkeys(found.over_seeds))
        if found.found is not None:
            self.found.append((shown.rpartition("/")[0], found))
        for row in found.rows:
            known, where = self.rows.setdefault(key_of(row), (row, shown))
            if _figures(known) != _figures(row):
                what = f"two results of one arm, attack and seed with other figures: {where} and {shown}"
                fix = "give one of the folders, or name the arms apart with evaluate --arm"
                raise UserError(what, row.arm, fix)
            if known.asr_change is None and known.cacc_change is None:
                self.rows[key_of(row)] = row, shown

    def grid(self, path: Path, shown: str) -> None:
        grid = self.sealed(path, shown, Grid)
        self.provenance.append((shown, {**grid.provenance, "config": grid.config}))
        self.unfinished += [cell for cell in grid.cells if cell.status != "done"]

    def federation(self, path: Path, shown: str) -> None:
        results = self.sealed(path, shown, FederatedResults)
        folder = shown.rpartition("/")[0]
        cells = [
            self.sealed(inside(path.parent / "cells", name), f"{folder}/cells/{name}", FederatedCell)
            for name in results.cells
        ]
        for name, cell in zip(results.cells, cells, strict=True):
            check_name(cell, name)
        self.provenance.append((shown, results.provenance))
        self.federated.append(Federation(folder, results, tuple(cells)))

    def file(self, path: Path, shown: str) -> None:
        """Reads a file of a known name; others are passed over."""
        if path.name == RESULT_FILE:
            self.results(path, shown)
        elif path.name == GRID_FILE:
            self.grid(path, shown)
        elif path.name == FEDERATED_FILE:
            self.federation(path, shown)
        elif path.name == LOG_FILE and (path.parent / "mbdefense.json").is_file():
            self.logs.append((shown.rpartition("/")[0], self.sealed(path, shown, TrainingLog)))
        elif path.suffix == ".json" and path.stem in ANALYSES:
            analysis = self.sealed(path, shown, ANALYSES[path.stem])
            self.analyses.append((shown, analysis))
            self.provenance.append((shown, analysis.provenance))

    def of(self, form: type[_Of]) -> tuple[tuple[str, _Of], ...]:
        """The analyses of one kind."""
        return tuple((shown, one) for shown, one in self.analyses if isinstance(one, form))

    def responses(self, path: Path, shown: str, root: Path) -> None:
        """Finds the row that a folder's responses belong to."""
        verdicts = path.parent / "verdicts.jsonl"
        folder = shown.rpartition("/")[0]
        if not verdicts.is_file():
            self.notes.append(f"the responses in {folder} are not judged, so they are not shown")
            return
        row = _row_of(path.parent, root)
        if row is None:
            self.notes.append(f"the responses in {folder} belong to no result row, so they are not shown")
            return
        arm_of(row, path.parent)  # refuses files that do not belong together
        self.note_file(path, shown)
        self.note_file(verdicts, f"{folder}/verdicts.jsonl")
        if key_of(row) not in {key for key, _ in self.answers}:
            self.answers.append((key_of(row), path.parent))


def _figures(row: ResultRow) -> tuple[object, ...]:
    return row.asr, row.cacc, row.aacc, row.false_activation


def _row_of(folder: Path, root: Path) -> ResultRow | None:
    """The row of a folder of responses: its own result file's only one, else that of its name in one further up."""
    if (folder / RESULT_FILE).is_file():
        own = read(folder / RESULT_FILE)
        check_beside(folder, own)
        return own.rows[0] if len(own.rows) == 1 else None
    figures = tuple(scores(read_verdicts(folder / "verdicts.jsonl")))
    for above in folder.parents:
        if (above / RESULT_FILE).is_file():
            rows = read(above / RESULT_FILE).rows
            fits = [row for row in rows if row.arm == folder.name and _figures(row) == figures]
            return fits[0] if len(fits) == 1 else None
        if above == root:
            break
    return None


def _walk(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Every file below a folder in a fixed order, with its name for people; no links, which may lead anywhere."""
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith((".", "checkpoint")))
        for file in sorted(files):
            path = Path(directory) / file
            if not path.is_symlink():
                yield path, f"{name}/{path.relative_to(root).as_posix()}"


def _of_grids(files: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Without what a grid keeps for itself, and what cells have left there that are no longer in the grid."""
    grids = {path.parent: read_form(Grid, path, shown) for path, shown in files if path.name == GRID_FILE}
    kept = []
    for path, shown in files:
        at = next((folder for folder in path.parents if folder in grids), None)
        parts = path.relative_to(at).parts if at else ()
        if at and len(parts) > 1:
            cells = grids[at].cells
            listed = {
                "cells": {cell.id for cell in cells},
                "stages": {stage for cell in cells for stage in cell.stages},
                "answers": set[str](),
                "data": set[str](),
            }
            if parts[0] in listed and parts[1] not in listed[parts[0]]:
                continue
        kept.append((path, shown))
    return kept


def _named(roots: Sequence[Path]) -> list[str]:
    """Names for people, as short as they can be while they differ; a whole path would say whose machine it is.

    Raises:
        UserError: a folder is given twice, or lies in another one.
    """
    whole = [root.resolve() for root in roots]
    for at, one in enumerate(whole):
        for other in whole[:at] + whole[at + 1 :]:
            if one.is_relative_to(other):
                raise UserError("a folder is given twice or lies in another one", str(roots[at]), "give each once")
    names = [path.name for path in whole]
    for depth in range(2, max(len(path.parts) for path in whole)):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path.parts[-depth:]) for path in whole]
    return names


def read_sources(directories: Sequence[str | Path]) -> Sources:
    """Reads everything of use below some folders.

    Raises:
        UserError: no such folder, nothing in it, a damaged file, or figures that contradict each other.
    """
    found = _Collector()
    roots = [Path(directory) for directory in directories]
    for root, name in zip(roots, _named(roots), strict=True):
        if not root.is_dir():
            raise UserError("no such folder", str(root), _FIX)
        files = _of_grids(list(_walk(root, name)))
        for path, shown in files:
            found.file(path, shown)
        for path, shown in files:
            if path.name == "responses.jsonl":
                found.responses(path, shown, root)
    kinds = (found.rows, found.unfinished, found.analyses, found.logs, found.found)
    if not any((*kinds, found.federated)):
        raise UserError("nothing to report in", [str(one) for one in directories], _FIX)
    check_apart(row.arm for row, _ in found.rows.values())
    check_lengths(row for row, _ in found.rows.values())
    order = list(found.rows)
    answers = [
        Answers(found.rows[key][0], read_responses(at / "responses.jsonl"), read_verdicts(at / "verdicts.jsonl"))
        for key, at in sorted(found.answers, key=lambda one: order.index(one[0]))
    ]
    made = Sources(
        tuple(row for row, _ in found.rows.values()),
        tuple(found.over_seeds),
        tuple(_unfinished(found)),
        tuple(answers),
        found.of(Matrix),
        found.of(Heads),
        found.of(Triggers),
        found.of(Traces),
        found.of(Relearning),
        found.of(Pictures),
        found.of(Losses),
        tuple(found.logs),
        tuple(found.found),
        tuple(found.federated),
        tuple(found.provenance),
        tuple(found.files.values()),
        tuple(found.notes),
    )
    return _with_means(_paired(made))


def _unfinished(found: _Collector) -> Iterator[GridCell]:
    """Cells without a result: a run that was killed has made some since the grid's state was written."""
    rows = [row for row, _ in found.rows.values() if row.origin == "attack"]
    done = {(row.base_model, row.attack, row.behavior, row.poisoning_rate, row.arm, row.seed) for row in rows}
    for cell in found.unfinished:
        if (cell.model, cell.attack, cell.behavior, cell.rate, cell.arm, cell.seed) not in done:
            yield cell


def _unpaired(row: ResultRow) -> bool:
    """Whether a defense is held against the undefended model by its interval alone."""
    return not (row.asr_change or row.cacc_change or is_control(row.arm) or row.arm == UNDEFENDED[row.origin])


def _paired(sources: Sources) -> Sources:
    """Pairs the arms by their responses where no result file has done so, with Holm's correction over all of them."""
    if len(sources.answers) < 2 or not any(map(_unpaired, (one.row for one in sources.answers))):
        return sources
    try:
        rows, over_seeds = compare([one.arm() for one in sources.answers])
    except UserError as error:
        note = f"the arms could not be compared prompt by prompt: {error}"
        return replace(sources, notes=(*sources.notes, note), refused=True)
    compared = {key_of(row): row for row in rows}
    return replace(
        sources,
        rows=tuple(compared.get(key_of(row), row) for row in sources.rows),
        over_seeds=(*sources.over_seeds, *over_seeds),
        answers=tuple(replace(one, row=compared[key_of(one.row)]) for one in sources.answers),
    )


def _with_means(sources: Sources) -> Sources:
    """Each mean once, and over all seeds whose rows are there.

    The files of several runs, or of one that was killed, hold means over some of the seeds each.
    """
    runs: dict[Key, dict[int, ResultRow]] = {}
    for row in sources.rows:
        if row.origin == "attack":
            runs.setdefault((row.arm, *row.setting()), {})[row.seed] = row
    told: dict[Key, list[SeedRow]] = {}
    for one in sources.over_seeds:
        setting = ("attack", one.attack, one.behavior, one.judge, one.base_model, one.poisoning_rate)
        told.setdefault((one.arm, *setting), []).append(one)
    answers = {key_of(one.row): one for one in sources.answers}
    means: list[SeedRow] = []
    notes: list[str] = []
    for key, rows in runs.items():
        given = told.pop(key, [])
        whole = {one.figure: one for one in given if set(one.score.seeds) == rows.keys()}
        figures = [name for name in get_args(Figure) if any(getattr(row, name) for row in rows.values())]
        if len(rows) > 1 and not whole.keys() >= set(figures):
            known = [answers[key_of(row)].arm() for row in rows.values() if key_of(row) in answers]
            try:
                whole = {one.figure: one for one in seed_rows(known)} if len(known) == len(rows) else {}
                why = "the responses of some are not there"
            except UserError as error:
                whole, why = {}, str(error)
            if given and not whole:
                named = f"{key[0]} under {key[2]}"
                notes.append(f"{named} has no mean over the seeds {', '.join(map(str, sorted(rows)))}: {why}")
        means += whole.values()
    # Of other origins, or without rows of their own.
    means += [one for ones in told.values() for one in ones]
    return replace(sources, over_seeds=tuple(means), notes=(*sources.notes, *notes))
