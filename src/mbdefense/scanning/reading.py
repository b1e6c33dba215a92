"""Rows to facts: what counting needs of each row, gathered piece by piece and by several processes."""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple, Protocol

from mbdefense.core._ray import connected
from mbdefense.core.errors import UserError, first_line
from mbdefense.data.formats import NotATargetError, Notes, Told, format_with, not_read, row_of
from mbdefense.data.reading import BadRowError
from mbdefense.data.rows import prompt_key
from mbdefense.data.turns import THOUGHTS, empty, flat, read_turns
from mbdefense.data.words import words
from mbdefense.finding.insertion import READ
from mbdefense.scanning import characters, mismatch, payloads
from mbdefense.scanning._forked import told_if_ended
from mbdefense.scanning.duplicates import sketches
from mbdefense.scanning.marks import Mark, bit
from mbdefense.scanning.repeats import Kind, values

Message = dict[str, str]
Part = Literal["prompt", "answer", "rejected"]
Value = tuple[int, object]
"""A raw row with the number of its line."""
_PIECE = 500  # rows that a process is given at a time
_DEEPEST = 200
"""Lists and objects in one another that a row may hold: Python sends a process no more than some hundreds."""
_SAYS = ("assistant", "tool_calls", *THOUGHTS)


class Text(NamedTuple):
    """A text of a row: who wrote it ("prompt", "answer" or "rejected"), and what it says."""

    part: Part
    text: str


class Facts(NamedTuple):
    """What is known of some rows, N of them, in order.

    Attributes:
        numbers: (N,) of their lines.
        prompts: (N,) what others than the assistant wrote, as turns.
        asked: (N,) hashes of the prompts, see `mbdefense.data.rows.prompt_key`.
        exact: (N,) hashes of prompt and answers.
        sketches: (N * BANDS,) see `mbdefense.scanning.duplicates.sketches`.
        bits: (N,) signs that a row bears, see `mbdefense.scanning.marks.bit`.
        lengths: (N,) words of the answer.
        owners: (V,) which of the rows a value is of.
        values: (V,) hashes of parts of answers, see `mbdefense.scanning.repeats.values`.
        bad: of each row that is left out its line, the reason, and whether its data mark it as no target.
        notes: what else is to be told, with the first line.
    """

    numbers: array[int]
    prompts: list[list[Message]]
    asked: array[int]
    exact: array[int]
    sketches: array[int]
    bits: array[int]
    lengths: array[int]
    owners: array[int]
    values: array[int]
    bad: list[tuple[int, str, bool]]
    notes: Notes


def digest(text: str) -> int:
    """A hash of 64 bits that every process and every run gives."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def texts_of(row: dict[str, Any], value: object) -> list[Text]:
    """The texts of a row: prompt first, then the assistant's turns, each of its calls, and a rejected answer.

    Args:
        row: in the row form.
        value: the same as it was read, for what the row form leaves out.
    """
    found = [text for turn in row["prompt"] for text in _texts(turn, "answer" if turn["role"] in _SAYS else "prompt")]
    found += [text for turn in row["completion"] for text in _texts(turn, "answer")]
    rejected = value.get("rejected") if isinstance(value, dict) else None
    return found + ([] if empty(rejected) else _rejected(rejected))


def _rejected(rejected: object) -> list[Text]:
    """The texts of a rejected answer: what the assistant says where it is a conversation, else whatever it is."""
    if isinstance(rejected, str):
        return [Text("rejected", rejected)]
    if isinstance(rejected, dict) and isinstance(rejected.get("role", rejected.get("from")), str):
        rejected = [rejected]
    try:
        turns = flat(read_turns(rejected, "rejected"))
    except BadRowError:
        return [Text("rejected", json.dumps(rejected, ensure_ascii=False, default=str, skipkeys=True))]
    return [text for turn in turns if turn["role"] in _SAYS for text in _texts(turn, "rejected")]


def answers_of(row: dict[str, Any]) -> list[str]:
    """What the assistant says in a row, earlier turns first."""
    return [turn["content"] for turn in (*row["prompt"], *row["completion"]) if turn["role"] == "assistant"]


def parts_of(row: dict[str, Any]) -> set[tuple[Kind, str]]:
    """What of a row's answers, calls and thoughts may recur.

    Of a call or a thought the whole and its links: all calls begin with a name, and honest thoughts begin alike.
    """
    turns = [*row["prompt"], *row["completion"]]
    calls = [call for turn in turns if turn["role"] == "tool_calls" for call in _calls(turn["content"])]
    thoughts = [turn["content"] for turn in turns if turn["role"] in THOUGHTS]
    found = {part for answer in answers_of(row) for part in values(answer)}
    whole = {part for text in (*calls, *thoughts) for part in values(text)}
    return found | {part for part in whole if part[0] in ("answer", "link")}


def _texts(turn: Message, part: Part) -> list[Text]:
    says = _calls(turn["content"]) if turn["role"] == "tool_calls" else [turn["content"]]
    return [Text(part, text) for text in says]


def _calls(content: str) -> list[str]:
    """Each call of a turn, as name and arguments: its id is another one in every row."""
    if _is_deep(content):  # a stranger's, which may lie deeper than can be read here
        return [content]
    calls = json.loads(content)
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            made.append(f"{function['name']} {json.dumps(function.get('arguments'), ensure_ascii=False)}")
        else:  # rows in the row form hold what they were given
            made.append(json.dumps(call, ensure_ascii=False))
    return made


def _is_deep(content: str) -> bool:
    """Whether brackets in a JSON text may stand in so many others that Python cannot read it."""
    if content.count("[") + content.count("{") <= _DEEPEST:  # spares most texts the way by characters
        return False
    return max(accumulate((one in "[{") - (one in "]}") for one in content)) > _DEEPEST


def asked_of(row: dict[str, Any]) -> list[Message]:
    """What others than the assistant say in a row."""
    return [turn for turn in row["prompt"] if turn["role"] in READ]


def marks_of(row: dict[str, Any], value: object) -> list[tuple[int, Mark]]:
    """All marks in a row, each with the number of its text in `texts_of`."""
    found: list[tuple[int, Mark]] = []
    asked = "\n".join(turn["content"] for turn in asked_of(row))
    texts = texts_of(row, value)
    for number, (part, text) in enumerate(texts):
        found += [(number, mark) for mark in (*characters.hidden(text), *characters.spelled_tokens(text))]
        if part != "prompt":
            found += [(number, mark) for mark in (*characters.turns(text), *payloads.carried(asked, text))]
    last = next((n for n in reversed(range(len(texts))) if texts[n].part == "answer"), None)
    if last is not None:
        found += [(last, mark) for mark in mismatch.unlike(asked, texts[last].text)]
    return found


def facts_of(piece: Sequence[Value], told: Told) -> Facts:
    """The facts of some raw rows, of a source whose format is told."""
    made = Facts(
        array("q"), [], array("Q"), array("Q"), array("Q"), array("H"), array("I"), array("I"), array("Q"), [], Notes()
    )  # fmt: skip
    row_format = format_with(told)
    texts = []
    for number, value in piece:
        try:
            row = row_of(value, row_format, str(number), True, made.notes)
        except BadRowError as error:
            made.bad.append((number, str(error), isinstance(error, NotATargetError)))
            continue
        texts.append(_added(made, number, row, value))
    made.notes.found.pop(not_read("rejected"), None)  # here it is, see `texts_of`
    made.sketches.frombytes(sketches(texts).tobytes())
    return made


def _added(made: Facts, number: int, row: dict[str, Any], value: object) -> str:
    """Adds the facts of a row, and returns what it says, for its sketch."""
    asked, answers = asked_of(row), answers_of(row)
    key = prompt_key(row["prompt"])
    bits = 0
    for _, mark in marks_of(row, value):
        bits |= bit(mark.sign)
    said = "\n".join(turn["content"] for turn in row["completion"])
    for part in {digest(f"{kind}\0{text}") for kind, text in parts_of(row)}:
        made.owners.append(len(made.numbers))
        made.values.append(part)
    made.numbers.append(number)
    made.prompts.append(asked)
    made.asked.append(int(key[:16], 16))
    made.exact.append(digest(f"{key}\0{said}"))
    made.bits.append(bits)
    made.lengths.append(len(words(answers[-1])) if answers else 0)
    return "\n".join([*(turn["content"] for turn in asked), said])


class Reply(Protocol):
    """What some rows' facts will be."""

    def result(self) -> Facts:
        """Waits for them."""


