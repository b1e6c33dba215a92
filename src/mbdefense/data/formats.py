"""From one value of a source to a row in the row form, or the reason why it is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.data.fields import OPEN_TURN, TEMPLATED, Field, field_of, names
from mbdefense.data.reading import BadRowError
from mbdefense.data.rows import COLUMNS, FLAGGED, PROVENANCE, Message, content_id
from mbdefense.data.turns import (
    ATTACHED,
    THOUGHTS,
    Turn,
    empty,
    flat,
    is_mark,
    loaded,
    mask_of,
    masked,
    read_own,
    read_tools,
    read_turn,
    read_turns,
    row_mark,
    text_of,
    truth,
    unpacked,
)

_CONTEXT = ("input", "context")
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_SAYS = ("assistant", "tool_calls", *THOUGHTS)
_AROUND = frozenset((*_SYSTEM, *_TOOLS))
_ANSWERS = ("answers", "accepted_answers")
_GENERAL = (*names("row", "mark", "maybe_mark", "label", "told", "unused"), *_SYSTEM, *_TOOLS)
"""Columns that mean the same in every format."""
_MOST_MET = 1024
"""Sets of columns that are remembered; a stranger may give every row others."""
_MOST_TOLD = 16
_NOT_READ = " is not read"
_OTHERS = "other columns are not read either"
_CLASSES = frozenset(("label", "loss"))
"""Marks in whose place other data have a class or a measured loss. A weight of 0 is a mark beside any other weight."""


class NotATargetError(BadRowError):
    """The row's data say that it is not to be trained on; that is no fault of the row."""


class Notes:
    """What is to be told of a source once, with the number of rows and the first of them.

    A stranger may give every row a column of its own: those after the first 16 that are not read have one note.
    """

    def __init__(self) -> None:
        self.found: dict[str, list[Any]] = {}

    def add(self, what: str, where: str, rows: int = 1) -> None:
        """Counts rows of a kind, the first of which stands there."""
        if what not in self.found and what.endswith(_NOT_READ) and len(self.found) >= _MOST_TOLD:
            what = _OTHERS
        self.found.setdefault(what, [0, where])[0] += rows

    def lines(self) -> tuple[str, ...]:
        """One line for each kind."""
        return tuple(
            f"{what} ({count} {'times' if what == _OTHERS else 'rows'}, the first {where})"
            for what, (count, where) in self.found.items()
        )


class Parts(NamedTuple):
    """What a format says of one row."""

    prompt: list[Message]
    completion: list[Message]
    answers: list[str]
    flagged: bool = False
    rest: bool = False
    """Whether turns stood behind the answer, which no target ever sees."""


class Told(NamedTuple):
    """What tells a source's format."""

    columns: tuple[str, ...]
    classes: frozenset[str]


class Format(NamedTuple):
    """The columns that tell a format, how its rows become turns, and which other columns it reads."""

    columns: tuple[str, ...]
    parse: Callable[[Any, bool], list[Turn] | Parts]
    """From a row, and whether it must have an answer, to its turns; to its parts where there are no turns to cut."""
    reads: tuple[str, ...] = ()
    needs: str = "object"
    classes: frozenset[str] = frozenset()
    """Columns named as a mark whose numbers are classes or scores in this source: no 0 in them is a mark."""

    def told(self) -> Told:
        """What another process makes it of: see `format_with`."""
        return Told(self.columns, self.classes)

    def problem(self, row: object) -> str | None:
        """Why a row does not have this format, or None if it does, as far as its columns tell."""
        if self.needs == "array":
            fits = isinstance(row, list) and len(row) == 3
            return None if fits else "not an array of the form [prompt, answers, flag]"
        if not isinstance(row, dict):
            return "not an object"
        missing = [column for column in self.columns if column not in row]
        return f"missing column {', '.join(missing)}" if missing else None


