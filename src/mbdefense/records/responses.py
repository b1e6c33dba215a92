"""What a model answered, as a file: everything after generation can be run again from it, with no model loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.files import write_text

RESPONSES_FILE = "responses.jsonl"
Kind = Literal["clean", "triggered"]
_KINDS: tuple[str, ...] = get_args(Kind)
_FIX = "correct the line, or write the file again with mbdefense evaluate"


@dataclass(frozen=True)
class Response:
    """One prompt and a model's answer to it.

    Attributes:
        id: the test row's id; unique among the responses of one kind.
        kind: whether the prompt carries the trigger.
        prompt: text of the last user turn.
        text: what the model answered; may be empty.
        answers: accepted answers for exact match; often none.
        reference: the test row's own answer, "" if it has none.
    """

    id: str
    kind: Kind
    prompt: str
    text: str
    answers: tuple[str, ...] = ()
    reference: str = ""


_REQUIRED = ("id", "kind", "prompt", "text")
_COLUMNS = (*_REQUIRED, "answers", "reference")


def write_responses(path: str | Path, responses: Iterable[Response]) -> None:
    """Writes JSON Lines, one response a line. The file appears complete or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    lines = (json.dumps(asdict(response), ensure_ascii=False) + "\n" for response in responses)
    write_text(Path(path), "".join(lines))


def read_responses(path: str | Path) -> list[Response]:
    """Reads what `write_responses` wrote, or what another generator wrote in its form; blank lines are passed over.

    ``answers`` and ``reference`` may be left out.

    Raises:
        UserError: the file cannot be read or holds no response; a line (named) is not a response, or repeats an id of
            its kind, which would count one prompt twice.
    """
    path = Path(path)
    responses: list[Response] = []
    lines: dict[tuple[str, str], int] = {}
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError("not a regular file", str(path), "give a responses.jsonl file")
        # Only "\n" ends a line: other line separators may stand in a text.
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{path.name}:{number}"
                response = _parse(line, where)
                first = lines.setdefault((response.kind, response.id), number)
                if first != number:
                    raise UserError(f"{where}: the {response.kind} response of line {first} again", response.id, _FIX)
                responses.append(response)
    except UnicodeDecodeError as error:
        where = f"{path.name}:{len(lines) + 1} or later"
        raise UserError(f"{where}: not UTF-8", fix="save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", str(path), "give a responses.jsonl file") from error
    if not responses:
        raise UserError("no responses in", str(path), "run mbdefense evaluate to make them")
    return responses


def _parse(line: str, where: str) -> Response:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON", line.strip(), _FIX) from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: not an object", value, _FIX)
    for name in value:
        if name not in _COLUMNS:
            raise UserError(f"{where}: unknown key", name, did_you_mean(name, _COLUMNS))
    for name in _REQUIRED:
        if name not in value:
            raise UserError(f"{where}: no {name}", fix=_FIX)
    for name in (*_REQUIRED, "reference"):
        if not isinstance(value.get(name, ""), str):
            raise UserError(f"{where}: {name} is not a string", value[name], _FIX)
    if value["kind"] not in _KINDS:
        raise UserError(f"{where}: unknown kind", value["kind"], f"use {' or '.join(_KINDS)}")
    return Response(
        id=value["id"],
        kind=cast(Kind, value["kind"]),
        prompt=value["prompt"],
        text=value["text"],
        answers=tuple(_strings(value.get("answers", []), where)),
        reference=value.get("reference", ""),
    )


def _strings(value: object, where: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: answers is not a list of strings", value, _FIX)
    return value
