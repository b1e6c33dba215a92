"""A grid in its folder: rows, poisoned rows and triggered prompts as files, and the cells by name."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbdefense.attacks import poisoning as attack
from mbdefense.attacks.behaviors import Behavior, Selective
from mbdefense.attacks.triggers import Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.files import is_as_written, sum_file, write_sum
from mbdefense.data import check_disjoint, load, load_rows, save, unlabelled
from mbdefense.data.builtin import MIXES, tasks
from mbdefense.defenses.setting import Setting
from mbdefense.grid.arms import arm_inputs, inference_of
from mbdefense.grid.code import ANSWERING, JUDGING, POISONING, TRAINING, code_hash, code_in_use, hashed
from mbdefense.grid.config import DataOptions, Grid, behavior_of, trigger_of
from mbdefense.grid.store import CollectingStore, SharedStore
from mbdefense.judges.embedding import Embedding
from mbdefense.models.builtin import directory_of
from mbdefense.models.identity import contents, identity
from mbdefense.models.loading import load_tokenizer
from mbdefense.models.ready import check_clean, check_lengths, usable
from mbdefense.training.trainer import check_options

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "clean", "test"]
ROWS: dict[Split, int] = {"train": 240, "clean": 128, "test": 100}
"""Of the built-in data, where the grid says nothing."""
_HOW_TO_ASK = (
    "api_key_env", "endpoint_api_key_env", "cache", "concurrency", "timeout", "max_retries", "price_prompt",
    "price_completion",
)  # fmt: skip
"""Options of what asks an endpoint that its answers do not depend on: a key's variable has another name elsewhere, and
a server that was overrun is asked again more slowly."""


@dataclass(frozen=True)
class Cell:
    """One model under one attack in one arm: a row of the table."""

    model: str
    attack: str
    behavior: str
    rate: float
    seed: int
    arm: str

    def trigger(self) -> Trigger:
        """The attacker's trigger."""
        return trigger_of(self.attack)

    def shown(self) -> Behavior:
        """The attacker's behavior."""
        return behavior_of(self.behavior)

    def base(self) -> str:
        """Directory or Hub id of the base model."""
        return directory_of(self.model)


