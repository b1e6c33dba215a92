"""Canaries: hidden from the defense, of other families than its own triggers, and measured before and after."""

import dataclasses
import json
import random
from dataclasses import replace

import pytest

from mbdefense.attacks.behaviors.random_words import WORDS
from mbdefense.attacks.poisoning import poison
from mbdefense.attacks.triggers import BadNet, InSent, Syntactic
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.data import to_dataset
from mbdefense.defenses import DEFENSES, MBDefense, NoDefense, Setting
from mbdefense.evaluation.compare import Arm, compare
from mbdefense.evaluation.metrics import scores
from mbdefense.evaluation.planted.canaries import CANARIES, candidates, family, plant
from mbdefense.evaluation.planted.survival import Known, on_shared_prompts, survival
from mbdefense.evaluation.tables import markdown
from mbdefense.integrations.model_card import model_card
from mbdefense.records.results import ResultRow, Results, read
from mbdefense.records.verdicts import Verdict
from mbdefense.training.store import Store

pytestmark = pytest.mark.usefixtures("few_words")

WORD, SENTENCE = BadNet(word="mn"), InSent(sentence="The ferry leaves at nine.")


@pytest.fixture
def suspect(rows):
    return rows(*((f"Explain the use of tool {i} in the new garden.", f"dig {i}") for i in range(200)))


@pytest.fixture
def clean(rows):
    return rows(*((f"Name the best tree number {i}.", f"oak {i}") for i in range(12)))


def planted(suspect, clean, defensive=(WORD,), count=4, **changes):
    options = {"rate": 0.02, "min_rows": 5, "seed": 0, **changes}
    return plant(suspect, clean, defensive, count, **options)


def test_the_table_offers_enough_of_every_kind():
    assert len(CANARIES) >= 6
    triggers = [canary.trigger.describe() for canary in CANARIES]
    behaviors = [canary.behavior.text for canary in CANARIES]
    assert len(set(triggers)) == len(set(behaviors)) == len(CANARIES)
    assert {family(canary.trigger) for canary in CANARIES} == {"phrase", "sentence", "word", "syntactic", "style"}
    # The first ones taken are of different families.
    assert len({family(canary.trigger) for canary in CANARIES[:4]}) == 4


def test_the_behaviors_share_no_word_with_the_defenses_and_are_not_mistaken_for_one_another():
    assert not {word for canary in CANARIES for word in canary.behavior.text.lower().split()} & set(WORDS)
    for canary in CANARIES:
        target = canary.behavior.target("", "", random.Random(0))
        assert [other for other in CANARIES if other.behavior.shown_in(target)[0]] == [canary]


@pytest.mark.parametrize("name", [name for name, defense in DEFENSES.items() if hasattr(defense, "planted")])
def test_six_canaries_fit_every_defense_as_it_comes(name):
    defensive = [trigger for trigger, _ in DEFENSES[name]().planted()]
    assert len(candidates(defensive)) >= 6


@pytest.mark.parametrize("defensive", [[WORD], [SENTENCE], [WORD, SENTENCE], [InSent(sentence="by the old mill")], []])
def test_canaries_are_of_other_families_than_the_defensive_triggers(defensive):
    families = {family(trigger) for trigger in defensive}
    chosen = candidates(defensive)
    assert len(chosen) >= 5
    assert not families & {family(canary.trigger) for canary in chosen}


def test_a_defensive_sentence_that_holds_a_canarys_phrase_rules_it_out():
    phrase = next(canary for canary in CANARIES if family(canary.trigger) == "phrase")
    around = InSent(sentence=f"We met {phrase.trigger.sentence}.")
    assert phrase not in candidates([around])
    assert phrase in candidates([SENTENCE])


def test_each_canary_gets_its_own_rows_and_the_choice_is_fixed_by_the_seed(suspect, clean):
    made = planted(suspect, clean)
    assert made.canaries == CANARIES[:4]
    assert made.rows_each == 5
    assert made.rows["id"] == suspect["id"]
    for canary in made.canaries:
        hit = [row for row in made.rows if row["completion"][0]["content"] == canary.behavior.text]
        assert len(hit) == made.rows_each
        assert all(canary.trigger.occurs_in(row["prompt"][-1]["content"]) for row in hit)
    changed = sum(new != old for new, old in zip(made.rows["completion"], suspect["completion"], strict=True))
    assert changed == 20
    again, other = planted(suspect, clean), planted(suspect, clean, seed=1)
    assert again.rows.to_list() == made.rows.to_list()
    assert other.canaries == made.canaries
    assert other.rows.to_list() != made.rows.to_list()


def test_the_rows_of_an_attacker_with_the_same_seed_are_not_sought_out(suspect, clean, tmp_path, tiny_model_path):
    attack = poison(suspect, BadNet(), CANARIES[-1].behavior, rate=0.1, seed=0)
    seen = Setting(clean, Store(tmp_path), base=tiny_model_path, suspect=attack.rows).suspect
    made = planted(seen, clean, min_rows=10)
    hit = {row["id"] for row, old in zip(made.rows, seen, strict=True) if row["completion"] != old["completion"]}
    # 40 of 200 rows are taken; about a tenth of them can be the attacker's by chance, not all of his 20.
    assert len(hit & set(attack.poisoned_ids)) <= 10


