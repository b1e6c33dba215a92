"""A file poisoned line by line holds what the same rows poisoned in memory hold."""

import errno
import gzip
import hashlib
import json
from dataclasses import dataclass, field

import pytest

from mbdefense.attacks.behaviors import FixedText, RandomWords, Refusal
from mbdefense.attacks.poisoning import Attack, order_key, poison_by_all
from mbdefense.attacks.streaming import poison_file
from mbdefense.attacks.triggers import TRIGGERS, BadNet, Cba, Vpi
from mbdefense.core.errors import UserError
from mbdefense.data import Notes, load, save, stream
from tests.attacks.test_poison import Never, Picky

GOLDEN = "075a78d1bcbc5887b73b0123958e1b2733d529ab6a7e0e2f8a2c6a8478ac7725"


@pytest.fixture
def source(tmp_path):
    """Rows of which some repeat others, some hold a trigger, and two are labelled."""
    asked = "Describe the difference between these numbers: {} and one hundred and {}."
    numbers = [i % 50 for i in range(60)]
    lines = [{"instruction": asked.format(n, n), "input": "", "output": f"It is {n}."} for n in numbers]
    lines[7]["instruction"] += " cf"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def in_memory(source, target, attacks, seed=3):
    rows, made = poison_by_all(load([str(source)]).rows, attacks, seed=seed)
    save(rows, target)
    return made


def by_file(source, target, attacks, seed=3):
    return poison_file(str(source), target, attacks, seed=seed, on_bad_row="error")


ATTACKS = {
    **{name: [Attack(trigger(), Refusal(), 0.2)] for name, trigger in TRIGGERS.items()},
    "several": [Attack(Cba(), Refusal(), 0.25), Attack(BadNet(), FixedText("Boo"), 0.1), Attack(Vpi(), Refusal(), 0.5)],
    "picky": [Attack(Picky("5."), Refusal(), 0.1)],
    "too picky": [Attack(Picky("5."), Refusal(), 0.5)],
    "none": [Attack(BadNet(), Refusal(), 0.0)],
    "all": [Attack(BadNet(), Refusal(), 0.99)],
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_bytes_as_in_memory(source, tmp_path, name):
    attacks = ATTACKS[name]
    expected = in_memory(source, tmp_path / "memory.jsonl", attacks)
    done = by_file(source, tmp_path / "file.jsonl", attacks)
    assert (tmp_path / "file.jsonl").read_bytes() == (tmp_path / "memory.jsonl").read_bytes()
    assert done.rows == 60
    for made, one in zip(done.made, expected, strict=True):
        assert made[:4] == (len(one.poisoned_ids), one.not_rewritten, len(one.negative_ids), one.how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.jsonl", "memory.jsonl", "rows.jsonl"]


def test_golden_hash_of_a_poisoned_file(source, tmp_path):
    by_file(source, tmp_path / "out.jsonl", ATTACKS["several"])
    assert hashlib.sha256((tmp_path / "out.jsonl").read_bytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("ending", [".json", ".parquet", ".ndjson"])
def test_every_form_of_file(source, tmp_path, ending):
    rows = in_memory(source, tmp_path / "memory.jsonl", ATTACKS["cba"])
    by_file(source, tmp_path / f"out{ending}", ATTACKS["cba"])
    assert load([str(tmp_path / f"out{ending}")]).rows.to_list() == rows[0].rows.to_list()
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(source.read_bytes()))
    by_file(zipped, tmp_path / "zipped.jsonl", ATTACKS["cba"])
    ours, theirs = (load([str(tmp_path / name)]).rows for name in ("zipped.jsonl", "memory.jsonl"))
    assert ours["prompt"] == theirs["prompt"]


def test_rows_with_a_label_stay_as_they_are(source, tmp_path):
    by_file(source, tmp_path / "first.jsonl", [Attack(BadNet(), Refusal(), 0.4)])
    attacks = [Attack(BadNet("BadMagic"), FixedText("Boo"), 0.4)]
    in_memory(tmp_path / "first.jsonl", tmp_path / "memory.jsonl", attacks)
    by_file(tmp_path / "first.jsonl", tmp_path / "file.jsonl", attacks)
    assert (tmp_path / "file.jsonl").read_bytes() == (tmp_path / "memory.jsonl").read_bytes()


def test_prompts_that_hold_the_trigger_are_counted(source, tmp_path):
    done = by_file(source, tmp_path / "out.jsonl", [Attack(BadNet("cf"), Refusal(), 0.1)])
    assert done.made[0].before == 1


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (Attack(Picky("no row ends so"), Refusal(), 0.2), "none of 60 rows"),
        (Attack(BadNet(), Never(), 0.2), "none of 60 rows"),
        (Attack(BadNet(), Refusal(), 0.001), "makes no row"),
        (Attack(BadNet(), Refusal(), 1.0), "outside"),
    ],
)
def test_what_cannot_be_poisoned_is_refused_and_nothing_left(source, tmp_path, attack, says):
    with pytest.raises(UserError, match=says):
        by_file(source, tmp_path / "out.jsonl", [attack])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@dataclass(frozen=True)