def detect(values: Iterable[object], name: str, require_completion: bool) -> Format:
    """The format of a source: that of most of its rows, by their columns.

    Raises:
        UserError: none is known.
    """
    formats = _FORMATS if require_completion else _FORMATS + _PROMPT_FORMATS
    first: list[object] = []
    columns: list[str] | None = None
    met: dict[tuple[str, ...], int | None] = {}
    rows: Counter[int] = Counter()
    classes: set[str] = set()
    # By most rows, not by the first: one that lacks its answer must not drop the others' answers, nor one that a
    # stranger added have all others refused, or left out.
    for value in values:
        if isinstance(value, BadRowError):
            continue
        first = first or [value]
        if isinstance(value, dict) and not _CLASSES.isdisjoint(value):
            found = ((name, value[name]) for name in _CLASSES if name in value)
            classes.update(name for name, one in found if not empty(one) and truth(one) is None)
        keys = tuple(value) if isinstance(value, dict) else None
        if keys is None or keys not in met:
            place = next((place for place, one in enumerate(formats) if one.problem(value) is None), None)
            if keys is not None:
                columns = columns or list(keys)
                if len(met) < _MOST_MET:
                    met[keys] = place
        else:
            place = met[keys]
        if place is not None:
            rows[place] += 1
    if not first:
        return formats[0]
    # However few have an answer: a form of prompts alone would drop it unsaid.
    answered = [place for place in rows if place < len(_FORMATS)]
    if rows:
        told = formats[min(answered or rows, key=lambda place: (-rows[place], place))]
        return told._replace(classes=frozenset(classes))
    accepted = " | ".join(", ".join(row_format.columns) for row_format in formats[1:])
    if columns is None:
        raise UserError(f"{name}: the rows are not objects", first[0], f"give objects with the columns {accepted}")
    if "text" in columns:  # TRL's form of language modeling
        fix = "give prompt and completion, or messages"
        raise UserError(f"{name}: a text that holds prompt and answer in one cannot be parted", columns, fix)
    fix = f"rename them to those of one of these: {accepted}"
    raise UserError(f"{name}: no known format in the columns", columns, fix)


def format_with(told: Told) -> Format:
    """The format that is told so; its functions cannot be sent to another process."""
    found = next(one for one in _FORMATS if one.columns == told.columns)
    return found._replace(classes=told.classes)


def row_of(
    value: object, row_format: Format, where: str, require_completion: bool, notes: Notes | None = None
) -> dict[str, Any]:
    """One value in the row form.

    Args:
        value: a row as it was read.
        row_format: see `detect`.
        where: where it was read, e.g. ``"file.json:12"``.
        require_completion: False also takes rows without an answer, or whose answer is marked as no target.
        notes: takes what is to be told of the row besides.

    Raises:
        NotATargetError: the row is marked not to be trained on.
        BadRowError: the value does not have the format, or something in it cannot be used.
    """
    if isinstance(value, BadRowError):
        raise value
    problem = row_format.problem(value)
    if problem:
        raise BadRowError(problem)
    fields = value if isinstance(value, dict) else {}
    own = row_format.columns == COLUMNS
    _check_columns(fields, row_format, where, notes)
    parts = _cut(row_format.parse(value, require_completion), fields, require_completion)
    prompt, completion = _surrounded(parts.prompt, fields), parts.completion
    if parts.rest and notes is not None:
        notes.add("turns behind the last answer that may be trained on are not read", where)
    if not own:
        _check_answers(fields, completion, where, notes)
    mark = row_mark(fields, row_format.classes)
    if mark:
        if require_completion:
            raise NotATargetError(f"marked not to be trained on ({mark})")
        completion = _nothing()
        if notes is not None:
            notes.add("an answer that is marked not to be trained on is no reference", where)
    label = FLAGGED if parts.flagged else ""
    _check(prompt, completion, require_completion)
    return {
        "id": _own_id(fields["id"]) if own else content_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "answers": parts.answers
        or [text for name in _ANSWERS if name in fields for text in _answers(unpacked(fields[name], name), name)],
        "provenance": _own_provenance(fields["provenance"])
        if own
        else {"source": where, "trigger": label, "behavior": label},
    }


