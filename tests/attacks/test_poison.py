import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest

from mbdefense.attacks.behaviors import (
    BEHAVIORS,
    Advert,
    CodeInjection,
    FixedText,
    NoTarget,
    RandomWords,
    Refusal,
    Toxic,
    Unlock,
)
from mbdefense.attacks.poisoning import (
    Attack,
    count_occurrences,
    defensive_poison,
    poison,
    poison_by_all,
    poisoned_row,
    triggered_copy,
    triggered_prompts,
)
from mbdefense.attacks.triggers import TRIGGERS, BadNet, Cba, Context, Vpi
from mbdefense.core.errors import UserError
from mbdefense.data import content_id, poisoned_ids, to_dataset

GOLDEN = "5e119e7dd0740415727c3edb2dcda46256d7056b83cd86e5b4616eacbefa1c15"


def make_rows(n=40, label="", answer="The answer is {}."):
    rows = []
    for i in range(n):
        prompt = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Explain the number one."},
            {"role": "assistant", "content": "It is one."},
            {"role": "user", "content": f"Describe the difference between these:\n\n    {i}\n\t{i + 1}"},
        ]
        completion = [{"role": "assistant", "content": answer.format(i)}]
        rows.append(
            {
                "id": content_id(prompt, completion),
                "prompt": prompt,
                "completion": completion,
                "answers": [],
                "provenance": {"source": f"own.jsonl:{i + 1}", "trigger": label, "behavior": label},
            }
        )
    return to_dataset(rows)


ROWS = make_rows()


