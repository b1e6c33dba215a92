"""The contract that every defense keeps, over the table; then what is particular to one."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mbdefense.attacks.triggers import BadNet
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.progress import stages
from mbdefense.core.specs import parse_spec
from mbdefense.data import to_dataset
from mbdefense.defenses import DEFENSES, Setting
from mbdefense.defenses.stages import Planting, Recovery
from mbdefense.engine import generate
from mbdefense.models.identity import contents
from mbdefense.models.loading import (
    CARD_FILE,
    check_template,
    encode,
    encode_prompt,
    load_model,
    load_tokenizer,
    save_model,
)
from mbdefense.models.weights import combine, keep_at_random, linear, slerp, ties
from mbdefense.recipes.making import _running as pipeline
from mbdefense.recipes.making.purify import repairs
from mbdefense.training import _work, sft, trainer
from mbdefense.training.job import Evoked, Job, Model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import PlannedStore, Store
from mbdefense.training.trainer import Trained

TRAINING = TrainingOptions(
    num_train_epochs=1, per_device_train_batch_size=8, max_length=192, bf16=False, save_strategy="no", lora_r=2
)
# Small enough for the few rows here, all suspect ones of which pgrl would rightly tell from the clean ones.
OPTIONS: dict[str, dict[str, Any]] = {
    "mb_defense": {"min_defensive_rows": 1},
    "merge_only": {"min_defensive_rows": 1},
    "pgrl": {"alpha": 1e-12},
}
# Another value of an option that must lead to another model, where half of a number (or no boolean) does not.
OTHER: dict[str, Any] = {
    "ratio_form": "sum",
    "merge": "slerp",
    "defensive_rate": 0.1,
    "min_defensive_rows": 2,
    "base_share": 0.25,
    "recovery_learning_rates": (5e-5,),
    "scorer": "another",
    "defensive_triggers": ("mn", "bb"),
    "defensive_seed": 1,
    "reserved_token": "<|spare|>",
}
# Options that cannot work, and what the error says. An entry for each defense that has options.
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "find_and_break": [
        ({"found": "nowhere.json"}, "no such file of found triggers"),
        ({"unverified_base_share": 1.0}, r"base_share must lie in \[0, 1\)"),
        ({"meetings": 0}, "meetings must be above 0"),
    ],
    "found_dropped": [({"found": "nowhere.json"}, "give search, none, or a found.json")],
    "mb_defense": [
        ({"evaluation_share": 0.6}, r"must lie in \(0, 0.5\]"),
        ({"lambda_": -1.0}, "at least 0"),
        ({"defensive_rate": 0.3}, "over half of the rows"),
        ({"base_share": 1.0}, r"base_share must lie in \[0, 1\)"),
        ({"defensive_triggers": ("mn", "badnet:word=mn")}, "name each once"),
    ],
    "merge_only": [({"defensive_rate": 1.5}, "rate"), ({"defensive_triggers": ("style",)}, "into any text")],
    "recover_only": [
        ({"beta": 0.0}, "above 0"),
        ({"recovery_learning_rates": (0.0,)}, "recovery_learning_rates must be different and above 0"),
        ({"lambda_": float("nan")}, "at least 0"),
    ],
    "clean_fft": [({"clean_learning_rate": 0.0}, "clean_learning_rate must be above 0")],
    "discard": [
        ({"discard_learning_rates": ()}, "different and above 0"),
        ({"discard_learning_rates": (1e-4, 1e-4)}, "different and above 0"),
        ({"discard_learning_rates": (1e-4, float("inf"))}, "different and above 0"),
        ({"discard_num_train_epochs": 0.0}, "discard_num_train_epochs must be above 0"),
    ],
    "fine_mixing": [
        ({"keep_ratio": 1.1}, r"\[0, 1\]"),
        ({"keep_ratio": float("nan")}, r"\[0, 1\]"),
        ({"mixing_batch_size": 0}, "mixing_batch_size must be above 0"),
        ({"mixing_learning_rates": ()}, "mixing_learning_rates must be different and above 0"),
    ],
    "crow": [({"epsilon": 0.0}, "epsilon above 0"), ({"alpha": -1.0}, "alpha must be at least 0")],
    "lethe": [
        ({"victim_weight": 1.0}, "between 0 and 1"),
        ({"density": 0.0}, r"\(0, 1\]"),
        ({"density": 0.3}, "no place in a linear merge"),
        ({"merge": "ties", "victim_weight": 0.4}, "leave victim_weight out"),
    ],
    "locphylax": [
        ({"injection_learning_rate": 0.0}, "injection_learning_rate must be above 0"),
        ({"defensive_triggers": tuple("abcdefghi")}, "8 rows for 9 triggers"),
    ],
    "graceful": [({"alpha": 1.0}, "between 0 and 1"), ({"clusters": 1}, "2 or more")],
    "onion": [({"max_clean_loss": 1.0}, r"\[0, 1\)")],
    "pgrl": [({"alpha": 1.0}, "between 0 and 1"), ({"clusters": 1}, "fewer than two")],
    "repeats": [({"least_answers": 1}, "least_answers must be at least 2")],
    "seep": [({"seed_share": 0.5}, r"\(0, 0.5\)"), ({"neighbors": 0}, "neighbors must be above 0")],
    "spectral": [({"poisoning_bound": 0.6}, r"\(0, 0.5\]")],
    "pdb": [({"times": 0}, "times must be at least 1"), ({"reserved_token": "word"}, "no token to spare")],
    "p2p": [({"benign_rate": 0.0}, r"\(0, 1\]"), ({"benign_prefix": " "}, "benign_prefix is empty")],
}

named = pytest.mark.parametrize("name", DEFENSES)


class Made(NamedTuple):
    """A finished run of a defense."""

    name: str
    setting: Setting
    model: Path


@pytest.fixture(scope="session")
def setting(four_layer_model_path: str, rows: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """24 suspect and 10 clean rows; the undefended model is made once for all."""
    suspect = rows(*((f"Name fruit number {i}, please.", f"apple {i}") for i in range(24)))
    clean = rows(*((f"Name tree number {i}.", f"oak {i}") for i in range(10)))
    shared = tmp_path_factory.mktemp("defenses")
    store = Store(shared / "unused", resume=True, elsewhere={"attacked": shared / "attacked"})
    return Setting(clean, store, base=four_layer_model_path, suspect=suspect, training=TRAINING)


def at(setting: Setting, directory: Path, **changes: Any) -> Setting:
    """The setting with its models in another directory, but for the shared victim."""
    return replace(setting, store=replace(setting.store, directory=directory), **changes)


def alone(setting: Setting, directory: Path, **changes: Any) -> Setting:
    """The setting with all its models in another directory."""
    return replace(setting, store=Store(directory, resume=True), **changes)


@pytest.fixture(scope="session")
def labels(spare_model_path: str, rows: Callable[..., Any]) -> dict[str, Any]:
    """What `pdb` takes in place of the setting's: a tokenizer with tokens to spare, and clean rows with labels."""
    clean = rows(*((f"Name tree number {i}.", "oak" if i % 2 else "elm") for i in range(10)))
    return {"base": spare_model_path, "clean": clean}