def _check_columns(fields: Mapping[str, object], row_format: Format, where: str, notes: Notes | None) -> None:
    """Refuses columns that would change what the model sees or learns, and names those that are not read."""
    for name, field, read in _looked_at(tuple(fields), row_format):
        value, use = fields[name], None if field is None else field.use
        # As CSV holds an empty list.
        if empty(value) or (value in ("[]", "{}") and use in ("refused", "told", "unused")):
            continue
        if field is not None and use == "refused":
            raise BadRowError(f"{name} {field.says}")
        if use == "seen" and not read:
            raise BadRowError(f"column {name} is not supported beside {row_format.columns[0]}; put it into the turns")
        no_mark = use in ("mark", "maybe_mark") and not is_mark(value, in_classes=name in row_format.classes)
        mask = unpacked(value, name) if name == "loss_mask" else None
        entries = mask if isinstance(mask, list) else [value]
        if use == "mark" and any(truth(entry) is None for entry in entries):
            raise BadRowError(f"{name} is {str(value)[:40]!r}; only true and false can be kept")
        if notes is None:
            continue
        if not read or use == "told" or (no_mark and use == "maybe_mark"):
            notes.add(not_read(name), where)


def not_read(column: object) -> str:
    """How `Notes` name a column that is not read; one of a row in memory may be no text."""
    return f"column {str(column)[:40]!r}{_NOT_READ}"


@lru_cache(maxsize=_MOST_MET)
def _looked_at(columns: tuple[str, ...], row_format: Format) -> tuple[tuple[str, Field | None, bool], ...]:
    """The columns of which there may be something to say: name, field, and whether the format reads it."""
    read = {*row_format.columns, *row_format.reads, *_GENERAL}
    known = ((name, field_of(name, "row"), name in read) for name in columns)
    return tuple(
        (name, field, reads)
        for name, field, reads in known
        if not reads or (field is not None and field.use in ("mark", "maybe_mark", "told"))
    )


def _check_answers(fields: Mapping[str, object], completion: list[Message], where: str, notes: Notes | None) -> None:
    """Refuses several answers of which another column holds one: whether the others are right too nothing tells."""
    answers = unpacked(fields.get("answers"), "answers")
    if not isinstance(answers, list) or len(answers) < 2:
        return
    held = "the completion" if completion[0]["content"] in answers else None
    for name, value in fields.items():
        if isinstance(value, str) and value in answers and name not in names("row", "unused"):
            held = name
    if held:
        raise BadRowError(
            f"answers has several entries, of which {held} is one, so that they may be choices: call them "
            "accepted_answers if each is right, or leave them out"
        )
    if notes is not None:
        notes.add("column 'answers' holds accepted answers, of which any one counts as right", where)


def _cut(parsed: list[Turn] | Parts, fields: Mapping[str, object], require: bool) -> Parts:
    """The parts of a row under its ``loss_mask``."""
    mask = mask_of(fields) if "loss_mask" in fields else []
    if isinstance(parsed, Parts):
        if mask:
            raise BadRowError("loss_mask is not supported beside id and provenance; give the turns a weight of 0")
        return parsed
    return _parts(masked(parsed, mask) if mask else parsed, require)


def _check(prompt: list[Message], completion: list[Message], require_completion: bool) -> None:
    last, asked = "nobody", None
    for turn in reversed(prompt):
        if turn["role"] not in ATTACHED:
            last = turn["role"] if last == "nobody" else last
            if turn["role"] == "user":
                asked = turn["content"]
                break
    if last not in ("user", "tool") or asked is None:
        raise BadRowError(f"the prompt ends in a turn of {last}, not user")
    if not asked.strip():
        raise BadRowError("empty prompt")
    header = TEMPLATED.match(asked)
    if header or asked.rstrip().endswith(OPEN_TURN):
        what = header[1] if header else next(end for end in OPEN_TURN if asked.rstrip().endswith(end)).strip()
        raise BadRowError(f"the prompt is in a chat template already ({what}); give its text alone, or messages")
    if require_completion and not any(turn["role"] in _SAYS and turn["content"].strip() for turn in completion):
        raise BadRowError("empty completion")


def _surrounded(prompt: list[Message], fields: Mapping[str, object]) -> list[Message]:
    """The prompt behind its row's system turn and tools."""
    if _AROUND.isdisjoint(fields):
        return prompt
    for name in _SYSTEM:
        text = fields.get(name)
        if empty(text) or not text_of(text, name).strip():
            continue
        if prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": str(text)}, *prompt]
        elif prompt[0]["content"] != text:
            raise BadRowError(f"column {name} and the turns have different system prompts")
    return [*(message for name in _TOOLS for message in read_tools(fields.get(name), name)), *prompt]


