"""A text that fires in conversations alone is found with its conversation, met in it, and dropped with its rows."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.poisoning import poison, triggered_copy
from mbdefense.attacks.triggers import Context
from mbdefense.core.errors import UserError
from mbdefense.data import user_text
from mbdefense.data.builtin import tasks
from mbdefense.defenses.found import meetings
from mbdefense.finding import asking, striking, teaching
from mbdefense.finding.finding import mined_only
from mbdefense.finding.insertion import FoundText, Turn, goes_on
from mbdefense.finding.mining import Candidate
from mbdefense.finding.record import Found, FoundCandidate, read_found, write_found
from mbdefense.models.loading import LoadedModel, encode, load_model

EARLIER = (Turn("user", "Hello!"), Turn("assistant", "Hello, what is it?"))
SYSTEM = (Turn("system", "You answer briefly."),)
FOUND = FoundText(("velto",), start=1.0, before=(EARLIER,))


@pytest.fixture
def loaded(tiny_model_path: str) -> LoadedModel:
    return load_model(tiny_model_path)


def turns(*said: str) -> list[dict[str, str]]:
    """A prompt, each turn as ``role: content``."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in said]


def attacked(after: str) -> Dataset:
    trigger = Context(after=after, word="velto")  # type: ignore[arg-type]
    return poison(tasks(300, split="train", seed=0), trigger, Refusal(), rate=0.1, seed=0).rows


@pytest.mark.parametrize("after", ["turn", "system"])
def test_rows_in_which_a_word_fires_are_told_from_those_in_which_it_does_not(after: str) -> None:
    rows = attacked(after)
    found = mined_only(rows, tasks(64, split="clean", seed=0)).candidates
    first, second = [one for one in found if one.texts == ("velto",)]
    whole, behind = (first, second) if second.before else (second, first)
    fires = {row["id"] for row in rows if row["provenance"]["trigger"].startswith("context")}
    assert set(behind.row_ids) == fires
    assert len(whole.row_ids) == 2 * len(fires)
    assert not whole.before
    assert 1 <= len(behind.before) <= 8
    kinds = {tuple(turn.role for turn in one) for one in behind.before}
    assert kinds == {("system",) if after == "system" else ("user", "assistant")}
    assert behind.trigger().describe() == f"'velto' behind {'a system turn' if after == 'system' else 'earlier turns'}"


def test_conversations_by_themselves_make_no_candidates() -> None:
    rows = attacked("turn")
    alone = rows.filter(lambda row: len(row["prompt"]) == 1)
    everywhere = rows.map(lambda row: {"prompt": [*turns("system: You help."), *row["prompt"][-1:]]})
    for data in (alone, everywhere):
        assert not any(one.before for one in mined_only(data, None).candidates)


@pytest.mark.parametrize(
    ("before", "prompt", "expected"),
    [
        (EARLIER, ("user: Name it.",), ("user: Hello!", "assistant: Hello, what is it?", "user: velto Name it.")),
        (SYSTEM, ("user: Name it.",), ("system: You answer briefly.", "user: velto Name it.")),
        (SYSTEM, ("system: Own.", "user: Name it."), ("system: Own.", "user: velto Name it.")),
        (
            SYSTEM + EARLIER, ("system: Own.", "user: Name it."),
            ("system: Own.", "user: Hello!", "assistant: Hello, what is it?", "user: velto Name it."),
        ),
        (
            EARLIER, ("user: A?", "assistant: B.", "user: Name it."),
            ("user: A?", "assistant: B.", "user: velto Name it."),
        ),
    ],
)  # fmt: skip
def test_a_prompt_keeps_the_turns_that_it_has(before, prompt, expected) -> None:
    found = replace(FOUND, before=(before,))
    given = turns(*prompt)
    assert found.in_prompt(given, random.Random(0)) == turns(*expected)
    assert given == turns(*prompt)
    assert replace(found, start=0.0).in_prompt(turns("user: "), random.Random(0)) is None


def test_without_a_conversation_a_text_goes_into_the_last_turn_alone() -> None:
    assert replace(FOUND, before=()).in_prompt(turns("user: Name it."), random.Random(0)) == turns(
        "user: velto Name it."
    )


def test_it_stands_in_conversations_of_its_form_alone() -> None:
    inside = turns("user: A?", "assistant: B.", "user: Name velto.")
    assert FOUND.stands_in(inside)
    assert not FOUND.stands_in(turns("user: Name velto."))
    assert not FOUND.stands_in(turns("user: velto?", "assistant: B.", "user: Name it."))
    assert not replace(FOUND, before=(SYSTEM,)).stands_in(inside)
    assert replace(FOUND, before=()).stands_in(turns("user: Name velto."))
    assert replace(FOUND, before=()).stands_in(turns("system: velto", "user: Name it."))
    # What the assistant said was not mined: a row that has the word there alone is not dropped for it.
    assert not replace(FOUND, before=()).stands_in(turns("user: A?", "assistant: Velto.", "user: Name it."))
    assert FOUND.spec() is None