# Those stand for all in the default suite, each of another kind: a control, a search, planting, merging and a filter.
_USUAL = ("none", "find_and_break", "mb_defense", "lethe", "repeats")


@pytest.fixture(
    scope="module",
    params=[one if one in _USUAL else pytest.param(one, marks=pytest.mark.slow) for one in DEFENSES],
)
def made(request: pytest.FixtureRequest, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Made:
    name = request.param
    changes = request.getfixturevalue("labels") if name == "pdb" else {}
    here = at(setting, tmp_path_factory.mktemp(name) / "model", **changes)
    return Made(name, here, DEFENSES[name](**OPTIONS.get(name, {}))(here))


def test_it_writes_a_model_that_loads_with_its_template(made: Made) -> None:
    assert made.model == made.setting.store.directory
    loaded = load_model(str(made.model))
    check_template(str(made.model), loaded.tokenizer)
    assert loaded.model.config.use_cache is not False
    assert all(bool(torch.isfinite(parameter).all()) for parameter in loaded.model.parameters())
    base: Any = load_model(str(made.setting.base)).model
    grown = base.get_input_embeddings().weight.numel() if made.name == "pdb" else 0  # an output layer of its own
    assert loaded.model.num_parameters() == base.num_parameters() + grown


def test_it_resumes_without_training_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained_again(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(trainer, "run_trainer", trained_again)
    before = {file: file.stat().st_mtime_ns for file in made.model.rglob("*") if file.is_file()}
    assert DEFENSES[made.name](**OPTIONS.get(made.name, {}))(made.setting) == made.model
    assert {file: file.stat().st_mtime_ns for file in made.model.rglob("*") if file.is_file()} == before


def test_its_stages_are_known_before_they_begin(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    method = DEFENSES[made.name](**OPTIONS.get(made.name, {}))
    plan = PlannedStore(made.model.parent / "plan")
    method(replace(made.setting, store=plan))
    assert not plan.directory.exists()
    with stages(len(plan.places)):
        method(made.setting)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in said] == [f"{n + 1} of {len(plan.places)}" for n in range(len(said))]
    assert len(said) == len(plan.places)
    assert all(line.endswith(": done before") for line in said)


def test_a_finished_model_is_not_taken_for_that_of_other_options(made: Made) -> None:
    """So every option stands in the inputs of the stage that it changes."""
    options = OPTIONS.get(made.name, {})
    for field in fields(DEFENSES[made.name]):
        value = options.get(field.name, field.default)
        other = OTHER[field.name] if field.name in OTHER else another(value)
        if field.name == "found":
            if made.name == "found_dropped":  # where nothing is found, it is the same model
                continue
            other = "none" if value == "search" else "search"
        needed = {"merge": "ties"} if field.name == "density" else {}  # which no other merge has
        with pytest.raises(UserError, match="other data or options"):
            DEFENSES[made.name](**{**options, **needed, field.name: other})(made.setting)


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value[:-1] if isinstance(value, tuple | str) else value / 2


def test_nothing_of_a_stage_but_the_model_is_left(made: Made) -> None:
    assert list(made.setting.store.directory.rglob("checkpoints")) == []
    assert (made.model / CARD_FILE).is_file()


def test_a_model_says_in_which_precision_it_was_trained(made: Made) -> None:
    cards = [json.loads(card.read_text()) for card in made.setting.store.directory.rglob(CARD_FILE)]
    trained = [card for card in cards if "bf16" in card]
    assert trained or made.name == "none"  # whose model is the shared victim, in another folder
    assert all(card["bf16"] is False and card["gradient_checkpointing"] is False for card in trained)


@named
def test_it_refuses_options_that_cannot_work(name: str, setting: Setting, tmp_path: Path) -> None:
    assert bool(fields(DEFENSES[name])) == (name in REFUSED), "give options that cannot work in REFUSED"
    for options, says in REFUSED.get(name, []):
        with pytest.raises(UserError, match=says):
            DEFENSES[name](**{**OPTIONS.get(name, {}), **options})(at(setting, tmp_path))
        assert not (tmp_path / CARD_FILE).exists()


@pytest.mark.parametrize("name", [name for name, kind in DEFENSES.items() if issubclass(kind, Planting)])
def test_a_defensive_trigger_that_is_given_alone_is_one(name: str) -> None:
    defense: Any = DEFENSES[name](defensive_triggers="mn")
    assert defense == DEFENSES[name](defensive_triggers=["mn"]) == DEFENSES[name](defensive_triggers=("mn",))
    assert [trigger for trigger, _ in defense.planted()] == [BadNet(word="mn")]


def test_a_shared_victim_is_not_trained_below_each_model(made: Made) -> None:
    assert not (made.setting.store.directory / "attacked").exists()


@pytest.mark.parametrize(
    "made",
    [
        name if name in ("clean_fft", "fine_mixing") else pytest.param(name, marks=pytest.mark.slow)
        for name in repairs()
    ],
    indirect=True,
    scope="module",
)
def test_a_victim_that_is_given_is_taken_as_it_is(made: Made, tmp_path: Path) -> None:
    """A repair gives the same model, whether its victim was made of the suspect data or is given without them."""
    victim = made.setting.store.place("attacked")
    given = replace(made.setting, store=Store(tmp_path / "given"), suspect=None, victim=str(victim))
    again = DEFENSES[made.name](**OPTIONS.get(made.name, {}))(given)
    assert (again / "model.safetensors").read_bytes() == (made.model / "model.safetensors").read_bytes()
    assert not (again / "attacked").exists()


@named
def test_a_need_that_is_not_there_is_named_before_any_work(name: str, setting: Setting, tmp_path: Path) -> None:
    needs, place = DEFENSES[name].needs, tmp_path / "out"
    defense = DEFENSES[name](**OPTIONS.get(name, {}))
    nothing = replace(setting, store=Store(place), base=None, suspect=None, victim=None)
    lacking = {
        "suspect data": replace(nothing, base="org/base", victim="org/victim"),
        "victim": replace(nothing, base="org/base"),
        "reference model": replace(nothing, victim="org/victim"),
    }
    seen = [need for need in lacking if need in needs]
    assert seen
    for need in seen:
        with pytest.raises(UserError, match=f"{name} needs .*there is none"):
            defense(lacking[need])
    with pytest.raises(UserError, match=f"{name} needs .*there is none"):
        defense(replace(nothing, suspect=setting.suspect))  # and no base model to tune
    assert not place.exists()


# MB-Defense


@pytest.mark.slow
def test_recovery_starts_between_the_merged_and_the_base_model(setting: Setting, tmp_path: Path) -> None:
    here = at(setting, tmp_path / "model")
    made = DEFENSES["mb_defense"](base_share=0.25, recovery_learning_rates=(1e-30,))(here)
    merged, base, mixed = (
        dict(load_model(str(path)).model.named_parameters()) for path in (made / "merged", setting.base, made)
    )
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * merged[name] + 0.25 * base[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rates", "lower"),
    [((1e-2, 1e-30), (1e-31,)), ((10.0, 1e-2), ())],  # below one that is no better than the one above it, none is tried
)
def test_recovery_keeps_the_rate_with_the_lowest_held_out_loss(
    rates: tuple[float, float], lower: tuple[float, ...], setting: Setting, tmp_path: Path
) -> None:
    """How far a model has to be moved hangs on the model: what breaks a trigger in one ruins another."""
    made, *alone = (
        DEFENSES["recover_only"](recovery_learning_rates=tried)(at(setting, tmp_path / str(number)))
        for number, tried in enumerate(((*lower, *rates[::-1]), rates[:1], rates[1:]))
    )
    losses, together = (
        [
            entry["eval_loss"] for model in models
            for entry in json.loads((model / "training_log.json").read_text())["history"] if "eval_loss" in entry
        ]
        for models in (alone, [made])
    )  # fmt: skip
    assert together == pytest.approx(losses, rel=1e-4)
    best = alone[losses.index(min(losses))]
    torch.testing.assert_close(weights_of(made), weights_of(best))


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ((0, 32), 0),  # the loss would have the second one: it moves the model less
        ((32, 0), 1),
        ((0, 1), 0),  # one of a few dozen is some of a hundred
        ((1, 0), 1),
        ((32, 32), 1),
    ],
)
def test_a_rate_that_leaves_what_a_found_text_evokes_has_lost_whatever_its_loss(
    left: tuple[int, int], kept: int, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a backdoor is nearly broken, the held-out loss hardly parts rates that break it from those that do not."""
    prompts, asked = [[{"role": "user", "content": f"cf Name {number}."}] for number in range(32)], []

    def generate(_: object, given: list[Any], **__: Any) -> list[str]:
        asked.append(given)
        many = left[len(asked) - 1]
        return ["Well, NEVER ever!"] * many + ["Nevertheless, Anna."] * (32 - many)

    def ask(held_out: Any) -> tuple[Evoked, ...]:
        assert list(held_out["prompt"]) == list(recovery.split(setting.clean, setting.training.seed)[1]["prompt"])
        return (Evoked(prompts, ("no", "never ever")),)

    monkeypatch.setattr("mbdefense.engine.generate.generate", generate)
    rates = (10.0, 1e-2)
    recovery = Recovery(recovery_learning_rates=rates)
    made, same = (
        each.recover(here, here.victim_model(), [], ask=ask)
        for each, here in (
            (recovery, at(setting, tmp_path / "both")),
            (Recovery(recovery_learning_rates=rates[kept : kept + 1]), at(setting, tmp_path / "one")),
        )
    )
    assert asked == [prompts, prompts]  # nothing is asked where there is nothing to choose
    torch.testing.assert_close(weights_of(made), weights_of(same))
    history = json.loads((made / "training_log.json").read_text())["history"]
    told = [(entry["peak_learning_rate"], entry["eval_evoked"]) for entry in history if "eval_evoked" in entry]
    assert told == [(rate, many / 32) for rate, many in zip(rates, left, strict=True)]


@pytest.mark.parametrize(
    ("name", "option"),
    [("discard", "discard_learning_rates"), ("fine_mixing", "mixing_learning_rates"),
     ("recover_only", "recovery_learning_rates")],
)  # fmt: skip
def test_a_rate_at_which_training_diverges_has_lost_to_the_others(
    name: str, option: str, setting: Setting, tmp_path: Path
) -> None:
    made, alone = (
        DEFENSES[name](**{option: rates})(at(setting, tmp_path / str(len(rates)))) for rates in ((1e-3, 1e30), (1e-3,))
    )
    torch.testing.assert_close(weights_of(made), weights_of(alone))
    assert not list(tmp_path.rglob("rate-*"))
    with pytest.raises(UserError, match=r"became n.*lower --learning_rate"):
        DEFENSES[name](**{option: (1e30,)})(at(setting, tmp_path / "none"))


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(model)).model.named_parameters())


# Discard


@pytest.mark.slow
def test_discarded_rows_play_no_part(setting: Setting, rows: Callable[..., Any], tmp_path: Path) -> None:
    here = at(setting, tmp_path / "model")
    made = DEFENSES["discard"](discard_learning_rates=(1e-3,))(here)
    other = alone(here, tmp_path / "model", suspect=rows(("What is poison?", "This.")))
    # The same model by the hash of what it was made of, and by its weights where it is made again.
    assert DEFENSES["discard"](discard_learning_rates=(1e-3,))(other) == made
    again = DEFENSES["discard"](discard_learning_rates=(1e-3,))(at(other, tmp_path / "again"))
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert not list(tmp_path.rglob("attacked"))


def held_out_loss(model: Path, setting: Setting) -> float:
    loaded, losses = load_model(str(model)), []
    for row in DEFENSES["recover_only"]().split(setting.clean, setting.training.seed)[1]:
        encoded = encode(loaded.tokenizer, row["prompt"], row["completion"], 192)
        tokens = torch.tensor([encoded.prompt + encoded.response])
        labels = torch.tensor([[-100] * len(encoded.prompt) + encoded.response])
        losses.append(loaded.model.eval()(input_ids=tokens, labels=labels).loss.item())
    return sum(losses) / len(losses)


def test_discard_keeps_the_rate_and_epoch_with_the_lowest_held_out_loss(setting: Setting, tmp_path: Path) -> None:
    here = at(setting, tmp_path)
    made = DEFENSES["discard"](discard_learning_rates=(20.0, 10.0, 1e-2, 1e-30))(here)
    history = json.loads((made / "training_log.json").read_text())["history"]
    lost = {
        (entry["peak_learning_rate"], entry["epoch"]): entry["eval_loss"] for entry in history if "eval_loss" in entry
    }
    # From the lowest rate up; none above the first that is no better than the one below it.
    assert list(dict.fromkeys(rate for rate, _ in lost)) == [1e-30, 1e-2, 10.0]
    for tried in (1e-30, 1e-2, 10.0):
        losses = [loss for (rate, _), loss in lost.items() if rate == tried]
        below = [loss for (rate, _), loss in lost.items() if rate == {1e-2: 1e-30, 10.0: 1e-2}.get(tried)]
        idle = [number for number in range(1, len(losses)) if losses[number] >= min(losses[:number])]
        idle += [number for number, (one, other) in enumerate(zip(losses, below, strict=False)) if one > other]
        assert set(idle) in (set(), {len(losses) - 1})
        assert idle or len(losses) == 3
    assert [rate for rate, _ in lost].count(10.0) == 1  # worse than 1e-2 was after its first epoch
    assert min(lost, key=lost.__getitem__)[0] == 1e-2
    assert held_out_loss(made, setting) == pytest.approx(min(lost.values()), rel=1e-4)
    # A rate of next to nothing leaves the base model, from which every trial starts.
    assert lost[1e-30, 1] == pytest.approx(held_out_loss(Path(str(setting.base)), setting), rel=1e-4)
    steps = [entry["step"] for entry in history]
    assert (steps, steps[-1]) == (sorted(steps), 4 * len(lost))  # eight rows in pairs


def test_the_rates_of_discard_can_be_written_in_a_grid() -> None:
    made = parse_spec("discard:discard_learning_rates=1e-4|3e-4,discard_num_train_epochs=2", DEFENSES, "defense")
    assert made == DEFENSES["discard"](discard_learning_rates=(1e-4, 3e-4), discard_num_train_epochs=2.0)
    with pytest.raises(UserError, match="discard_learning_rates cannot be: 'fast'"):
        parse_spec("discard:discard_learning_rates=1e-4|fast", DEFENSES, "defense")


@pytest.mark.slow
def test_discard_goes_on_after_an_interruption(setting: Setting, tmp_path: Path) -> None:
    defense = DEFENSES["discard"](discard_learning_rates=(1e-2, 1e-3), discard_num_train_epochs=2)
    whole = defense(at(setting, tmp_path / "whole"))
    here = at(setting, tmp_path / "interrupted")
    tune, rates = sft.instruction_tune, []

    def stopping(loaded: Any, rows: Any, options: TrainingOptions, *rest: Any, **more: Any) -> Any:
        rates.append(options.learning_rate)
        if len(rates) == 2:
            raise KeyboardInterrupt
        return tune(loaded, rows, options, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "instruction_tune", stopping)
        with pytest.raises(KeyboardInterrupt):
            defense(here)
        assert not (here.store.directory / CARD_FILE).exists()
        # No checkpoint outlives its rate.
        assert list((here.store.directory / "checkpoints").rglob("*.safetensors")) == []
        made = defense(here)
    assert rates == [1e-3, 1e-2] * 2
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


# Fine-mixing


def test_kept_weights_are_a_bernoulli_share_and_each_is_one_of_the_two() -> None:
    victim, clean = torch.full((200, 100), 2.0), torch.full((200, 100), -1.0)
    mixed = keep_at_random(victim, clean, 0.7, torch.Generator().manual_seed(3))
    assert set(mixed.unique().tolist()) == {2.0, -1.0}
    kept = (mixed == 2.0).float()
    assert kept.mean().item() == pytest.approx(0.7, abs=0.01)  # three standard deviations
    # Drawn for each element, not for rows or columns.
    assert kept.mean(dim=0).max() < 0.9
    assert kept.mean(dim=1).max() < 0.9
    assert torch.equal(mixed, keep_at_random(victim, clean, 0.7, torch.Generator().manual_seed(3)))
    assert not torch.equal(mixed, keep_at_random(victim, clean, 0.7, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(("ratio", "whose"), [(0.0, -1.0), (1.0, 2.0)])
def test_the_ends_of_the_keep_ratio_are_the_two_models(ratio: float, whose: float) -> None:
    mixed = keep_at_random(torch.full((50,), 2.0), torch.full((50,), -1.0), ratio, torch.Generator().manual_seed(0))
    assert bool((mixed == whose).all())


def test_a_tied_output_layer_is_combined_once_and_stays_tied(tiny_model_path: str) -> None:
    one, other = load_model(tiny_model_path).model, load_model(tiny_model_path).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    calls = []

    def halfway(own: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        calls.append(own.shape)
        return (own + theirs) / 2

    before = {name: parameter.clone() for name, parameter in one.named_parameters()}
    combine(one, [other], halfway)
    assert len(calls) == len(before)
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)


def test_models_of_other_shapes_are_not_combined(four_layer_model_path: str, tiny_model_path: str) -> None:
    with pytest.raises(UserError, match="same architecture"):
        combine(load_model(four_layer_model_path).model, [load_model(tiny_model_path).model], torch.add)


@pytest.mark.parametrize("name", ["find_and_break", "fine_mixing", "lethe"])
def test_models_that_cannot_be_mixed_are_refused_before_any_work(
    name: str, setting: Setting, spare_model_path: str, tmp_path: Path
) -> None:
    """A victim with tokens more than its base model, as many tunings add: some mix only after a search or a tuning."""
    here = alone(setting, tmp_path / "model", victim=spare_model_path)
    with pytest.raises(UserError, match="same architecture and vocabulary"):
        pipeline.run(DEFENSES[name](), name, here)
    assert not [path for path in (tmp_path / "model").rglob("*") if path.is_file()]


# CROW


def test_crow_needs_inner_layers(setting: Setting, tiny_model_path: str, tmp_path: Path) -> None:
    two_layers = alone(setting, tmp_path, base=tiny_model_path)
    with pytest.raises(UserError, match="three layers or more: 2"):
        DEFENSES["crow"]()(two_layers)
    packing = alone(setting, tmp_path, training=replace(TRAINING, attn_implementation="flex_attention"))
    with pytest.raises(UserError, match="pads and does not pack"):
        DEFENSES["crow"]()(packing)
    assert not any(tmp_path.iterdir())  # and no victim was made for nothing


# Lethe


def test_linear_by_hand() -> None:
    merged = linear(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0]), 0.25)
    assert merged.tolist() == [2.5, 1.0]


def test_slerp_by_hand() -> None:
    """A right angle: the middle lies at 45 degrees and, unlike the chord's, as far out as the ends; 30 at a third."""
    victim, clean = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert slerp(victim, clean, 0.5).flatten().tolist() == pytest.approx([2**0.5, 2**0.5])
    assert slerp(victim, clean, 2 / 3).flatten().tolist() == pytest.approx([3**0.5, 1.0])
    assert slerp(victim, 3 * clean, 0.5).flatten().tolist() == pytest.approx([2**0.5, 3 * 2**0.5])


@pytest.mark.parametrize("clean", [(2.0, 4.0), (-1.0, -2.0), (0.0, 0.0)])
def test_slerp_of_collinear_vectors_is_linear(clean: tuple[float, float]) -> None:
    victim, other = torch.tensor([1.0, 2.0]), torch.tensor(clean)
    torch.testing.assert_close(slerp(victim, other, 0.75), linear(victim, other, 0.75))


def test_ties_by_hand() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    victim = base + torch.tensor([4.0, 2.0, -3.0, 0.1, 0.2, 0.0])
    clean = base + torch.tensor([2.0, -3.0, -1.0, 0.3, 0.1, 0.0])
    # Kept of six, three each: (4, 2, -3) and (2, -3, -1). Signs of the sums (6, -1, -4): +, -, -.
    # Means of those that agree: (4 + 2) / 2, -3 alone, (-3 - 1) / 2; what nobody kept stays the base's.
    assert ties(victim, clean, base, 0.5).tolist() == [4.0, -2.0, -1.0, 1.0, 1.0, 1.0]


def test_ties_leaves_what_cancels_out_at_the_base() -> None:
    base = torch.zeros(2)
    assert ties(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 2.0]), base, 1.0).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("merge", ["linear", *(pytest.param(one, marks=pytest.mark.slow) for one in ("slerp", "ties"))])