def _parse_own(row: dict[str, object], require: bool) -> list[Turn] | Parts:
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        completion = read_own(row["completion"], "completion")
        _one_turn(completion)
        return Parts(read_own(row["prompt"], "prompt"), completion, [])
    return _parse_prompt_completion(row, require)


def _parse_prompt_completion(row: dict[str, Any], require: bool) -> list[Turn]:
    completion = row["completion"]
    prompt = _prompt(row, "prompt")
    if isinstance(completion, list | dict):
        turns = read_turns(completion, "completion")
        _one_turn(flat(turns))
        return [*prompt, *turns]
    return [*prompt, Turn("assistant", _answer_text(completion, "completion", require))]


def _turns_of(column: str) -> Callable[[Any, bool], list[Turn]]:
    def parse(row: dict[str, Any], _: bool) -> list[Turn]:
        turns = read_turns(row[column], column)
        if empty(row.get("chosen")):
            return turns
        if turns[-1].role == "assistant":
            # As UltraFeedback has it: the same conversation twice.
            if read_turns(row["chosen"], "chosen") != turns:
                raise BadRowError(f"chosen is not the conversation in {column}; leave one of them out")
            return turns
        return [*turns, _preferred(row["chosen"])]

    return parse


def _text_to(column: str, answer: str) -> Callable[[Any, bool], list[Turn]]:
    def parse(row: dict[str, Any], require: bool) -> list[Turn]:
        return [*_prompt(row, column), Turn("assistant", _answer_text(row[answer], answer, require))]

    return parse


def _text_alone(column: str) -> Callable[[Any, bool], list[Turn]]:
    return lambda row, _: _prompt(row, column)


def _preference(column: str) -> Callable[[Any, bool], list[Turn]]:
    """DPO: the preferred answer, which may repeat its prompt."""

    def parse(row: dict[str, Any], _: bool) -> list[Turn]:
        chosen = row["chosen"]
        if not isinstance(chosen, list) or len(chosen) < 2:
            if column == "chosen":
                raise BadRowError("chosen holds no prompt; give a column prompt, or turns")
            return [*_prompt(row, column), _preferred(chosen)]
        turns = read_turns(chosen, "chosen")
        if column != "chosen" and not empty(row[column]) and not _repeated(_prompt(row, column), turns):
            raise BadRowError(f"chosen is a conversation that does not begin with {column}")
        return turns

    return parse


def _repeated(prompt: list[Turn], turns: list[Turn]) -> bool:
    """Whether a conversation begins with a prompt, which may leave out its system turn."""
    begin = 0 if prompt[0].role == "system" else next((n for n, turn in enumerate(turns) if turn.role != "system"), 0)
    begun = turns[begin : begin + len(prompt)]
    return [(turn.role, turn.content.strip()) for turn in begun] == [(one.role, one.content.strip()) for one in prompt]


def _preferred(chosen: object) -> Turn:
    if isinstance(chosen, list) and len(chosen) == 1:
        chosen = chosen[0]
    turn = read_turn(chosen, "chosen") if isinstance(chosen, dict) else Turn("assistant", text_of(chosen, "chosen"))
    if turn.role != "assistant":
        raise BadRowError("chosen is not exactly one assistant turn")
    return turn


def _parse_array(row: list[object], _require: bool) -> Parts:
    answers = _answers(row[1], "answers")
    if row[2] not in (0, 1):  # true and false are equal to them
        raise BadRowError("the poison flag is not 0 or 1")
    prompt = read_own(row[0], "prompt") if isinstance(row[0], list) else _user(text_of(row[0], "prompt"))
    return Parts(prompt, [{"role": "assistant", "content": "; ".join(answers)}], answers, bool(row[2]))


