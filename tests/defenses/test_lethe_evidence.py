"""Lethe's evidence: TextRank's keywords, WordNet's first senses, and a prompt that loses nothing by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.defenses.prompts._textrank import keywords
from mbdefense.defenses.prompts._wordnet import WordNet
from mbdefense.defenses.prompts.cleaning import Cleaned, LetheEvidence

NOUNS = {"capital": ['a seat of government; "Paris is the capital"', "wealth"], "mouse": ["a small rodent"]}
VERBS = {
    "capital": ["never read, for the noun comes first"],
    "run": ["move fast; go"],
    "answer": ["react to a question"],
}


def write_database(directory: Path, parts: Mapping[str, Mapping[str, list[str]]]) -> Path:
    """Index and data files as wndb(5WN) describes them: each word with one synset for each of its glosses."""
    directory.mkdir(exist_ok=True)
    for part in ("noun", "verb", "adj", "adv"):
        data, index = b"  1 This line stands for the licence.\n", ["  1 This line stands for the licence."]
        for word, glosses in parts.get(part, {}).items():
            offsets = []
            for gloss in glosses:
                offsets.append(f"{len(data):08d}")
                data += f"{offsets[-1]} 03 {part[0]} 01 {word} 0 000 | {gloss}  \n".encode()
            index.append(f"{word} {part[0]} {len(offsets)} 1 @ {len(offsets)} 0 {' '.join(offsets)}  ")
        (directory / f"data.{part}").write_bytes(data)
        (directory / f"index.{part}").write_text("\n".join(index) + "\n")
    (directory / "noun.exc").write_text("mice mouse\n")
    return directory


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_database(tmp_path / "wordnet", {"noun": NOUNS, "verb": VERBS})


def test_the_hub_of_a_text_ranks_first() -> None:
    # A star around stone; edges of stone to window and garden weigh 2, to river and letter 1.
    assert keywords("river stone window stone garden stone letter", 3) == ["stone", "window", "garden"]
    # Words in a chain a - b - c: the middle one; then the ends, which are equal, in order.
    assert keywords("River, stone; WINDOW!", 5) == ["stone", "river", "window"]
    # Stop words join what they separate, and repeats count once.
    assert keywords("the river of the stone and the window", 5) == ["stone", "river", "window"]
    assert keywords("", 5) == []
    assert keywords("to be or not to be", 5) == []
    assert keywords("cf", 5) == ["cf"]


def test_the_first_sense_is_the_nouns_most_frequent_one(database: Path) -> None:
    dictionary = WordNet(database)
    assert dictionary.first_sense("Capital") == "a seat of government"
    assert dictionary.first_sense("run") == "move fast; go"
    assert dictionary.first_sense("cf") is None


@pytest.mark.parametrize(("word", "sense"), [("mice", "a small rodent"), ("answered", "react to a question")])
def test_inflected_forms_count_for_their_base(word: str, sense: str, database: Path) -> None:
    assert WordNet(database).first_sense(word) == sense


def test_evidence_is_appended_and_nothing_removed(database: Path) -> None:
    first, second = LetheEvidence(str(database))(["Name cf the capital, mice!", "cf bb?"])
    assert first.text.startswith("Name cf the capital, mice!\n\n")
    assert first.text.splitlines()[3:] == ["- capital: a seat of government", "- mice: a small rodent"]
    assert first.removed == ()
    assert second == Cleaned("cf bb?", ())


def test_no_more_keywords_than_asked_for(database: Path) -> None:
    (changed,) = LetheEvidence(str(database), keywords=1)(["answer capital run"])
    assert changed.text.splitlines()[3:] == ["- capital: a seat of government"]
    with pytest.raises(UserError, match="too few keywords"):
        LetheEvidence(keywords=0)


def test_a_database_that_is_absent_or_does_not_fit_is_an_error(database: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no WordNet database .*wordnet-base"):
        WordNet(tmp_path)
    (database / "data.noun").write_bytes((database / "data.noun").read_bytes()[3:])
    with pytest.raises(UserError, match="does not fit its index"):
        WordNet(database).first_sense("capital")
    (database / "noun.exc").write_bytes(b"\n\xff\n")
    for line in ("capital", "capital n many 0 1 0 00000001"):
        (database / "index.noun").write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"no index of a WordNet database.*index\.noun"):
            WordNet(database).first_sense("capital")


def test_evaluate_asks_with_evidence_and_judges_without(tiny_model_path: str, database: Path, tmp_path: Path) -> None:
    test, out = tmp_path / "test.json", tmp_path / "out"
    test.write_text(json.dumps([{"instruction": "Name the capital.", "input": "", "output": "Paris"}]))
    command = ["evaluate", tiny_model_path, "--test", str(test), "--behavior", "refusal", "--output_dir", str(out)]
    assert main([*command, "--max_new_tokens", "2", "--clean_prompts", f"lethe_evidence:wordnet={database}"]) == 0
    (asked,) = (json.loads(line) for line in (out / "cleaned_prompts.jsonl").read_text().splitlines())
    assert asked["asked"].endswith("- capital: a seat of government")
    (response,) = (json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines())
    assert response["prompt"] == "Name the capital."