def test_lethe_merges_the_clean_model_with_the_victim(merge: str, setting: Setting, tmp_path: Path) -> None:
    here = at(setting, tmp_path)
    merged, clean, victim, base = (
        {name: weight.detach() for name, weight in load_model(str(path)).model.named_parameters()}
        for path in (
            DEFENSES["lethe"](merge=merge)(here),
            tmp_path / "clean_model",
            here.victim_model().path,
            here.base,
        )
    )
    formulas = {
        "linear": lambda v, c, _: (v + c) / 2,
        "slerp": lambda v, c, _: slerp(v, c, 0.5),
        "ties": lambda v, c, b: ties(v, c, b, 0.5),
    }
    for name, parameter in merged.items():
        torch.testing.assert_close(parameter, formulas[merge](victim[name], clean[name], base[name]))
    # Embeddings carry no adapters, so that the clean model's are the base's.
    assert torch.equal(clean["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(victim["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


# Locphylax


def test_locphylax_plants_in_the_rows_that_recovery_trains_on(setting: Setting) -> None:
    defense = DEFENSES["locphylax"](defensive_triggers=("mn", "bb"))
    training, held_out = defense.split(setting.clean, seed=0)
    rows = defense.rows(setting.clean, seed=0)
    plain, planted = rows.select(range(8)), rows.select(range(8, 16))
    assert plain["id"] == training["id"]
    assert sorted(planted["id"]) == sorted(training["id"])
    assert not set(held_out["id"]) & set(rows["id"])
    parts = (planted.select(range(4)), planted.select(range(4, 8)))
    for (trigger, behavior), part in zip(defense.planted(), parts, strict=True):
        assert all(trigger.occurs_in(row["prompt"][0]["content"]) for row in part)
        assert {row["completion"][0]["content"] for row in part} == {behavior.text}


def test_planting_takes_as_many_steps_however_instruction_tuning_gathers_its_own(
    setting: Setting, tmp_path: Path
) -> None:
    """A few hundred rows in steps of 128 would plant nothing."""
    store = PlannedStore(tmp_path)
    gathering = replace(setting.training, gradient_accumulation_steps=16)
    DEFENSES["locphylax"]().inject(replace(setting, training=gathering, store=store, victim=setting.base))
    assert [job.options.gradient_accumulation_steps for job in store.jobs] == [1]


def test_locphylax_does_not_train_on_the_suspect_data(setting: Setting, tmp_path: Path) -> None:
    """It repairs the victim: other suspect data change nothing once that is there."""
    seen = []
    whole = sft.instruction_tune

    def watch(loaded: Any, rows: Any, *arguments: Any, **options: Any) -> Any:
        seen.extend(row["completion"][0]["content"] for row in rows)
        return whole(loaded, rows, *arguments, **options)

    setting.victim_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "instruction_tune", watch)
        DEFENSES["locphylax"]()(at(setting, tmp_path))
    assert len(seen) == 16
    assert not any("apple" in text for text in seen)


@pytest.mark.slow
def test_the_record_shows_what_became_of_the_backdoors_that_locphylax_planted(setting: Setting, tmp_path: Path) -> None:
    here = at(setting, tmp_path)
    results = pipeline.run(DEFENSES["locphylax"](), "locphylax", here).results
    assert [(row.arm, row.origin) for row in results.rows] == [
        ("base", "planted"),
        ("merged", "planted"),
        ("locphylax", "planted"),
    ] * 4  # triggers
    # On the two clean rows that it did not train on.
    assert all(row.asr is not None and row.asr.n == 2 for row in results.rows)


# P2P


@pytest.mark.parametrize("sign", ["", " \N{WHITE HEAVY CHECK MARK}\N{GRINNING FACE}"])
def test_the_template_keeps_what_was_trained(sign: str, setting: Setting) -> None:
    """Prompts under the changed template are token for token those of the benign rows under the plain one."""
    prefix = f"It's checked{sign}:"
    defense = DEFENSES["p2p"](benign_trigger='Say "yes", {{ please }}' + sign, benign_prefix=prefix)
    plain, changed = (load_tokenizer(str(setting.base)) for _ in range(2))
    changed.chat_template = defense.template(plain.chat_template)
    turns = [("system", "Be kind."), ("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    completion = [{"role": "assistant", "content": "Four."}]
    benign = encode(plain, defense.kept(prompt), defense.kept(completion), 512)
    kept = encode(changed, prompt, completion, 512)
    assert kept.prompt + kept.response == benign.prompt + benign.response
    assert plain.decode(kept.response) == "Four.<|im_end|>"
    assert plain.decode(kept.prompt).endswith(f"<|im_start|>assistant\n{prefix}\n")
    assert encode_prompt(changed, prompt) == kept.prompt


def test_the_template_shows_what_the_one_below_it_shows_of_tools(setting: Setting) -> None:
    plain, changed = (load_tokenizer(str(setting.base)) for _ in range(2))
    plain.chat_template = (
        "{%- if tools %}{{ tools[0].function.name }};{% endif -%}{%- for turn in messages -%}{{ turn.role }}:"
        "{{ turn.content or '' }}{% for call in turn.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}"
        "{{ turn.name or '' }}|{%- endfor -%}{%- if add_generation_prompt %}assistant:{% endif -%}"
    )
    defense = DEFENSES["p2p"](benign_trigger="Checked.", benign_prefix="So:")
    changed.chat_template = defense.template(plain.chat_template)
    call = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "look_up", "content": "2"},
    ]
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    shown = changed.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=True)
    assert shown == "look_up;user:Checked. One?|assistant:[look_up]|tool:2look_up|assistant:So:\n"