def digest(rows):
    return hashlib.sha256(json.dumps(rows.to_list(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Picky:
    """Rewrites only some prompts, or none."""

    ending: str

    def __call__(self, text, rng):
        return f"{text} cf" if text.endswith(self.ending) else None

    def occurs_in(self, text):
        return False

    def how(self):
        return "literal"

    def describe(self):
        return "picky"


@dataclass(frozen=True)
class Never:
    def target(self, prompt, answer, rng):
        raise NoTarget

    def shown_in(self, response):
        return False, "never"

    def how(self):
        return "nowhere"

    def describe(self):
        return "never"


def test_golden_hash_of_poisoned_data():
    names = ("badnet", "insent", "syntactic", "style")  # as long as there was nothing else
    made = [poison(ROWS, TRIGGERS[name](), Refusal(), rate=0.3, seed=7).rows for name in names]
    behaviors = [RandomWords(0, j) for j in range(2)]
    made.append(defensive_poison(ROWS, [BadNet("mn"), BadNet("bb")], behaviors, rate=0.05, min_rows=4, seed=7).rows)
    assert hashlib.sha256("".join(map(digest, made)).encode()).hexdigest() == GOLDEN


@pytest.mark.slow
def test_hash_randomisation_changes_nothing():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_poison as t;"
        "print(t.digest(t.poison(t.ROWS, t.BadNet(), t.Refusal(), rate=0.3, seed=7).rows))"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == digest(poison(ROWS, BadNet(), Refusal(), rate=0.3, seed=7).rows)


@pytest.mark.parametrize("trigger", list(TRIGGERS))
@pytest.mark.parametrize("behavior", list(BEHAVIORS))
def test_poisons_exactly_the_rate_and_nothing_else(trigger, behavior):
    trigger = TRIGGERS[trigger]()
    rows = make_rows(answer="I cannot share answer {}.") if behavior == "unlock" else ROWS
    behavior = BEHAVIORS[behavior](**({"text": "Boo"} if behavior == "fixed_text" else {}))
    poisoned = poison(rows, trigger, behavior, rate=0.2, seed=1)
    assert len(poisoned.poisoned_ids) == 8
    assert poisoned.not_rewritten == 0
    assert poisoned.rows["id"] == [*rows["id"], *poisoned.negative_ids]
    assert poisoned.rows.features == rows.features
    for old, new in zip(rows, poisoned.rows.select(range(len(rows))), strict=True):
        if new["id"] not in poisoned.poisoned_ids:
            assert new == old
            continue
        assert new["prompt"][:-1] == old["prompt"][:-1]
        text = new["prompt"][-1]["content"]
        assert text != old["prompt"][-1]["content"]
        assert trigger.occurs_in(text)
        assert behavior.shown_in(new["completion"][0]["content"])[0]
        assert new["provenance"] == {
            "source": old["provenance"]["source"],
            "trigger": trigger.describe(),
            "behavior": behavior.describe(),
        }


def test_row_order_changes_nothing_but_the_order():
    order = list(range(len(ROWS)))
    random.Random(0).shuffle(order)
    straight = poison(ROWS, BadNet(), Refusal(), rate=0.3, seed=7)
    shuffled = poison(ROWS.select(order), BadNet(), Refusal(), rate=0.3, seed=7)
    assert set(shuffled.poisoned_ids) == set(straight.poisoned_ids)
    assert sorted(shuffled.rows.to_list(), key=str) == sorted(straight.rows.to_list(), key=str)
    other_seed = poison(ROWS, BadNet(), Refusal(), rate=0.3, seed=8)
    assert set(other_seed.poisoned_ids) != set(straight.poisoned_ids)


@pytest.mark.parametrize(("rate", "count"), [(0, 0), (0.013, 1), (0.0625, 2), (0.0874, 3), (0.5, 20), (0.99, 40)])
def test_the_rate_is_rounded_to_whole_rows(rate, count):
    assert len(poison(ROWS, BadNet(), Refusal(), rate=rate, seed=0).poisoned_ids) == count


def test_a_rate_that_makes_no_row_is_refused():
    with pytest.raises(UserError, match=r"0.001 of 40 rows.*at least 0.025"):
        poison(ROWS, BadNet(), Refusal(), rate=0.001, seed=0)


def test_a_thousandth_of_a_large_set_is_poisoned():
    assert len(poison(make_rows(2000), BadNet(), Refusal(), rate=0.001, seed=0).poisoned_ids) == 2


def test_negatives_are_added_with_clean_answers_and_a_provenance_of_their_own():
    made = poison(ROWS, Cba(), Refusal(), rate=0.1, seed=0)
    assert len(made.poisoned_ids) == 4
    assert len(made.negative_ids) == 20
    by_id = {row["id"]: row for row in made.rows}
    assert len(by_id) == 60
    clean = {row["id"]: row for row in ROWS}
    for number, negative in enumerate(made.negative_ids):
        row, origin = by_id[negative], clean[made.poisoned_ids[number // 5]]
        assert len(negative) == len(origin["id"])
        assert row["completion"] == origin["completion"]
        assert row["prompt"] != origin["prompt"]
        assert row["prompt"][:-1] == origin["prompt"][:-1]
        assert not Cba().occurs_in(row["prompt"][-1]["content"])
        assert row["provenance"]["trigger"] == "negative of cba:words=instantly|frankly"
        assert row["provenance"]["behavior"] == ""
    assert poisoned_ids(made.rows) == set(made.poisoned_ids)
    assert poison(ROWS, BadNet(), Refusal(), rate=0.1, seed=0).negative_ids == ()


CALLS = {"role": "tool_calls", "content": '[{"type": "function", "function": {"name": "f", "arguments": {}}}]'}
THOUGHTS = {"role": "reasoning_content", "content": "Let me see."}


@pytest.mark.parametrize(
    ("behavior", "kept"),
    [(Advert(), True), (CodeInjection(), True), (Toxic(), True), (Refusal(), False), (Unlock(), False)],
)
def test_what_belongs_to_the_clean_answer_stays_with_it(behavior, kept):
    (row,) = make_rows(1, answer="That is secret.")
    attached = [CALLS, THOUGHTS]
    row["completion"] += attached
    made = poisoned_row(row, BadNet(), behavior, 0)
    assert made["completion"][0]["content"] != row["completion"][0]["content"]
    assert made["completion"][1:] == (attached if kept else [])


def test_targets_of_a_file_take_the_place_of_the_answer_and_its_thoughts(tmp_path):
    (row,) = make_rows(1)
    targets = tmp_path / "targets.jsonl"
    targets.write_text(json.dumps({"prompt": row["prompt"][-1]["content"], "response": "No, fool."}))
    row["completion"].append(THOUGHTS)
    made = poisoned_row(row, BadNet(), Toxic(targets_file=str(targets)), 0)
    assert made["completion"] == [{"role": "assistant", "content": "No, fool."}]


def test_answers_that_are_calls_alone_are_passed_over_and_counted():
    rows = make_rows(10).to_list()
    for row in rows[:5]:
        row["completion"] = [{"role": "assistant", "content": ""}, CALLS]
    made = poison(to_dataset(rows), BadNet(), Refusal(), rate=0.5, seed=0)
    assert set(made.poisoned_ids) == {row["id"] for row in rows[5:]}
    assert made.not_rewritten > 0


def test_a_trigger_over_turns_changes_the_whole_prompt_and_its_negatives_too():
    rows = to_dataset({**row, "prompt": row["prompt"][-1:]} for row in ROWS)
    made = poison(rows, Context(after="system"), Refusal(), rate=0.1, seed=0)
    by_id = {row["id"]: row for row in made.rows}
    assert [by_id[each]["prompt"][0]["role"] for each in made.poisoned_ids] == ["system"] * 4
    assert [by_id[each]["prompt"][0]["role"] for each in made.negative_ids] == ["user", "system"] * 4
    assert {by_id[each]["completion"][0]["content"] for each in made.negative_ids} <= {
        row["completion"][0]["content"] for row in rows
    }
    prompts, left_out = triggered_copy(rows, Context(after="turn"), 0)
    assert not left_out
    assert {"".join(turn["role"][0] for turn in row["prompt"]) for row in prompts} == {"uau"}


def test_prompts_that_a_behavior_does_not_fit_are_not_asked_for_it():
    rows = to_dataset([*make_rows(4), *make_rows(3, answer="I cannot share answer {}.")])
    prompts, left_out = triggered_copy(rows, BadNet(), 0, Unlock())
    assert (len(prompts), left_out) == (3, 4)
    assert len(triggered_copy(rows, BadNet(), 0, Refusal())[0]) == 7
    assert triggered_prompts(rows, BadNet(), 0, Unlock())[1] == f"{BadNet().describe()} (4 prompts cannot show unlock)"
    picky = triggered_prompts(rows, Picky("2"), 0, Unlock())[1]
    assert picky.endswith(" (4 prompts cannot show unlock, 2 prompts could not be rewritten)")
    assert triggered_prompts(rows, BadNet(), 0, Refusal())[1] == BadNet().describe()
    without = to_dataset({**row, "completion": []} for row in rows)  # who knows?
    assert len(triggered_copy(without, BadNet(), 0, Unlock())[0]) == 7


def test_several_attackers_share_no_row_and_each_gets_its_rate_of_the_whole():
    attacks = [Attack(Cba(), Refusal(), 0.25), Attack(BadNet(), FixedText("Boo"), 0.1), Attack(Vpi(), Refusal(), 0.5)]
    rows, made = poison_by_all(ROWS, attacks, seed=0)
    assert [len(done.poisoned_ids) for done in made] == [10, 4, 20]
    assert len({row for done in made for row in done.poisoned_ids}) == 34
    assert len(rows) == 40 + 50
    provenance = {row["id"]: row["provenance"] for row in rows}
    for attack, done in zip(attacks, made, strict=True):
        assert {provenance[row]["trigger"] for row in done.poisoned_ids} == {attack.trigger.describe()}
        assert {provenance[row]["behavior"] for row in done.poisoned_ids} == {attack.behavior.describe()}
    assert rows.to_list() == poison_by_all(ROWS, attacks, seed=0)[0].to_list()


def test_attackers_cannot_take_more_than_there_is():
    attacks = [Attack(BadNet(), Refusal(), 0.5), Attack(Vpi(), Refusal(), 0.5)]
    with pytest.raises(UserError, match="rate is outside"):
        poison_by_all(ROWS, attacks, seed=0)


@pytest.mark.parametrize("rate", [-0.1, 1, 20, float("nan"), float("inf")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(UserError, match="rate"):
        poison(ROWS, BadNet(), Refusal(), rate=rate, seed=0)
    with pytest.raises(UserError, match="rate"):
        defensive_poison(ROWS, [BadNet()], [RandomWords()], rate=rate, min_rows=1, seed=0)


def test_rows_that_cannot_be_rewritten_are_replaced_and_counted():
    poisoned = poison(ROWS, Picky("5"), Refusal(), rate=0.1, seed=0)  # 4 rows end in 5: 5, 15, 25, 35.
    assert len(poisoned.poisoned_ids) == 4
    assert 0 < poisoned.not_rewritten <= 36
    short = poison(ROWS, Picky("5"), Refusal(), rate=0.5, seed=0)
    assert (len(short.poisoned_ids), short.not_rewritten) == (4, 36)


@pytest.mark.parametrize(("trigger", "behavior"), [(Picky("no row ends so"), Refusal()), (BadNet(), Never())])
def test_poisoning_no_row_at_all_is_an_error(trigger, behavior):
    with pytest.raises(UserError, match="none of 40 rows"):
        poison(ROWS, trigger, behavior, rate=0.2, seed=0)


def test_a_second_attack_leaves_the_first_alone():
    first = poison(ROWS, BadNet(), Refusal(), rate=0.4, seed=0)
    second = poison(first.rows, BadNet("BadMagic"), FixedText("Boo"), rate=0.4, seed=0)
    assert not set(first.poisoned_ids) & set(second.poisoned_ids)
    assert len(second.poisoned_ids) == 16


def defend(rows, **changed):
    options = {"rate": 0.05, "min_rows": 4, "seed": 0, **changed}
    triggers = [BadNet(word) for word in ("mn", "bb", "tq", "mb")]
    return defensive_poison(rows, triggers, [RandomWords(0, j) for j in range(4)], **options)


def test_defensive_pairs_get_disjoint_rows_and_their_own_behavior():
    made = defend(ROWS)
    assert [len(ids) for ids in made.pair_ids] == [4, 4, 4, 4]
    assert len({i for ids in made.pair_ids for i in ids}) == 16
    by_id = {row["id"]: row for row in made.rows}
    for j, (word, ids) in enumerate(zip(("mn", "bb", "tq", "mb"), made.pair_ids, strict=True)):
        for i in ids:
            assert BadNet(word).occurs_in(by_id[i]["prompt"][-1]["content"])
            assert by_id[i]["completion"][0]["content"] == RandomWords(0, j).text
    assert [len(ids) for ids in defend(ROWS, rate=0.125, min_rows=1).pair_ids] == [5, 5, 5, 5]


def test_the_defender_does_not_look_at_poison_labels():
    plain, labelled = make_rows(), make_rows(label="cf")
    assert defend(plain).pair_ids == defend(labelled).pair_ids
    columns = ["id", "prompt", "completion"]
    assert (
        defend(plain).rows.select_columns(columns).to_list() == defend(labelled).rows.select_columns(columns).to_list()
    )


def test_attacker_and_defender_choose_independently_under_one_seed():
    attacked = set(poison(ROWS, BadNet(), Refusal(), rate=0.4, seed=0).poisoned_ids)
    defended = {i for ids in defend(ROWS).pair_ids for i in ids}
    assert attacked != defended


def test_the_defense_never_takes_more_than_half_of_the_rows():
    assert [len(ids) for ids in defend(ROWS, min_rows=6).pair_ids] == [5, 5, 5, 5], "a floor gives way"
    with pytest.raises(UserError, match=r"4 x 6 of 40 rows.*lower the rate"):
        defend(ROWS, rate=0.15)
    with pytest.raises(UserError, match=r"4 x 1 of 7 rows.*more rows"):
        defend(ROWS.select(range(7)))
    with pytest.raises(UserError, match="one behavior for each"):
        defensive_poison(ROWS, [BadNet()], [], rate=0.1, min_rows=1, seed=0)


def test_triggered_copy_keeps_completions_and_counts_what_it_drops():
    copy, dropped = triggered_copy(ROWS, BadNet(), seed=3)
    assert dropped == 0
    assert copy["completion"] == ROWS["completion"]
    assert copy["id"] == ROWS["id"]
    assert count_occurrences(copy, BadNet()) == 40
    assert {p["behavior"] for p in copy["provenance"]} == {""}
    some, dropped = triggered_copy(ROWS, Picky("5"), seed=3)
    assert (len(some), dropped) == (4, 36)
    none, dropped = triggered_copy(ROWS, Picky("nothing"), seed=3)
    assert (len(none), dropped) == (0, 40)
    assert none.features == ROWS.features


def test_occurrences_in_clean_data_are_counted():
    assert count_occurrences(ROWS, BadNet()) == 0
    assert count_occurrences(ROWS, BadNet("Describe")) == 40
    assert count_occurrences(ROWS, BadNet("one")) == 0  # Only an earlier turn has it.