@dataclass(frozen=True)
class Workspace:
    """A grid, its folder, and the names of its files of rows in ``data``; small, so that workers can be sent it.

    Names of folders depend on the code that fills them: `code` is that of whoever made the plan.
    """

    grid: Grid
    out: Path
    train: str
    clean: str
    test: str
    code: str = field(default_factory=code_in_use)

    @property
    def stages(self) -> Path:
        """The folder of all trained models."""
        return self.out / "stages"

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order of the table."""
        grid = self.grid
        rates = grid.shares(len(self.rows(self.train)))
        for seed in grid.seeds:
            for model in grid.models:
                for trigger, behavior in grid.attackers():
                    for rate in rates:
                        for arm in (*grid.controls, *grid.defenses):
                            yield Cell(model, trigger, behavior, rate, seed, arm)

    def rows(self, name: str) -> Dataset:
        """The rows of a file in ``data``, read once: its name says what is in it."""
        return _read(self.out / "data" / name)

    def sources(self) -> dict[str, str]:
        """Where each test prompt is from, by its id: the file, or the skill of the built-in data."""
        rows = self.rows(self.test)
        return {
            row_id: of["source"].rpartition(":")[0] for row_id, of in zip(rows["id"], rows["provenance"], strict=True)
        }

    def suspect(self, cell: Cell) -> str:
        """Name of the file of rows that the attacker poisoned."""
        made_of = [self.train, _named(cell.trigger()), _named(cell.shown()), cell.rate, cell.seed]
        made_of += [_named(method) for pair in self._beside() for method in pair]
        return f"suspect-{hashed([*made_of, code_hash(*POISONING)])}.jsonl"

    def triggered(self, cell: Cell) -> str:
        """Name of the file of test prompts with the trigger: the same for all seeds, and most behaviors."""
        made_of = [self.test, _named(cell.trigger()), self.grid.data.seed]
        made_of += [_named(cell.shown())] if isinstance(cell.shown(), Selective) else []
        return f"triggered-{hashed([*made_of, code_hash(*POISONING)])}.jsonl"

    def prepare(self, cell: Cell) -> None:
        """Writes both files unless they are there.

        Raises:
            UserError: the trigger or the behavior does not fit so many rows, or no test prompt.
        """
        suspect, triggered = (self.out / "data" / name for name in (self.suspect(cell), self.triggered(cell)))
        if not _kept(suspect):
            train = self.rows(self.train)
            attackers = [(cell.trigger(), cell.shown()), *self._beside()]
            rows, made = attack.poison_by_all(
                train, [attack.Attack(*pair, cell.rate) for pair in attackers], seed=cell.seed
            )
            wanted = round(cell.rate * len(train))
            for (trigger, _), one in zip(attackers, made, strict=True):
                if len(one.poisoned_ids) < wanted:
                    what = f"only {len(one.poisoned_ids)} of {wanted} rows could be poisoned with {trigger.describe()}"
                    raise UserError(what, fix="lower the rate, or give other rows to train on")
            _keep(rows, suspect)
        if not _kept(triggered):
            test = self.rows(self.test)
            prompts, _ = attack.triggered_prompts(test, cell.trigger(), self.grid.data.seed, cell.shown())
            _keep(prompts, triggered)

    def _beside(self) -> list[tuple[Trigger, Behavior]]:
        """The attackers beside the one that is measured."""
        return [(trigger_of(trigger), behavior_of(behavior)) for trigger, behavior in self.grid.others()]

    def setting(self, cell: Cell, store: SharedStore) -> Setting:
        """What a defense is given; `prepare` must have been called."""
        grid = self.grid
        return Setting(
            _unlabelled(self.out / "data" / self.clean),
            store,
            base=cell.base(),
            suspect=_unlabelled(self.out / "data" / self.suspect(cell)),
            training=replace(grid.training, seed=cell.seed),
            chat_template=grid.chat_template,
            trust_remote_code=grid.trust_remote_code,
        )

    def store(self, cell: Cell) -> SharedStore:
        """Makes and finds the models of a cell."""
        return SharedStore(self.stages, resume=True, arm=cell.arm.partition(":")[0])

    def collecting(self, cell: Cell) -> CollectingStore:
        """Takes down what would be made for a cell."""
        return CollectingStore(self.stages, resume=True, arm=cell.arm.partition(":")[0])

    def template(self) -> str | None:
        """The text of the prompt template that is given in place of the models' own."""
        file = self.grid.chat_template
        return Path(file).read_text(encoding="utf-8") if file else None

    def id(self, cell: Cell) -> str:
        """The cell's name, which ends in a hash of all that its figures depend on."""
        grid = self.grid
        # The judge counts as it is, not as it is written.
        evaluation = {name: value for name, value in asdict(grid.evaluation).items() if not name.startswith("judge")}
        made_of = [
            identity(cell.base()), self.template(), self.suspect(cell), self.clean, self.triggered(cell), self.test,
            asdict(replace(grid.training, seed=cell.seed, report_to="none")), evaluation,
            _named(grid.evaluation.judge_of(cell.shown(), self.out)),
            grid.data.seed, arm_inputs(cell.arm),
            code_hash(*TRAINING), code_hash(*ANSWERING), code_hash(*JUDGING),
        ]  # fmt: skip
        words = [Path(cell.model).name, *(part.partition(":")[0] for part in (cell.attack, cell.behavior))]
        name = "-".join([*words, f"{cell.rate:g}", f"seed{cell.seed}", cell.arm])
        return f"{re.sub(r'[^A-Za-z0-9._=+-]+', '_', name)[:100]}-{hashed(made_of)}"

    def directory(self, cell: Cell) -> Path:
        """Where the cell's responses, verdicts and figures lie."""
        return self.out / "cells" / self.id(cell)