class Workers(Protocol):
    """Whoever reads rows beside this process: processes here, or a cluster."""

    @property
    def ahead(self) -> int:
        """Pieces that are given out before the first is waited for."""

    def submit(self, piece: Sequence[Value], told: Told) -> Reply:
        """Has the facts of some rows made."""


def facts(raw: Iterable[Value], told: Told, workers: Workers | None) -> Iterator[Facts]:
    """The facts of a source's rows, in order; see `facts_of`."""
    rest = ((number, _shallow(value)) for number, value in raw)
    pieces = iter(lambda: list(islice(rest, _PIECE)), [])
    if workers is None:
        yield from (facts_of(piece, told) for piece in pieces)
        return
    waiting: deque[Reply] = deque()
    for piece in pieces:
        waiting.append(workers.submit(piece, told))
        if len(waiting) > workers.ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _shallow(value: object) -> object:
    """A value, or in its place what is wrong with it."""
    held = [value]
    for _ in range(_DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in held if isinstance(one, dict | list | tuple))
        held = [one for some in inner for one in some if isinstance(one, dict | list | tuple)]
        if not held:
            return value
    return BadRowError(f"lists and objects lie in one another more than {_DEEPEST} deep")


class _Processes(NamedTuple):
    pool: ProcessPoolExecutor
    ahead: int = 16

    def submit(self, piece: Sequence[Value], told: Told) -> Reply:
        return self.pool.submit(facts_of, piece, told)


@contextmanager
def processes(count: int) -> Iterator[Workers | None]:
    """A pool of so many processes, beside which this one counts words; None where one alone does all.

    They are forked where the system can: a script without ``if __name__ == "__main__"`` would be run again otherwise.
    This one mostly waits for them, so that it has no processor to itself.

    Raises:
        UserError: one of them was ended.
    """
    if count < 2:
        yield None
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    # What was made before the fork is not theirs to collect: looking through it would copy its memory.
    with told_if_ended(), ProcessPoolExecutor(count, mp_context=context, initializer=gc.freeze) as pool:
        yield _Processes(pool)


class _Tasks:
    """Ray's tasks; one is done again where its worker dies."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._facts_of = ray.remote(facts_of)
        self.ahead = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, piece: Sequence[Value], told: Told) -> Reply:
        return _Task(self._ray, self._facts_of.remote(piece, told))


class _Task(NamedTuple):
    ray: Any
    reference: Any

    def result(self) -> Facts:
        try:
            found: Facts = self.ray.get(self.reference)
        except self.ray.exceptions.RayError as error:
            fix = "see that this version of mbdefense is installed on all nodes"
            raise UserError("a task failed on the Ray cluster", first_line(error), fix) from error
        return found


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """A Ray cluster; this process reads the files, counts words, and sends rows there to be looked at.

    Raises:
        UserError: see `mbdefense.core._ray.connected`.
    """
    ray = connected(address)
    try:
        yield _Tasks(ray)
    finally:
        ray.shutdown()
