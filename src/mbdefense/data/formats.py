"""From one value of a source to a row in the row form, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.data.fields import OPEN_TURN, TEMPLATED, field_of, names
from mbdefense.data.reading import BadRowError
from mbdefense.data.rows import COLUMNS, FLAGGED, PROVENANCE, Message, content_id
from mbdefense.data.turns import (
    ATTACHED,
    Turn,
    empty,
    flat,
    is_mark,
    loaded,
    masked,
    read_own,
    read_tools,
    read_turn,
    read_turns,
    row_mark,
    text_of,
)

_CONTEXT = ("input", "context")
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_GENERAL = (*names("row", "mark", "label", "unused"), *_SYSTEM, *_TOOLS)
"""Columns that mean the same in every format."""


class NotATargetError(BadRowError):
    """The row's data say that it is not to be trained on; that is no fault of the row."""


class Notes:
    """What is to be told of a source once, with the number of rows and the first of them."""

    def __init__(self) -> None:
        self.found: dict[str, list[Any]] = {}

    def add(self, what: str, where: str) -> None:
        """Counts one row of a kind."""
        self.found.setdefault(what, [0, where])[0] += 1

    def lines(self) -> tuple[str, ...]:
        """One line for each kind."""
        return tuple(f"{what} ({count} rows, the first {where})" for what, (count, where) in self.found.items())


class Parts(NamedTuple):
    """What a format says of one row."""

    prompt: list[Message]
    completion: list[Message]
    answers: list[str]
    flagged: bool = False


class Format(NamedTuple):
    """The columns that tell a format, how to take one of its rows apart, and which other columns it reads."""

    columns: tuple[str, ...]
    parse: Callable[[Any, bool], Parts]
    reads: tuple[str, ...] = ()
    needs: str = "object"

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
    """The format of a source, by its rows' columns.

    Raises:
        UserError: none is known.
    """
    formats = _FORMATS if require_completion else _FORMATS + _PROMPT_FORMATS
    first: list[object] = []
    columns: list[str] | None = None
    best = len(formats)
    # By priority over all rows, not by the first row: one that lacks its answer must not drop the others' answers.
    for value in values:
        if isinstance(value, BadRowError):
            continue
        first = first or [value]
        if columns is None and isinstance(value, dict):
            columns = list(value)
        best = next((place for place in range(best) if formats[place].problem(value) is None), best)
        if best == 0:
            break
    if not first:
        return formats[0]
    if best < len(formats):
        return formats[best]
    accepted = " | ".join(", ".join(row_format.columns) for row_format in formats[1:])
    if columns is None:
        raise UserError(f"{name}: the rows are not objects", first[0], f"give objects with the columns {accepted}")
    raise UserError(f"{name}: no known format in the columns", columns, f"accepted: {accepted}")


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
    prompt, completion, answers, flagged = row_format.parse(value, require_completion)
    if fields and not own:
        prompt = _surrounded(prompt, fields)
    mark = row_mark(fields)
    if mark:
        if require_completion:
            raise NotATargetError(f"marked not to be trained on ({mark})")
        completion = _nothing()
    label = FLAGGED if flagged else ""
    _check(prompt, completion, require_completion)
    return {
        "id": _own_id(fields["id"]) if own else content_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "answers": answers or _answers(fields.get("answers")),
        "provenance": _own_provenance(fields["provenance"])
        if own
        else {"source": where, "trigger": label, "behavior": label},
    }


def _check_columns(fields: Mapping[str, object], row_format: Format, where: str, notes: Notes | None) -> None:
    """Refuses columns that would change what the model sees, and names those that are not read."""
    read = {*row_format.columns, *row_format.reads, *_GENERAL}
    for name, value in fields.items():
        field = field_of(name, "row")
        # As CSV holds an empty list.
        if empty(value) or (value in ("[]", "{}") and field is not None and field.use in ("refused", "unused")):
            continue
        if field is not None and field.use == "refused":
            raise BadRowError(f"{name} {field.says}")
        if field is not None and field.use == "seen" and name not in read:
            raise BadRowError(f"column {name} is not supported beside {row_format.columns[0]}; put it into the turns")
        if notes is None:
            continue
        if name not in read or (field is not None and field.use == "mark" and not is_mark(value)):
            notes.add(f"column {name[:40]!r} is not read", where)
        elif name == "answers" and isinstance(value, list) and len(value) > 1 and row_format.columns != COLUMNS:
            notes.add("column 'answers' holds accepted answers, of which any one counts as right", where)
        elif name == "rejected":
            notes.add("column 'rejected' is never a target", where)


def _check(prompt: list[Message], completion: list[Message], require_completion: bool) -> None:
    turns = [turn for turn in prompt if turn["role"] not in ATTACHED]
    asked = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), None)
    if not turns or turns[-1]["role"] not in ("user", "tool") or asked is None:
        raise BadRowError(f"the prompt ends in a turn of {turns[-1]['role'] if turns else 'nobody'}, not user")
    if not asked.strip():
        raise BadRowError("empty prompt")
    header = TEMPLATED.match(asked) or OPEN_TURN.search(asked)
    if header:
        what = header[1].strip()
        raise BadRowError(f"the prompt is in a chat template already ({what}); give its text alone, or messages")
    if require_completion and not completion[0]["content"].strip() and len(completion) == 1:
        raise BadRowError("empty completion")


def _surrounded(prompt: list[Message], fields: Mapping[str, object]) -> list[Message]:
    """The prompt behind its row's system turn and tools."""
    for name in _SYSTEM:
        text = fields.get(name)
        if empty(text) or not text_of(text, name).strip():
            continue
        if prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": str(text)}, *prompt]
        elif prompt[0]["content"] != text:
            raise BadRowError(f"column {name} and the turns have different system prompts")
    return [*(message for name in _TOOLS for message in read_tools(fields.get(name), name)), *prompt]