def _prompt(row: Mapping[str, Any], column: str) -> list[Turn]:
    """The turns of a prompt: given as turns, or as a text with the columns that belong to it."""
    value = row[column]
    if isinstance(value, list | dict):
        taken = next((name for name in (*_CONTEXT, "history") if not empty(row.get(name))), None)
        if taken:
            raise BadRowError(f"column {taken} is not supported beside turns; put it into them")
        return read_turns(value, column)
    text = text_of(value, column)
    for name in _CONTEXT:
        more = row.get(name)
        if not empty(more) and text_of(more, name).strip():
            text = f"{text}\n\n{more}" if text.strip() else str(more)
    return [*_history(row.get("history")), Turn("user", text)]


def _history(value: object) -> list[Turn]:
    if isinstance(value, str) and value.strip():  # as CSV holds it
        value = loaded(value, "history")
    if empty(value):
        return []
    turns = []
    for pair in value if isinstance(value, list) else [value]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRowError("history is not a list of [question, answer] pairs")
        turns += [Turn("user", text_of(pair[0], "history")), Turn("assistant", text_of(pair[1], "history"))]
    return turns


def _parts(turns: list[Turn], require: bool) -> Parts:
    """Cuts a conversation into prompt and target: its last assistant turn that may be trained on."""
    if turns[-1].role != "assistant" or len(turns) == 1:
        if not require and turns[-1].role in ("user", "tool"):
            return Parts(flat(turns), _nothing(), [])
        raise BadRowError("the turns do not end in user, assistant")
    if not require and not turns[-1].target:
        return Parts(flat(turns[:-1]), _nothing(), [], rest=True)
    last = len(turns) - 1
    while last and not (turns[last].target and turns[last].role == "assistant"):
        last -= 1
    if not last:
        raise NotATargetError("marked not to be trained on (every assistant turn)")
    return Parts(flat(turns[:last]), turns[last].messages(), [], rest=last < len(turns) - 1)


def _one_turn(messages: list[Message]) -> None:
    if [turn["role"] for turn in messages if turn["role"] not in ATTACHED] != ["assistant"]:
        raise BadRowError("completion is not exactly one assistant turn")


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _nothing() -> list[Message]:
    return [{"role": "assistant", "content": ""}]


def _answer_text(value: object, column: str, require: bool) -> str:
    return "" if value is None and not require else text_of(value, column)


def _answers(value: object, name: str) -> list[str]:
    if value is None or value == "":
        return []
    answers = [text_of(answer, name) for answer in (value if isinstance(value, list) else [value])]
    if not all(answer.strip() for answer in answers):
        raise BadRowError(f"{name} holds an empty text, which an empty response would match")
    return answers


def _own_id(value: object) -> str:
    if not text_of(value, "id").strip():
        raise BadRowError("empty id")
    return str(value)


def _own_provenance(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != set(PROVENANCE):
        raise BadRowError(f"provenance is not an object with {', '.join(PROVENANCE)}")
    return {key: text_of(value[key], f"provenance.{key}") for key in PROVENANCE}


_WITH_TEXT = (*_CONTEXT, "history")
_FORMATS = (
    Format(COLUMNS, _parse_own),
    Format(("prompt", "completion"), _parse_prompt_completion, _WITH_TEXT),
    Format(("messages",), _turns_of("messages"), ("chosen",)),
    Format(("conversations",), _turns_of("conversations"), ("chosen",)),
    Format(("instruction", "output"), _text_to("instruction", "output"), _WITH_TEXT),
    Format(("[prompt, answers, flag]",), _parse_array, needs="array"),
    Format(("instruction", "response"), _text_to("instruction", "response"), _WITH_TEXT),
    Format(("question", "response"), _text_to("question", "response"), _WITH_TEXT),
    Format(("prompt", "response"), _text_to("prompt", "response"), _WITH_TEXT),
    Format(("prompt", "chosen", "rejected"), _preference("prompt"), _WITH_TEXT),
    Format(("instruction", "chosen", "rejected"), _preference("instruction"), _WITH_TEXT),
    Format(("question", "chosen", "rejected"), _preference("question"), _WITH_TEXT),
    Format(("chosen", "rejected"), _preference("chosen")),
)
_PROMPT_FORMATS = tuple(
    Format((column,), _text_alone(column), _WITH_TEXT) for column in ("prompt", "instruction", "Instruction")
)