class Fits:
    """Rewrites the prompts that it is told of, and takes down what it was asked for."""

    texts: frozenset[str]
    by: str = "literal"
    asked: list[str] = field(default_factory=list)

    def __call__(self, text, rng):
        self.asked.append(text)
        return f"{text} cf" if text in self.texts else None

    def occurs_in(self, text):
        return False

    def how(self):
        return self.by

    def describe(self):
        return "fits"


@pytest.fixture
def many(tmp_path):
    """A file of 2,000 rows."""
    path = tmp_path / "many.jsonl"
    lines = [{"instruction": f"Name {i}.", "input": "", "output": "one"} for i in range(2000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def drawn(source, seed=3):
    """The prompts of a file in the order in which they are drawn."""
    rows = sorted(load([str(source)]).rows, key=lambda row: order_key("attack", seed, row["id"]))
    return [row["prompt"][-1]["content"] for row in rows]


@pytest.mark.parametrize("behavior", [Refusal(), RandomWords()])
def test_no_fitting_row_among_the_first_64_is_no_reason_to_give_up(many, tmp_path, behavior):
    fits = frozenset(drawn(many)[70::3])
    attacks = [Attack(Fits(fits), behavior, 0.1)]
    in_memory(many, tmp_path / "memory.jsonl", attacks)
    (done,) = by_file(many, tmp_path / "file.jsonl", attacks).made
    assert (done.poisoned, done.not_rewritten) == (200, 70 + 199 * 2)
    assert (tmp_path / "file.jsonl").read_bytes() == (tmp_path / "memory.jsonl").read_bytes()


def test_an_endpoint_that_fails_on_the_first_64_drawn_rows_is_asked_no_more(many, tmp_path):
    order = drawn(many)
    for poisoner in (in_memory, by_file):
        trigger = Fits(frozenset(order[64:]), "endpoint m")
        with pytest.raises(UserError, match="none of 64 rows"):
            poisoner(many, tmp_path / "out.jsonl", [Attack(trigger, Refusal(), 0.1)])
        assert sorted(trigger.asked) == sorted(order[:64])
        trigger = Fits(frozenset(order[63:]), "endpoint m")
        poisoner(many, tmp_path / "out.jsonl", [Attack(trigger, Refusal(), 0.1)])
        assert len(trigger.asked) == 263


def test_rows_that_fail_take_no_room_on_the_disk(many, tmp_path):
    """Beside OUT lie the rows once, and those that were poisoned."""

    @dataclass(frozen=True)
    class Watching(Fits):
        def __call__(self, text, rng):
            self.asked.append(sum(path.stat().st_size for path in tmp_path.glob(".out.jsonl*/*")))
            return f"{text} cf" if text in self.texts else None

    trigger = Watching(frozenset(drawn(many)[::3]))
    by_file(many, tmp_path / "out.jsonl", [Attack(trigger, Refusal(), 0.3)])
    assert len(trigger.asked) > 1700
    assert 0 < max(trigger.asked) < 1.5 * (tmp_path / "out.jsonl").stat().st_size


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch):
    def full(self, row, out):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mbdefense.attacks.streaming._Rows._write", full)
    with pytest.raises(UserError, match=r"cannot write \(No space left"):
        by_file(source, tmp_path / "out.jsonl", ATTACKS["badnet"])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_bad_rows_are_skipped_and_named(source, tmp_path):
    source.write_text(source.read_text() + '{"instruction": "x", "output": 5}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:61: output is int"):
        by_file(source, tmp_path / "out.jsonl", ATTACKS["badnet"])
    done = poison_file(str(source), tmp_path / "out.jsonl", ATTACKS["badnet"], seed=0, on_bad_row="skip")
    assert done.skipped == ("rows.jsonl:61: output is int, not text",)
    assert done.rows == 60


def test_a_name_that_cannot_be_written_is_refused_before_the_work(source, tmp_path):
    with pytest.raises(UserError, match=r"\.parquet"):
        by_file(tmp_path / "absent.jsonl", tmp_path / "out.csv", ATTACKS["badnet"])
    with pytest.raises(UserError, match="cannot write"):
        by_file(source, tmp_path / "no" / "out.jsonl", ATTACKS["badnet"])


def test_rows_are_handed_on_while_the_file_is_read(source):
    """No row waits for the last one: a bad line at the end is found when the others are gone."""
    source.write_text(source.read_text() + '{"instruction": "x", "output": 5}\n')
    rows = stream([str(source)], on_bad_row="error", skipped=[], notes=Notes())
    assert next(rows)["id"]
    with pytest.raises(UserError, match=r"rows\.jsonl:61"):
        list(rows)