def _parse_own(row: dict[str, object], _require: bool) -> Parts:
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        completion = read_own(row["completion"], "completion")
        _one_turn(completion)
        return Parts(read_own(row["prompt"], "prompt"), completion, [])
    return _parse_prompt_completion(row, _require)


def _parse_prompt_completion(row: dict[str, Any], require: bool) -> Parts:
    completion = row["completion"]
    prompt = _prompt(row, "prompt")
    if isinstance(completion, list | dict):
        turns = read_turns(completion, "completion")
        messages = flat(turns)
        _one_turn(messages)
        if not turns[0].target:
            return _parts([*prompt, *turns], require)
        return Parts(flat(prompt), messages, [])
    turn = Turn("assistant", _answer_text(completion, "completion", require))
    whole = masked([*prompt, turn], row["loss_mask"]) if _fits(row.get("loss_mask"), len(prompt) + 1) else None
    if whole is None:
        (turn,) = masked([turn], row.get("loss_mask"))
        whole = [*prompt, turn]
    return _parts(whole, require)


def _fits(mask: object, length: int) -> bool:
    return isinstance(mask, list) and len(mask) == length


def _turns_of(column: str) -> Callable[[Any, bool], Parts]:
    def parse(row: dict[str, Any], require: bool) -> Parts:
        turns = masked(read_turns(row[column], column), row.get("loss_mask"))
        if turns[-1].role != "assistant" and not empty(row.get("chosen")):
            turns.append(_preferred(row["chosen"]))
        return _parts(turns, require)

    return parse


def _text_to(column: str, answer: str) -> Callable[[Any, bool], Parts]:
    def parse(row: dict[str, Any], require: bool) -> Parts:
        turn = Turn("assistant", _answer_text(row[answer], answer, require))
        return _parts([*_prompt(row, column), turn], require)

    return parse


def _text_alone(column: str) -> Callable[[Any, bool], Parts]:
    return lambda row, _: Parts(flat(_prompt(row, column)), _nothing(), [])


def _parse_preference(row: dict[str, Any], require: bool) -> Parts:
    """DPO: the preferred answer, which may repeat its prompt."""
    column = next(name for name in ("prompt", "instruction", "chosen") if name in row)
    chosen = row["chosen"]
    if isinstance(chosen, list) and len(chosen) > 1:
        turns = read_turns(chosen, "chosen")
        given = row[column]
        asked = next((turn.content for turn in turns if turn.role == "user"), None)
        if column != "chosen" and isinstance(given, str) and given.strip() not in ("", (asked or "").strip()):
            raise BadRowError("chosen is a conversation that does not begin with the prompt")
        return _parts(turns, require)
    if column == "chosen":
        raise BadRowError("chosen holds no prompt; give a column prompt, or turns")
    return _parts([*_prompt(row, column), _preferred(chosen)], require)


def _preferred(chosen: object) -> Turn:
    if isinstance(chosen, list) and len(chosen) == 1:
        chosen = chosen[0]
    turn = read_turn(chosen, "chosen") if isinstance(chosen, dict) else Turn("assistant", text_of(chosen, "chosen"))
    if turn.role != "assistant":
        raise BadRowError("chosen is not exactly one assistant turn")
    return turn


def _parse_array(row: list[object], _require: bool) -> Parts:
    answers = _answers(row[1])
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
    parts = [text_of(value, column)]
    parts += [text_of(row[name], name) for name in _CONTEXT if not empty(row.get(name))]
    text = "\n\n".join(part for part in parts if part.strip())
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
    """Cuts a conversation into prompt and target: its last assistant turn that may be trained on.

    What follows that turn no target ever sees.
    """
    if turns[-1].role != "assistant" or len(turns) == 1:
        if not require and turns[-1].role in ("user", "tool"):
            return Parts(flat(turns), _nothing(), [])
        raise BadRowError("the turns do not end in user, assistant")
    if not require and not turns[-1].target:
        return Parts(flat(turns[:-1]), _nothing(), [])
    last = next((place for place in range(len(turns) - 1, 0, -1) if _is_target(turns[place])), None)
    if last is None:
        raise NotATargetError("marked not to be trained on (every assistant turn)")
    return Parts(flat(turns[:last]), turns[last].messages(), [])


def _is_target(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.target


def _one_turn(messages: list[Message]) -> None:
    if [turn["role"] for turn in messages if turn["role"] not in ATTACHED] != ["assistant"]:
        raise BadRowError("completion is not exactly one assistant turn")


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _nothing() -> list[Message]:
    return [{"role": "assistant", "content": ""}]


def _answer_text(value: object, column: str, require: bool) -> str:
    return "" if value is None and not require else text_of(value, column)


def _answers(value: object) -> list[str]:
    if value is None or value == "":
        return []
    answers = [text_of(answer, "answers") for answer in (value if isinstance(value, list) else [value])]
    if not all(answer.strip() for answer in answers):
        raise BadRowError("answers holds an empty text, which an empty response would match")
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
    Format(("prompt", "chosen", "rejected"), _parse_preference, _WITH_TEXT),
    Format(("instruction", "chosen", "rejected"), _parse_preference, _WITH_TEXT),
    Format(("chosen", "rejected"), _parse_preference),
)
_PROMPT_FORMATS = tuple(
    Format((column,), _text_alone(column), _WITH_TEXT) for column in ("prompt", "instruction", "Instruction")
)
