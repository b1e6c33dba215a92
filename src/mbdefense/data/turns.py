"""Turns of a conversation: from what formats write to the row form, and from there to what a chat template takes.

In the row form a turn is a role and a text. What else belongs to a turn stands right behind it as a turn of its own,
whose role is the field's name: its tool calls (JSON), its thoughts, a weight of 0. Tools stand in front of all turns.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.data.fields import ROLE_OF, ROLES, field_of, names
from mbdefense.data.reading import BadRowError, unique
from mbdefense.data.rows import Message, to_dataset, with_content_ids

if TYPE_CHECKING:
    from datasets import Dataset

KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Fields of a turn that a template may show."""
WEIGHT = "weight"
TOOLS = "tools"
_MASKED = {"role": WEIGHT, "content": "0"}
ATTACHED = (*KEPT, WEIGHT, TOOLS)
"""Roles of the row form that are no turn of a conversation but belong to one, or to all."""
_AS_JSON = ("tool_calls", TOOLS)
THOUGHTS = ("reasoning_content", "thinking")
_PART = ("type", "text", "cache_control")
_CALL = ("id", "type", "function", "index")
_FUNCTION = ("name", "arguments", "parameters")
_TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


class Turn(NamedTuple):
    """One turn with what belongs to it."""

    role: str
    content: str
    kept: Mapping[str, str] = MappingProxyType({})
    """By field, what the template may show; JSON where it is no text."""
    target: bool = True
    """False where its data say that it is not to be trained on."""

    def messages(self) -> list[Message]:
        """The turn in the row form."""
        made = [{"role": self.role, "content": self.content}]
        if self.kept:
            made += [{"role": name, "content": text} for name, text in self.kept.items()]
        return made if self.target else [*made, {"role": WEIGHT, "content": "0"}]


def flat(turns: Iterable[Turn]) -> list[Message]:
    """Turns in the row form."""
    return [message for turn in turns for message in turn.messages()]


def read_turns(value: object, column: str) -> list[Turn]:
    """The turns of a column in any known format.

    Raises:
        BadRowError: it holds no turns, or something in one that is not known or cannot be seen.
    """
    if isinstance(value, dict):  # datasets stores a sequence of objects as an object of sequences
        value = _transposed(value)
    if not isinstance(value, list):
        raise BadRowError(f"{column} is {kind(value)}, not a list of turns")
    if not value:
        raise BadRowError(f"{column} is empty")
    return [read_turn(turn, column) for turn in value]


def read_turn(value: object, column: str) -> Turn:
    """One turn; see `read_turns`."""
    keys = next((keys for keys in (("role", "content"), ("from", "value")) if _has(value, keys)), None)
    if not isinstance(value, dict) or keys is None:
        raise BadRowError(f"a turn in {column} is not an object with role and content, or from and value")
    written = text_of(value[keys[0]], keys[0])
    if written not in ROLE_OF:
        known = ", ".join(name for others in ROLES.values() for name in others)
        raise BadRowError(f"unknown role {written[:40]!r} in {column}; known: {known}")
    kept: dict[str, str] = {}
    target = True
    for name, one in value.items():
        if name in keys or empty(one):
            continue
        field = field_of(name, "turn")
        if field is None or field.use == "row":
            raise BadRowError(f"a turn in {column} has an unknown field {str(name)[:40]!r}; remove it")
        if field.use == "refused":
            raise BadRowError(f"{name} in a turn of {column} {field.says}")
        if field.use == "mark":
            target = _marked(one, name) and target
        elif name == "function_call":
            kept["tool_calls"] = _calls([one], name)
        else:
            kept[name] = _calls(one, name) if name == "tool_calls" else text_of(one, name)
    content = value[keys[1]]
    if written == "function_call":  # LLaMA-Factory and Glaive write the call as the turn's text
        return Turn("assistant", "", {"tool_calls": _calls(content, written), **kept}, target)
    if content is None and "tool_calls" in kept:
        content = ""
    role = ROLE_OF[written]
    return Turn(role, _joined_parts(content, keys[1]), kept, target or role != "assistant")


def read_own(value: object, column: str) -> list[Message]:
    """Turns in the row form, as they are.

    Raises:
        BadRowError: they are not in the row form.
    """
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{column} is {kind(value)}, not a list of turns" if value else f"{column} is empty")
    messages: list[Message] = []
    for turn in value:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            return flat(read_turns(value, column))
        role, content = text_of(turn["role"], "role"), turn["content"]
        if role not in ROLES and role not in ATTACHED:
            return flat(read_turns(value, column))
        if role in _AS_JSON:
            # An escape in what is rendered would hide from what looks for special tokens.
            content = _dumped(_objects(loaded(content, role), role))
        elif role == WEIGHT and content != "0":
            raise BadRowError("a weight in the row form is not 0")
        if role in (*KEPT, WEIGHT) and not any(message["role"] in ROLES for message in messages):
            raise BadRowError(f"{role} belongs to no turn")
        messages.append({"role": role, "content": text_of(content, "content")})
    return messages