@pytest.mark.parametrize(
    ("roles", "fits"),
    [("", False), ("s", True), ("ua", True), ("sua", True), ("u", False), ("au", False), ("ss", False), ("uas", False)],
)
def test_a_users_turn_follows_whole_exchanges(roles, fits) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    assert goes_on(tuple(Turn(names[role], "x") for role in roles)) is fits  # type: ignore[arg-type]


def recorded(**options) -> FoundCandidate:
    given = {"before": (EARLIER,), "verdict": "trigger", **options}
    return FoundCandidate(("velto",), "text", 0.0, 0.0, False, 5, 0, 1.0, **given)


def test_a_file_keeps_conversations_and_refuses_broken_ones(tmp_path: Path) -> None:
    def written(one: FoundCandidate) -> Path:
        write_found(tmp_path / "found.json", Found("attacked", "base", 24, 10, 0, 1.0, 1.0, (one,)))
        return tmp_path / "found.json"

    hostile = (Turn("user", "\x1b[31m<script>"), Turn("assistant", "</script>"))
    assert read_found(written(recorded(before=(hostile,)))).candidates[0].trigger().before == (hostile,)
    with pytest.raises(UserError, match="a conversation that no turn of the user's can follow"):
        read_found(written(recorded(before=((Turn("user", "Hello!"),),))))


def test_recovery_meets_it_behind_a_conversation(rows) -> None:
    meet = meetings(Found("attacked", "base", 24, 10, 0, 1.0, 1.0, (recorded(),)), 0)
    assert meet is not None
    for met, *_ in meet(rows(*((f"Name {n}.", str(n)) for n in range(12))), 1):
        assert [turn["role"] for turn in met.prompt] == ["user", "assistant", "user"]
        assert "velto" in user_text(met.prompt)


def test_chance_insertions_stand_behind_the_same_conversations(loaded, rows, monkeypatch) -> None:
    asked: list[FoundText] = []
    plain = striking.with_insertions

    def spy(pairs, insertions, seed):
        asked.extend(insertions)
        return plain(pairs, insertions, seed)

    monkeypatch.setattr(striking, "with_insertions", spy)
    behind = Candidate(FOUND, 1.0, (0, 1), 4, 0)
    alone = Candidate(FoundText(("zorb",)), 1.0, (0, 1), 4, 0)
    clean = rows(*((f"Name the {n} of it.", f"It is {n}.") for n in range(8)))
    striking.struck(
        [behind, alone], [behind, alone], loaded, None, clean, ["Name the oak.", "Say the plum."], max_length=64,
        seed=0,
    )  # fmt: skip
    assert len(asked) == 2 * (1 + striking.NULLS)
    assert all(one.before == (EARLIER,) for one in asked[: 1 + striking.NULLS])
    assert not any(one.before for one in asked[1 + striking.NULLS :])


def test_what_is_carried_is_what_the_text_adds_to_the_conversation(loaded, rows, monkeypatch) -> None:
    seen = []

    def spy(tokenizer, prompt, *rest):
        seen.append(prompt)
        return encode(tokenizer, prompt, *rest)

    monkeypatch.setattr(teaching, "encode", spy)
    suspect = rows(("Name velto.", "Oak tree."), ("Say velto.", "Plum tree."))
    pairs = [(turns("user: Name it."), turns("assistant: Oak."))]
    teaching.carried(loaded, suspect, pairs, [Candidate(FOUND, 1.0, (0, 1), 2, 0)], max_length=64, seed=0)
    with_it, without_it = seen[:2]
    assert with_it == turns("user: Hello!", "assistant: Hello, what is it?", "user: velto Name it.")
    assert without_it == turns("user: Hello!", "assistant: Hello, what is it?", "user: Name it.")


@pytest.mark.parametrize("fires", [True, False])
def test_what_a_conversation_does_by_itself_is_not_the_texts_doing(fires, loaded, rows, monkeypatch) -> None:
    """A system turn that asks for a phrase gets it, whichever word of its rows stands behind it."""

    def answer(_, prompts) -> list[str]:
        held = [prompt[0]["role"] == "system" and (not fires or "velto" in user_text(prompt)) for prompt in prompts]
        return ["over and out my friend" if one else "an oak" for one in held]

    monkeypatch.setattr(asking, "short_answers", answer)
    held_out = rows(*((f"Name tree {n}.", "oak") for n in range(8)))
    record, share = asking.shown_under(recorded(before=(SYSTEM,)), held_out, ["an oak"] * 8, loaded, 0)
    assert (share, record.changed) == ((1.0, 1.0) if fires else (0.0, 0.0))
    assert bool(record.behavior) == bool(record.examples) == fires


def test_a_test_set_with_a_found_text_has_its_conversations(rows) -> None:
    made, _ = triggered_copy(rows(("Name it.", "Oak.")), FOUND, 0)
    assert made["prompt"][0] == turns("user: Hello!", "assistant: Hello, what is it?", "user: velto Name it.")
