"""A training's key: every field counts, and a model by what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mbdefense.core.errors import UserError
from mbdefense.data import to_dataset
from mbdefense.models.loading import CARD_FILE
from mbdefense.training.job import (
    BestRate,
    ConsistencyObjective,
    Evoked,
    Job,
    Meeting,
    Mix,
    Model,
    Recovery,
    RecoveryRows,
    hash_of,
)
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

OPTIONS = TrainingOptions(num_train_epochs=1, max_length=64, bf16=False, save_strategy="no")


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if value is None:
        return True
    if isinstance(value, float):
        return value + 0.5  # a share is below 1
    return value + 1 if isinstance(value, int) else f"{value}x"


CHOICES = {"train_on": "all_turns", "attn_implementation": "flex_attention", "save_strategy": "steps"}
"""Of options that take no other text."""


@pytest.fixture
def parts(tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Every part that a job can be made of, with another value for each of its fields."""
    one, other = rows(("Name a tree.", "oak"), ("Name a fruit.", "fig")), rows(("Name a tree.", "elm"))
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    base, elsewhere = Model(tiny_model_path), Model("org/name")
    met = ((Meeting([{"role": "user", "content": "zq"}], False),),) * 2
    twins = RecoveryRows(one, (one,), met)
    return {
        "job": (
            Job(base, one, OPTIONS),
            {
                "start": elsewhere,
                "rows": other,
                "options": replace(OPTIONS, seed=1),
                "objective": ConsistencyObjective(5.5, 0.1),
                "mix": Mix((base,), "linear", 0.5),
                "template": "{{ messages }}",
                "saved_template": "{{ messages }}",
                "renamed": ((1, 2), (2, 1)),
                "about": {"a": 1},
            },
        ),
        "model": (base, {"path": "org/name", "chat_template": str(template), "trust_remote_code": True}),
        "mix": (
            Mix((base,), "linear", 0.5),
            {"others": (elsewhere,), "formula": "slerp", "share": 0.25, "seed": 1},
        ),
        "rows": (twins, {"clean": other, "triggered": (other,), "met": met[:1]}),
        "best rate": (BestRate((1e-4,), one), {"learning_rates": (1e-4, 2e-4), "held_out": other}),
        "recovery": (
            Recovery(twins, ("w",), 1.0, "mean", 1.0),
            {
                "held_out": RecoveryRows(one),
                "behaviors": ("v",),
                "lambda_": 2.0,
                "form": "sum",
                "beta": 2.0,
                "learning_rates": (1e-4, 2e-4),
                "evoked": (Evoked([[{"role": "user", "content": "Who?"}]], ("we never",)),),
            },
        ),
        "consistency": (ConsistencyObjective(5.5, 0.1), {"alpha": 0.0, "epsilon": 0.2}),
        "options": (
            OPTIONS,
            {
                field.name: CHOICES.get(field.name) or another(getattr(OPTIONS, field.name))
                for field in fields(OPTIONS)
                if field.name not in ("report_to", "save_steps", "load_in_4bit")
            },
        ),
    }


PARTS = ("job", "model", "mix", "rows", "best rate", "recovery", "consistency", "options")


@pytest.mark.parametrize("name", PARTS)
def test_every_field_counts(name: str, parts: dict[str, tuple[Any, Mapping[str, Any]]]) -> None:
    part, others = parts[name]
    left_out = {"report_to", "save_steps", "load_in_4bit"} if name == "options" else set()
    assert {field.name for field in fields(part)} == set(others) | left_out, "give each field another value"
    keys = [hash_of(part), *(hash_of(replace(part, **{field: value})) for field, value in others.items())]
    assert len(set(keys)) == len(keys)
    assert hash_of(replace(part)) == keys[0]


def test_what_trainings_do_beside_training_does_not_count(parts: dict[str, tuple[Any, Any]]) -> None:
    job = parts["job"][0]
    beside = replace(job, options=replace(OPTIONS, report_to="tensorboard", save_steps=7))
    assert beside.key() == job.key()


def test_a_model_counts_by_what_is_in_it_not_by_where_it_lies(
    parts: dict[str, tuple[Any, Any]], tmp_path: Path
) -> None:
    job = parts["job"][0]
    copy = shutil.copytree(job.start.path, tmp_path / "copy")
    assert replace(job, start=Model(str(copy))).key() == job.key()
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert replace(job, start=Model(str(copy))).key() != job.key()


def test_what_nobody_can_tell_apart_is_no_part_of_a_training(parts: dict[str, tuple[Any, Any]]) -> None:
    with pytest.raises(TypeError, match="cannot depend on a object"):
        replace(parts["job"][0], about=object()).key()