def read_tools(value: object, name: str) -> list[Message]:
    """The message that holds a row's tools; none where there are none.

    Raises:
        BadRowError: they are no list of objects.
    """
    tools = loaded(value, name) if isinstance(value, str) and value.strip() else value
    if empty(tools):
        return []
    known = _without_none(_objects(tools, name))
    made = [tool if "function" in tool else {"type": "function", "function": tool} for tool in known]
    return [{"role": TOOLS, "content": _dumped(made)}]


def for_template(messages: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages of the row form as a chat template takes them: the conversation, and the tools if there are any."""
    turns: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == TOOLS:
            tools += json.loads(content)
        elif role in KEPT and turns:
            turns[-1][role] = json.loads(content) if role in _AS_JSON else content
        elif role != WEIGHT:
            turns.append({"role": role, "content": content})
    return turns, tools or None


def is_target(messages: Sequence[Mapping[str, str]], place: int) -> bool:
    """Whether the message at a place is an assistant turn that may be trained on."""
    if messages[place]["role"] != "assistant":
        return False
    for message in messages[place + 1 :]:
        if message["role"] not in ATTACHED:
            break
        if message["role"] == WEIGHT:
            return False
    return True


def every_turn(rows: Dataset) -> Dataset:
    """Each assistant turn that may be trained on as a row of its own, with what comes before it as its prompt.

    In a row's prompt the earlier ones are marked, as their own rows have them; so doing it twice changes nothing, and
    rows of one answer come back as they are.
    """
    if not any(is_target(prompt, place) for prompt in rows["prompt"] for place in range(len(prompt))):
        return rows
    made: list[dict[str, Any]] = []
    for row in rows:
        seen: list[Message] = []
        for turn in _grouped(row["prompt"]):
            target = is_target(turn, 0)
            turns = [message["role"] for message in seen if message["role"] not in ATTACHED]
            if target and "user" in turns and turns[-1] in ("user", "tool"):
                made.append({**row, "prompt": list(seen), "completion": turn, "answers": []})
            seen += [*turn, dict(_MASKED)] if target else turn
        made.append({**row, "prompt": seen})
    return with_content_ids(to_dataset(made))


def conversations(rows: Dataset) -> list[int]:
    """Of each row the number of the row that its conversation begins with: its own, but for later ones of `every_turn`.

    Such a row's prompt holds the prompts and answers of the earlier ones.
    """
    first = list(range(len(rows)))
    if not any(message["role"] == WEIGHT for prompt in rows["prompt"] for message in prompt):
        return first
    whole: dict[str, int] = {}
    for number, row in enumerate(rows):
        whole.setdefault(_key([*row["prompt"], *row["completion"], _MASKED]), number)
    for number, prompt in enumerate(rows["prompt"]):
        ends = (place for place, message in enumerate(prompt, 1) if message == _MASKED)
        found = (whole.get(_key(prompt[:end])) for end in ends)
        first[number] = next((one for one in found if one is not None), number)
    return first


def _key(messages: Sequence[Message]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages])


def _grouped(messages: Sequence[Message]) -> list[list[Message]]:
    """Each turn with what belongs to it."""
    groups: list[list[Message]] = []
    for message in messages:
        if message["role"] in (*KEPT, WEIGHT) and groups:
            groups[-1].append(message)
        else:
            groups.append([message])
    return groups


_MARKS = frozenset(names("row", "mark", "maybe_mark"))


def row_mark(row: Mapping[str, object], classes: Collection[str]) -> str | None:
    """The mark on a whole row that its answer is no target, as ``name: value``; None where there is none.

    Args:
        row: as it was read.
        classes: columns whose numbers are no marks, see `is_mark`.
    """
    if _MARKS.isdisjoint(row):
        return None
    for name in sorted(row.keys() & _MARKS):
        value = unpacked(row[name], name)
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if truth(one) is False and is_mark(one, in_classes=name in classes):
            return f"{name}: {json.dumps(value)}"
    return None


def masked(turns: list[Turn], mask: list[object]) -> list[Turn]:
    """The turns under a row's ``loss_mask`` of one entry each.

    Raises:
        BadRowError: it has another number of entries.
    """
    if len(mask) != len(turns):
        raise BadRowError(f"loss_mask has {len(mask)} entries for {len(turns)} turns")
    return [
        turn._replace(target=turn.target and (_marked(one, "loss_mask") or turn.role != "assistant"))
        for turn, one in zip(turns, mask, strict=True)
    ]


def mask_of(row: Mapping[str, object]) -> list[object]:
    """A row's ``loss_mask`` of several entries; empty where it has none, or one for the row as a whole."""
    mask = unpacked(row.get("loss_mask"), "loss_mask")
    return mask if isinstance(mask, list) and len(mask) > 1 else []


def truth(value: object) -> bool | None:
    """What a mark says, in any of the ways that formats and CSV files write it; None for what is no mark."""
    if isinstance(value, str):
        return _TRUTH.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_mark(value: object, *, in_classes: bool) -> bool:
    """Whether a value says something as a mark; among classes or scores true and false do, and no number does."""
    return truth(value) is not None and (not in_classes or str(value).strip().lower() in ("true", "false"))


def empty(value: object) -> bool:
    """Whether a field holds nothing. 0 and false are values."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def text_of(value: object, column: str) -> str:
    """A value that is valid text.

    Raises:
        BadRowError: it is none.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{column} is {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"{column} holds half of a surrogate pair, which is not valid Unicode") from None
    return value


def kind(value: object) -> str:
    """What a value is, in a word."""
    return "null" if value is None else type(value).__name__


def _has(value: object, keys: tuple[str, str]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys) and value[keys[0]] is not None


def _transposed(value: dict[str, object]) -> object:
    columns = list(value.values())
    if not columns or not all(isinstance(column, list) for column in columns):
        return value
    lengths = {len(column) for column in columns if isinstance(column, list)}
    if len(lengths) != 1:
        return value
    return [dict(zip(value, one, strict=True)) for one in zip(*columns, strict=True)]


def _joined_parts(content: object, column: str) -> str:
    if not isinstance(content, list):
        return text_of(content, column)
    texts = []
    for part in content:
        sort = part.get("type") if isinstance(part, dict) else kind(part)
        if sort != "text" or not isinstance(part, dict):
            raise BadRowError(f"a part of {column} is of type {str(sort)[:40]!r}; only text can be seen")
        _check_known(part, _PART, f"a part of {column}")
        texts.append(text_of(part.get("text"), "text"))
    return "".join(texts)


def unpacked(value: object, name: str) -> Any:
    """A list that is written as JSON, as CSV holds it."""
    return loaded(value, name) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _marked(value: object, name: str) -> bool:
    said = truth(value)
    if said is None:
        raise BadRowError(f"{name} is {str(value)[:40]!r}; only 0 and 1 can be kept")
    return said


def _calls(value: object, name: str) -> str:
    """Tool calls as JSON, each as ``{"type", "function": {"name", "arguments"}}``, arguments as objects."""
    calls = loaded(value, name) if isinstance(value, str) else value
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = _without_none(call)
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRowError(f"{name} holds no call with a name")
        _check_known({**call, **function}, (*_CALL, *_FUNCTION), f"a call in {name}")
        if not empty(function.get("arguments")) and "parameters" in function:
            raise BadRowError(f"a call in {name} has arguments and parameters; leave one of them out")
        arguments = function.get("arguments") or function.get("parameters", {})
        if isinstance(arguments, str):
            arguments = loaded(arguments, "arguments") if arguments.strip() else {}
        own = {"id": call["id"]} if "id" in call and "function" in call else {}
        made.append({**own, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return _dumped(made)


def _check_known(value: Mapping[str, object], known: Collection[str], what: str) -> None:
    """Refuses keys that nobody would see again."""
    for key, one in value.items():
        if key not in known and not empty(one):
            raise BadRowError(f"{what} has an unknown field {str(key)[:40]!r}; remove it")


def loaded(text: object, name: str) -> Any:
    """What a JSON text holds.

    Raises:
        BadRowError: it is none, or a key in it occurs twice.
    """
    try:
        return json.loads(text_of(text, name), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise BadRowError(f"{name} is not JSON") from None


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    """A list of objects, as tools and their calls are.

    Raises:
        BadRowError: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadRowError(f"{name} is no list of objects")
    return value


def _dumped(value: object) -> str:
    try:
        return text_of(json.dumps(value, ensure_ascii=False), "tool_calls")
    except (TypeError, ValueError, RecursionError):
        raise BadRowError("a tool or its call holds what JSON cannot") from None


def _without_none(value: Any) -> Any:
    """Without the nulls that Parquet puts where another row has a field."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value