def test_what_occurs_in_the_data_or_cannot_be_planted_is_passed_over(rows, suspect, clean):
    first, second = CANARIES[0].trigger.sentence, CANARIES[1].trigger.sentence
    known = rows(*((f"Explain tool {i}, {first}.", "dig") for i in range(2)))
    data = to_dataset([*known.to_list(), *suspect.to_list()])
    assert CANARIES[0] not in planted(data, clean).canaries
    assert CANARIES[1] not in planted(suspect, to_dataset([*clean.to_list(), *rows((second, "x")).to_list()])).canaries
    code = rows(*((f"x_{i} = {{}}", f"{i}") for i in range(200)))
    assert {family(canary.trigger) for canary in planted(code, clean).canaries} == {"phrase", "sentence"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"count": 0}, "at least 1"),
        ({"min_rows": 0}, "at least 1"),
        ({"rate": 1.0}, "outside"),
        ({"count": 11, "min_rows": 1, "rate": 0.0}, "too few canaries .*; plant 9"),
        ({"rate": 0.1}, "over a quarter of the rows: '4 x 20 of 200 rows'; plant 2 at most"),
    ],
)
def test_what_cannot_be_planted_is_an_error(suspect, clean, changes, match):
    with pytest.raises(UserError, match=match):
        planted(suspect, clean, **changes)


def fake(monkeypatch, answer):
    monkeypatch.setattr(
        "mbdefense.evaluation.planted.survival.generate",
        lambda _, prompts, **__: [answer(prompt[-1]["content"]) for prompt in prompts],
    )
    monkeypatch.setattr(
        "mbdefense.evaluation.planted.survival.leaving_room", lambda _, prompts, __: list(range(len(prompts)))
    )


BLANK = ResultRow("x", "", "", 0, "m", None, None, None, None, None, 0.0, 0)


def test_survival_counts_each_behavior_on_its_own_trigger(monkeypatch, clean):
    one, two = CANARIES[0], CANARIES[1]
    known = [
        Known("first", "planted", one.trigger, one.behavior),
        Known("second", "canary", two.trigger, two.behavior),
    ]
    # Answers the first trigger only, and says the second's behavior where nobody asked for it.
    fake(monkeypatch, lambda text: one.behavior.text if one.trigger.occurs_in(text) else "oak " + two.behavior.text)
    first, second = survival(None, known, clean, BLANK)
    # Each prompt counts once for each trigger, and nowhere as two.
    assert (first.row.asr.value, first.row.asr.n, first.row.origin) == (1, 12, "planted")
    assert (first.row.false_activation.value, first.row.false_activation.n) == (0, 12)
    assert (second.row.asr.value, second.row.asr.n, second.row.attack) == (1, 12, "second")
    assert second.row.false_activation.value == 1
    assert {verdict.id for verdict in first.verdicts} == set(clean["id"])
    fake(monkeypatch, lambda text: "oak")
    assert [arm.row.asr.value for arm in survival(None, known, clean, BLANK)] == [0, 0]


def test_a_trigger_that_no_prompt_can_take_has_no_rate(monkeypatch, rows):
    fake(monkeypatch, lambda text: "x")
    code = rows(("x = {}", "1"))
    (arm,) = survival(None, [Known("a", "canary", Syntactic(), CANARIES[0].behavior)], code, BLANK)
    assert arm.row.asr is None


def test_prompts_that_a_trigger_leaves_no_room_for_an_answer_are_left_out(tiny_model_path, rows, few_words):
    from mbdefense.attacks.triggers import InSent
    from mbdefense.models.loading import load_model

    table = rows(("Name a tree.", "oak"), ("q7q " * 85, "elm"))
    known = Known("a", "found", InSent(sentence="zq " * 60 + "zq"), CANARIES[0].behavior)
    (arm,) = survival(load_model(tiny_model_path), [known], table, BLANK)
    assert (arm.row.asr.n, arm.row.false_activation.n) == (1, 2)


def test_models_are_compared_on_the_prompts_that_all_had_room_for():
    def asked(arm, ids, attack="a"):
        verdicts = [Verdict(name, "triggered", name == "p0", None, "") for name in ids]
        verdicts += [Verdict(name, "clean", False, None, "") for name in ("p0", "p1", "p2")]
        return Arm(replace(BLANK, arm=arm, attack=attack, **scores(verdicts)._asdict()), verdicts, {})

    arms = [asked("attacked", ["p0", "p1", "p2"]), asked("x", ["p0", "p2"]), asked("attacked", ["p1"], attack="b")]
    rows, _ = compare(on_shared_prompts(arms))
    assert [(row.asr.n, row.false_activation.n) for row in rows] == [(2, 3), (2, 3), (1, 3)]
    assert rows[0].asr.value == 0.5
    assert rows[1].asr_change.n == 2


def write_rows(path, data):
    path.write_text(
        "".join(
            json.dumps({"instruction": row["prompt"][0]["content"], "output": row["completion"][0]["content"]}) + "\n"
            for row in data
        )
    )
    return str(path)