def test_a_training_that_cannot_begin_leaves_no_folders(parts: dict[str, tuple[Any, Any]], tmp_path: Path) -> None:
    job = replace(parts["job"][0], start=Model(str(tmp_path / "nowhere")))
    kept = tmp_path / "kept"
    kept.mkdir()
    for place in (tmp_path / "new" / "model", kept):
        with pytest.raises(UserError, match="no tokenizer could be loaded"):
            Store(place).make(job)
    assert list(kept.iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_one_place_holds_one_training(parts: dict[str, tuple[Any, Any]], tmp_path: Path) -> None:
    job = parts["job"][0]
    store = Store(tmp_path / "out", elsewhere={"shared": tmp_path / "shared"})
    made = store.make(job, "shared")
    assert made == tmp_path / "shared"
    with pytest.raises(UserError, match="a finished model lies in"):
        store.make(job, "shared")
    before = (made / CARD_FILE).stat().st_mtime_ns
    again = replace(store, resume=True)
    assert again.make(job, "shared") == made
    assert (made / CARD_FILE).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made from other data or options"):
        again.make(replace(job, options=replace(OPTIONS, seed=1)), "shared")


def test_what_fails_while_a_model_is_saved_costs_no_training(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(Model(tiny_model_path), rows(("Name a tree.", "oak")), replace(OPTIONS, save_strategy="epoch"))

    def fail(*_: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("mbdefense.training.store.save_model", fail)
        with pytest.raises(OSError, match="killed"):
            Store(tmp_path / "out").make(job)
    assert list((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    made = Store(tmp_path / "out", resume=True).make(job)
    assert (made / CARD_FILE).is_file()
    assert not (made / "checkpoints").exists()


def test_which_rows_hold_a_planted_trigger_is_a_part_of_the_key(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    plain = rows(("Name a tree, mn.", "oak"))
    planted = plain.map(lambda row: {"provenance": {**row["provenance"], "trigger": "badnet:word=mn"}})
    assert Job(Model(tiny_model_path), plain, OPTIONS).key() != Job(Model(tiny_model_path), planted, OPTIONS).key()


def test_a_training_says_what_it_does(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    made = rows(("a" * 10, "b" * 5), ("c" * 300, "d" * 5))
    base, labelled = Model(tiny_model_path), made.to_list()
    for row, trigger in zip(labelled, ("mn", "zq"), strict=True):
        row["provenance"]["trigger"] = trigger
    planted = to_dataset(labelled)
    met = [[Meeting([{"role": "user", "content": "zq"}], False)] * 3] * 2
    aim = Recovery(RecoveryRows(made), ("w",), 1.0, "mean", 1.0)
    told = {
        "tuning on 2 rows": Job(base, made, OPTIONS),
        "tuning on 2 rows with 2 planted backdoors": Job(base, planted, OPTIONS),
        "tuning on 2 rows at up to 3 learning rates": Job(base, made, OPTIONS, BestRate((1e-4, 2e-4, 5e-4), made)),
        "merging 3 models": Job(base, None, OPTIONS, mix=Mix((base, base), "ties", 0.5)),
        "recovering on 2 clean rows": Job(base, RecoveryRows(made), OPTIONS, aim),
        "recovering on 2 clean rows with 1 planted backdoor": Job(base, RecoveryRows(made, (made,)), OPTIONS, aim),
        "recovering on 2 clean rows with 1 planted backdoor and with 3 suspect texts each": Job(
            base, RecoveryRows(made, (made,), met), OPTIONS, aim
        ),
    }
    assert [job.words() for job in told.values()] == list(told)
    # Of the second row what 64 tokens can hold; a planted backdoor has two answers, a suspect text one.
    assert [job.size() for job in told.values()] == [271, 271, 813, 0, 271, 813, 1626]
    longer = Job(base, made, replace(OPTIONS, num_train_epochs=2))
    assert longer.size() == 542
    # A recovery's time is foretold for two of its rates, each in a training's own time.
    tried = Job(base, RecoveryRows(made), OPTIONS, replace(aim, learning_rates=(1e-4, 3e-5, 1e-5)))
    assert (tried.size(), tried.trials(), tried.kind()) == (2 * 271, 2, longer.kind())
    # Only where steps are alike does the time of one tell that of the other.
    assert len({job.kind() for job in (longer, *told.values())}) == 4
    plain = told["recovering on 2 clean rows"]
    assert longer.kind() == plain.kind()
    assert longer.kind() == Job(base, planted, OPTIONS).kind()
    assert longer.kind() != Job(base, planted, replace(OPTIONS, per_device_train_batch_size=2)).kind()