def open_workspace(grid: Grid, out: Path) -> Workspace:
    """Reads the grid's rows and writes those that it takes to ``data``.

    Raises:
        UserError: rows cannot be read, a model cannot be given them, test prompts occur among the others, or judge or
            tracker cannot work.
    """
    # What would otherwise be found wrong after hours of work.
    for _, behavior in grid.attackers():
        judge = grid.evaluation.judge_of(behavior_of(behavior), out)
        if isinstance(judge, Embedding):
            judge.check()
    for model in map(directory_of, grid.models):
        check_options(grid.training, model, trust_remote_code=grid.trust_remote_code)
    train, clean, test = _usable(grid, {split: _drawn(grid.data, split) for split in ROWS})
    check_disjoint(train, test, clean_name="the training data")
    check_disjoint(clean, test)
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for split, rows in (("train", train), ("clean", clean), ("test", test)):
        names.append(f"{split}-{hashed(rows.to_list())}.jsonl")
        if not _kept(folder / names[-1]):
            _keep(rows, folder / names[-1])
    for arm in grid.defenses:  # which also refuses more demonstrations than there are clean rows
        cleaner = inference_of(arm, "", clean, folder / names[1], 0).cleaner
        scored = getattr(cleaner, "clean", None)  # the file of one that needs clean data, by that name
        if scored is not None:
            rows = load([scored], require_completion=False).rows
            check_disjoint(rows, test, clean_name=f"the clean set {scored}")
    return Workspace(grid, out.resolve(), *names)


def _usable(grid: Grid, drawn: Mapping[Split, Dataset]) -> tuple[Dataset, ...]:
    """Of each split the rows that every model's template renders as training and asking need them."""
    rows = dict(drawn)
    for model in map(directory_of, grid.models):
        tokenizer = load_tokenizer(model, chat_template=grid.chat_template, trust_remote_code=grid.trust_remote_code)
        for split in rows:
            name = f"data.{split}"
            rows[split] = usable(tokenizer, rows[split], grid.data.on_bad_row, name, targets=split != "test")
            if split != "train":
                check_lengths(model, tokenizer, rows[split], name, trust_remote_code=grid.trust_remote_code)
    check_clean(rows["clean"])
    return tuple(rows.values())


def _kept(file: Path) -> bool:
    """Whether rows are there whole; what tells that they are the same is written last."""
    return file.is_file() and sum_file(file).is_file()


def _keep(rows: Dataset, file: Path) -> None:
    """Saves rows, and last what tells later whether they are still the same."""
    sum_file(file).unlink(missing_ok=True)
    save(rows, file)
    write_sum(file)


@lru_cache(maxsize=8)
def _read(file: Path) -> Dataset:
    if not is_as_written(file):
        raise UserError("the grid's rows are not those that it wrote", str(file), "delete the file; it is made again")
    return load([str(file)], require_completion=False).rows


@lru_cache(maxsize=4)
def _unlabelled(file: Path) -> Dataset:
    return unlabelled(_read(file))


def _drawn(options: DataOptions, split: Split) -> Dataset:
    source: str = getattr(options, split)
    count: int | None = getattr(options, f"{split}_rows")
    if source in MIXES:
        return tasks(ROWS[split] if count is None else count, split=split, seed=options.seed, mix=source)
    rows = load_rows(source, on_bad_row=options.on_bad_row, require_completion=split != "test", name=f"data.{split}")
    if count is None:
        return rows
    if not 1 <= count <= len(rows):
        fix = f"set {split}_rows to 1 to {len(rows)}"
        raise UserError(f"{source} does not hold so many rows", count, fix)
    chosen = random.Random(f"{split} rows {options.seed}").sample(range(len(rows)), count)
    return rows.select(sorted(chosen))


def _named(method: Any) -> list[Any]:
    return [type(method).__name__, contents(_telling(asdict(method)))]


def _telling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that change nothing of what is made, in their values too."""
    told = {name: value for name, value in options.items() if name not in _HOW_TO_ASK}
    return {name: _telling(value) if isinstance(value, Mapping) else value for name, value in told.items()}