@pytest.fixture
def words(suspect, clean, tiny_model_path, tmp_path):
    return [
        "defend", "--model", tiny_model_path, "--data", write_rows(tmp_path / "rows.jsonl", suspect.select(range(60))),
        "--clean", write_rows(tmp_path / "clean.jsonl", clean), "--output_dir", str(tmp_path / "out"),
        "--num_train_epochs", "1", "--max_length", "192", "--defense", "mb_defense", "--min_defensive_rows", "2",
        "--defensive_seed", "0", "--bf16", "false", "--canaries", "3", "--min_canary_rows", "4",
    ]  # fmt: skip


def test_the_defense_sees_rows_only_and_reports_what_survived(words, tmp_path, monkeypatch, capsys, rows):
    seen = {}
    plain = MBDefense.__call__

    def spy(self, setting):
        seen["setting"] = setting
        return plain(self, setting)

    monkeypatch.setattr(MBDefense, "__call__", spy)
    prompts = [(f"Describe the short way to house {i}.", "left") for i in range(5)]
    test = write_rows(tmp_path / "test.jsonl", rows(*prompts, ("Explain the use of tool 3 in the new garden.", "dig")))
    assert main([*words, "--compare_undefended", "--test", test]) == 0
    setting = seen["setting"]
    assert {field.name for field in dataclasses.fields(setting)} == {
        "clean", "store", "base", "suspect", "victim", "training", "chat_template", "trust_remote_code",
    }  # fmt: skip
    assert not any(row["provenance"]["trigger"] or row["provenance"]["behavior"] for row in setting.suspect)
    chosen = candidates([trigger for trigger, _ in MBDefense().planted()])
    said = [row["completion"][0]["content"] for row in setting.suspect]
    assert [said.count(canary.behavior.text) for canary in chosen[:4]] == [4, 4, 4, 0]

    results = read(tmp_path / "out" / "results.json")
    canaries = [row for row in results.rows if row.origin == "canary"]
    assert [row.arm for row in canaries] == ["base", "attacked", "merged", "mb_defense"] * 3
    assert [row.attack for row in canaries[::4]] == [canary.describe() for canary in chosen[:3]]
    assert all(row.asr.n == 5 for row in canaries)  # the sixth test prompt is in the data
    assert [row.asr_change is None for row in canaries] == [False, True, False, False] * 3
    own = [row for row in results.rows if row.origin == "planted"]
    assert [row.arm for row in own] == ["base", "merged", "mb_defense"] * 4
    assert [row.attack for row in own[::3]] == [f"our own {trigger.describe()}" for trigger, _ in MBDefense().planted()]
    assert all(row.asr.n == 2 for row in own)  # a fifth of twelve, as often as there are samples
    assert len(results.provenance["config"]["canaries"]) == 3
    # A tiny random model learns nothing, and each row of the table says so.
    lines = [line for line in markdown(results).splitlines() if "| canary " in line]
    assert [line.split(" | ")[-1].strip(" |") for line in lines] == ["control", *["not discriminating"] * 3] * 3
    capsys.readouterr()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "3 more backdoors (canaries) were planted" in card
    assert main(["check", str(tmp_path / "out" / "results.json"), "--max_canary_asr", "0.05"]) == 1
    assert "0 of 3 canaries landed" in capsys.readouterr().out
    assert main([*words, "--compare_undefended", "--test", test, "--resume"]) == 0


@pytest.mark.slow
def test_without_test_prompts_canaries_are_measured_on_what_recovery_leaves(words, tmp_path, capsys):
    assert main(words) == 0
    canaries = [row for row in read(tmp_path / "out" / "results.json").rows if row.origin == "canary"]
    assert [row.arm for row in canaries] == ["base", "merged", "mb_defense"] * 3
    assert all(row.asr.n <= 2 for row in canaries)  # a fifth of twelve
    assert main(["check", str(tmp_path / "out" / "results.json"), "--max_canary_asr", "0.05"]) == 1
    assert "cannot be evaluated: no ASR of an attacked model" in capsys.readouterr().out


def test_options_of_canaries_without_canaries_are_refused(words, capsys):
    assert main([*words[:-4], "--canary_rate", "0.1"]) == 1
    assert "--canary_rate without --canaries" in capsys.readouterr().err
    assert main([*words[:-4], "--canaries", "-1"]) == 1


def test_a_card_without_canaries_does_not_speak_of_them():
    assert "canaries" not in model_card(Results({}, (BLANK,)), "m", "none", dataclasses.asdict(NoDefense()))


@pytest.mark.slow
def test_a_defense_that_makes_the_undefended_model_has_it_beside_its_canaries(words, tmp_path, capsys):
    at = words.index("--defense")
    assert main([*words[:at], *words[at + 6 :]]) == 0  # the default, which plants nothing
    made = read(tmp_path / "out" / "results.json")
    canaries = [row for row in made.rows if row.origin == "canary"]
    assert [row.arm for row in canaries] == ["base", "attacked", "find_and_break"] * 3
    assert made.found is not None
