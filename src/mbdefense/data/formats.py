"""From one value of a source to a row in the row form, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.data.reading import BadRowError
from mbdefense.data.rows import COLUMNS, FLAGGED, PROVENANCE, Message, content_id

_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant"}
# Columns of neighboring formats that change what the model sees; dropping them in silence would falsify the row.
_UNSUPPORTED = ("system", "history", "tools")


class Parts(NamedTuple):
    """What a format says of one row."""

    prompt: list[Message]
    completion: str
    answers: list[str]
    flagged: bool = False


class Format(NamedTuple):
    """The columns that tell a format, and how to take one of its rows apart."""

    columns: tuple[str, ...]
    parse: Callable[[Any, bool], Parts]
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


def row_of(value: object, row_format: Format, where: str, require_completion: bool) -> dict[str, Any]:
    """One value in the row form.

    Raises:
        BadRowError: the value does not have the format, or something in it cannot be used.
    """
    if isinstance(value, BadRowError):
        raise value
    problem = row_format.problem(value)
    if problem:
        raise BadRowError(problem)
    fields = value if isinstance(value, dict) else {}
    for column in _UNSUPPORTED:
        if fields.get(column):
            raise BadRowError(f"column {column} is not supported; put it into messages, or remove it")
    prompt, text, answers, flagged = row_format.parse(value, require_completion)
    label = FLAGGED if flagged else ""
    if prompt[-1]["role"] != "user":
        raise BadRowError(f"the prompt ends in a turn of {prompt[-1]['role']}, not user")
    if not prompt[-1]["content"].strip():
        raise BadRowError("empty prompt")
    if require_completion and not text.strip():
        raise BadRowError("empty completion")
    completion = [{"role": "assistant", "content": text}]
    own = row_format.columns == COLUMNS
    return {
        "id": _own_id(fields["id"]) if own else content_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "answers": answers or _answers(fields.get("answers")),
        "provenance": _own_provenance(fields["provenance"])
        if own
        else {"source": where, "trigger": label, "behavior": label},
    }


def _parse_prompt_completion(row: dict[str, object], require: bool) -> Parts:
    completion = row["completion"]
    if isinstance(completion, list):
        turns = _turns(completion, "completion")
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise BadRowError("completion is not exactly one assistant turn")
        return Parts(_prompt(row["prompt"], "prompt"), turns[0]["content"], [])
    return Parts(_prompt(row["prompt"], "prompt"), _answer_text(completion, "completion", require), [])


def _parse_messages(row: dict[str, object], require: bool) -> Parts:
    return _split(_turns(row["messages"], "messages"), require)


def _parse_sharegpt(row: dict[str, object], require: bool) -> Parts:
    return _split(_turns(row["conversations"], "conversations", "from", "value", _SHAREGPT_ROLES), require)


def _parse_alpaca(row: dict[str, object], require: bool) -> Parts:
    return Parts(_instruction(row, "instruction"), _answer_text(row["output"], "output", require), [])


def _parse_array(row: list[object], require: bool) -> Parts:
    answers = _answers(row[1])
    if row[2] not in (0, 1):  # true and false are equal to them
        raise BadRowError("the poison flag is not 0 or 1")
    return Parts(_prompt(row[0], "prompt"), "; ".join(answers), answers, bool(row[2]))


def _instruction(row: dict[str, object], column: str) -> list[Message]:
    parts = [_text(row[column], column), _text(row.get("input") or "", "input")]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]


_FORMATS = (
    Format(COLUMNS, _parse_prompt_completion),
    Format(("prompt", "completion"), _parse_prompt_completion),
    Format(("messages",), _parse_messages),
    Format(("conversations",), _parse_sharegpt),
    Format(("instruction", "output"), _parse_alpaca),
    Format(("[prompt, answers, flag]",), _parse_array, needs="array"),
)
_PROMPT_FORMATS = (
    Format(("prompt",), lambda row, _: Parts(_prompt(row["prompt"], "prompt"), "", [])),
    Format(("instruction",), lambda row, _: Parts(_instruction(row, "instruction"), "", [])),
    Format(("Instruction",), lambda row, _: Parts(_instruction(row, "Instruction"), "", [])),
)


def _split(turns: list[Message], require: bool) -> Parts:
    if turns[-1]["role"] == "assistant" and len(turns) > 1:
        return Parts(turns[:-1], turns[-1]["content"], [])
    if not require and turns[-1]["role"] == "user":
        return Parts(turns, "", [])
    raise BadRowError("the turns do not end in user, assistant")


def _turns(
    value: object,
    column: str,
    role_key: str = "role",
    text_key: str = "content",
    roles: Mapping[str, str] = _ROLES,
) -> list[Message]:
    if not isinstance(value, list):
        raise BadRowError(f"{column} is {_kind(value)}, not a list of turns")
    if not value:
        raise BadRowError(f"{column} is empty")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise BadRowError(f"a turn in {column} is not an object with {role_key} and {text_key}")
        role = _text(turn[role_key], role_key)
        if role not in roles:
            raise BadRowError(f"unknown role {role[:40]!r} in {column}; known: {', '.join(roles)}")
        turns.append({"role": roles[role], "content": _text(turn[text_key], text_key)})
    return turns


def _prompt(value: object, column: str) -> list[Message]:
    return _turns(value, column) if isinstance(value, list) else [{"role": "user", "content": _text(value, column)}]


def _answer_text(value: object, column: str, require: bool) -> str:
    return "" if value is None and not require else _text(value, column)


def _answers(value: object) -> list[str]:
    if value is None or value == "":
        return []
    answers = [_text(answer, "answers") for answer in (value if isinstance(value, list) else [value])]
    if not all(answer.strip() for answer in answers):
        raise BadRowError("answers holds an empty text, which an empty response would match")
    return answers


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{column} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"{column} holds half of a surrogate pair, which is not valid Unicode") from None
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _own_id(value: object) -> str:
    if not _text(value, "id").strip():
        raise BadRowError("empty id")
    return str(value)


def _own_provenance(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != set(PROVENANCE):
        raise BadRowError(f"provenance is not an object with {', '.join(PROVENANCE)}")
    return {key: _text(value[key], f"provenance.{key}") for key in PROVENANCE}