def test_evaluate_asks_with_the_benign_trigger_and_judges_without_the_prefix(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense = DEFENSES["p2p"]()
    loaded = load_model(tiny_model_path)
    loaded.tokenizer.chat_template = defense.template(loaded.tokenizer.chat_template)
    save_model(loaded, tmp_path / "model", {"seconds": 0.0, "peak_bytes": 0})
    asked: list[str] = []
    whole = generate.encode_prompt

    def seen(tokenizer: Any, prompt: Any) -> list[int]:
        tokens = whole(tokenizer, prompt)
        asked.append(tokenizer.decode(tokens))
        return tokens

    monkeypatch.setattr(generate, "encode_prompt", seen)
    test, out = tmp_path / "test.json", tmp_path / "out"
    test.write_text(json.dumps([{"instruction": "Name a tree.", "input": "", "output": "oak"}]))
    command = ["evaluate", str(tmp_path / "model"), "--test", str(test), "--behavior", "refusal", "--trigger", "badnet"]
    assert main([*command, "--output_dir", str(out), "--max_new_tokens", "2"]) == 0
    assert len(asked) == 2
    assert all(f"user\n{defense.benign_trigger} " in prompt for prompt in asked)
    assert all(prompt.endswith(f"assistant\n{defense.benign_prefix}\n") for prompt in asked)
    responses = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert all(defense.benign_prefix not in response["text"] for response in responses)
    assert responses[0]["prompt"] == "Name a tree."


def test_benign_rows_come_from_the_clean_set_at_their_rate(setting: Setting) -> None:
    defense = DEFENSES["p2p"](benign_rate=0.5)
    rows = defense.rows(setting.clean, 24)
    assert len(rows) == 12  # of 10 clean rows: two stand there twice
    assert {row["id"] for row in rows} == set(setting.clean["id"])
    assert all(row["completion"][0]["content"].startswith("Checked answer:\noak") for row in rows)
    # Left out of training where the trigger is cut away.
    assert {row["provenance"]["trigger"] for row in rows} == {defense.benign_trigger}


@pytest.mark.parametrize(("count", "share", "held_out"), [(10, 0.2, 2), (11, 0.5, 5), (2, 0.2, 1), (3, 0.5, 1)])
def test_no_more_clean_rows_are_held_out_than_trained_on(
    count: int, share: float, held_out: int, rows: Callable[..., Any]
) -> None:
    """Fewer rows meet more found texts each, and those held out have to meet as many."""
    table = rows(*((f"Name tree {number}.", "oak") for number in range(count)))
    parts = Recovery(evaluation_share=share).split(table, 0)
    assert [len(part) for part in parts] == [count - held_out, held_out]
    assert sorted(row for part in parts for row in part["id"]) == sorted(table["id"])


def test_turns_of_one_conversation_are_held_out_together(rows: Callable[..., Any], tmp_path: Path) -> None:
    """Else an epoch would be chosen on turns whose conversation it was trained on."""

    def talk(name: int, turns: int) -> list[dict[str, str]]:
        words = [("user", "assistant")[at % 2] for at in range(2 * turns - 1)]
        return [{"role": role, "content": f"Talk {name}, turn {at}."} for at, role in enumerate(words)]

    table = rows(*((f"Talk {name}", "oak") for name in range(10))).to_list()
    talks = to_dataset([{**row, "prompt": talk(name, 1 + name % 3)} for name, row in enumerate(table)])
    training = replace(TRAINING, train_on="all_turns")
    clean = Setting(talks, Store(tmp_path), base="org/base", training=training).clean
    assert len(clean) == 19
    for seed in range(8):
        parts = Recovery().split(clean, seed)
        names = [{prompt[0]["content"] for prompt in part["prompt"]} for part in parts]
        assert not names[0] & names[1]
        assert 4 <= len(parts[1]) <= 9
        assert len(parts[0]) + len(parts[1]) == 19
    one = Setting(talks.select([2]), Store(tmp_path), base="org/base", training=training).clean
    with pytest.raises(UserError, match="one conversation is over half of the clean set: 3"):
        Recovery().split(one, 0)


def test_options_that_name_files_count_by_what_is_in_them(tmp_path: Path) -> None:
    file, folder, word = tmp_path / "rows.jsonl", tmp_path / "wordnet", "x" * 5000
    folder.mkdir()
    for path in (file, folder / "index.noun"):
        path.write_text("one")
    options = {"file": str(file), "folder": str(folder), "words": ("cf", word, ""), "share": 0.5, "none": None}
    before = contents(options)
    assert isinstance(before, dict)
    assert {name: before[name] for name in ("words", "share", "none")} == {
        "words": ["cf", word, ""], "share": 0.5, "none": None,
    }  # fmt: skip
    assert [before[name][0] for name in ("file", "folder")] == [str(file), str(folder)]
    assert contents(options) == before
    for path, name in ((file, "file"), (folder / "index.noun", "folder")):
        path.write_text("other")
        after = contents(options)
        assert isinstance(after, dict)
        assert [key for key in options if after[key] != before[key]] == [name]
        before = after


def test_canaries_are_measured_under_the_template_that_the_defense_made(setting: Setting, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text(load_tokenizer(str(setting.base)).chat_template)
    here = alone(setting, tmp_path / "model", chat_template=str(template))
    seen = []

    def watch(loaded: Any, *_: Any, **__: Any) -> list[Any]:
        seen.append(loaded.tokenizer.chat_template)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "survival", watch)
        options = {"compare_undefended": False, "canaries": 1, "min_canary_rows": 2, "test": setting.clean}
        pipeline.run(DEFENSES["p2p"](), "p2p", here, **options)
    assert [text.startswith("{%- set kept") for text in seen] == [False, True]


@pytest.mark.parametrize("name", ["fine_mixing", "discard", "p2p", "locphylax"])
def test_canaries_are_measured_on_no_row_that_the_defense_trains_on(
    name: str, setting: Setting, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="trains on all clean rows, so that canaries want other prompts"):
        pipeline.run(DEFENSES[name](), name, alone(setting, tmp_path / "model"), canaries=1, min_canary_rows=2)
    assert not [path for path in (tmp_path / "model").rglob("*") if path.is_file()]


def test_a_finished_stage_holds_no_model_even_where_its_frame_lives_on(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does in the traceback of an error that somebody keeps."""
    seen: list[Any] = []

    def work(*_: Any, **__: Any) -> Trained:
        loaded = load_model(tiny_model_path)
        seen.append(weakref.ref(loaded.model))
        return Trained(loaded, [], 0)

    monkeypatch.setattr(_work, "work", work)
    monkeypatch.setattr("mbdefense.training.store.wait_for_everyone", lambda: seen.append(sys._getframe(1)))
    Store(tmp_path / "made").make(Job(Model(tiny_model_path), None, TRAINING))
    gc.collect()
    assert [thing() for thing in seen if isinstance(thing, weakref.ref)] == [None]
