"""Damage to files, as accidents and strangers do it, drawn by a seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbdefense.core._seal import SEAL, sealed
from mbdefense.finding import record

_RAW = {"@deep@": "[" * 100_000 + "]" * 100_000, "@huge@": "1" + "0" * 400, "@nan@": "NaN", "@endless@": "-Infinity"}
"""What no JSON value stands for, written in place of these texts."""
VALUES = (
    None, True, False, -1, 0, 1, 3, 2**63, 0.5, 1e308, "", "x", "0", [], {}, [None], {"": 0}, "@deep@", "@huge@",
    "@nan@", "@endless@", "../../beside/model.safetensors", "../beside", "a\u200bb", "\ufe0f", "\ud800", "\x00",
    "x" * 100_000, "\u202e\x1b[31m", "badnet:word=../beside",
)  # fmt: skip
Draw = random.Random


def mutated(data: bytes, name: str, others: list[bytes], draw: Draw) -> tuple[bytes, str]:
    """A file's bytes after one accident, and what that was.

    Args:
        data: of the file.
        name: of the file.
        others: of the other files of its kind.
        draw: decides.
    """
    if draw.random() < 0.25 or not name.endswith((".json", ".jsonl")):
        return _bytes(data, others, draw)
    try:
        if name.endswith(".jsonl"):
            return _lines(data, draw)
        return _object(data, draw)
    except (ValueError, IndexError):  # nothing there to change so
        return _bytes(data, others, draw)


def _bytes(data: bytes, others: list[bytes], draw: Draw) -> tuple[bytes, str]:
    at = draw.randrange(len(data))
    flipped = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    ways = {
        "cut": data[:at],
        "flipped": bytes(flipped),
        "a byte gone": data[:at] + data[at + 1 :],
        "garbage behind": data + draw.choice([b"\x00", b"}", b"{}\n", b"null\n", b"\xff\xfe", b"garbage"]),
        "a mark in front": b"\xef\xbb\xbf" + data,
        "no UTF-8": data[:at] + b"\xc3\x28\xff" + data[at:],
        "an unseen character": data[:at] + "\u200b".encode() + data[at:],
        "UTF-16": data.decode(errors="replace").encode("utf-16"),
        "twice": data + data,
        "empty": b"",
        "another's": draw.choice(others) if others else data[::-1],
    }
    way = draw.choice(list(ways))
    return ways[way], way


def _lines(data: bytes, draw: Draw) -> tuple[bytes, str]:
    lines = data.decode().splitlines()
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    way = draw.choice(["line gone", "line again", "lines swapped", "line changed", "line changed", "values swapped"])
    if way == "line gone":
        del lines[at]
    elif way == "line again":
        lines.insert(other, lines[at])
    elif way == "lines swapped":
        lines[at], lines[other] = lines[other], lines[at]
    elif way == "values swapped":
        one, two = json.loads(lines[at]), json.loads(lines[other])
        key = draw.choice(list(one.keys() & two.keys()))
        one[key], two[key] = two[key], one[key]
        lines[at], lines[other] = _text(one), _text(two)
    else:
        value = json.loads(lines[at])
        way = _change(value, draw)
        lines[at] = _text(value)
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"), way


def _object(data: bytes, draw: Draw) -> tuple[bytes, str]:
    value = json.loads(data)
    way = _change(value, draw)
    if SEAL in value and draw.random() < 0.3:
        del value[SEAL]
        way += ", no seal"
    text = _text(value)
    if draw.random() < 0.1 and value:  # a key again, with another value
        text = f"{{{json.dumps(draw.choice(list(value)))}: {_text(draw.choice(VALUES))}, {text[1:]}"
        way += ", a key twice"
    return text.encode("utf-8", "backslashreplace"), way


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def resealed(path: Path) -> None:
    """Gives a file the hashes of what stands in it now, as somebody would who rewrites it on purpose."""
    try:
        value = json.loads(path.read_bytes())
        rest = {key: part for key, part in value.items() if key != SEAL}
        new = {**value, **record._hashes(value)} if "evidence_sha256" in value else sealed(rest)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return
    path.write_text(json.dumps(new))


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def _change(value: Any, draw: Draw) -> str:
    """Changes one place of a JSON value; returns how."""
    places = list(_places(value))
    parent, key = draw.choice(places)
    ways: dict[str, Callable[[], object]] = {"other value": lambda: _put(parent, key, draw.choice(VALUES))}
    if isinstance(parent[key], bool):
        ways["turned"] = lambda: _put(parent, key, not parent[key])
    elif isinstance(parent[key], int | float):
        ways |= {
            "one more": lambda: _put(parent, key, parent[key] + 1),
            "halved": lambda: _put(parent, key, parent[key] / 2),
            "negative": lambda: _put(parent, key, -parent[key]),
            "as text": lambda: _put(parent, key, str(parent[key])),
        }
    elif isinstance(parent[key], str):
        ways["unseen character"] = lambda: _put(parent, key, parent[key] + draw.choice("\u200b\ufe0f\u034f\x00"))
    elif isinstance(parent[key], list) and parent[key]:
        ways["twice as long"] = lambda: parent[key].extend(parent[key])
        ways["one less"] = lambda: parent[key].pop()
    alike = [place for place in places if place[1] == key and place[0] is not parent]
    if alike:
        ways["swapped"] = lambda: _swap((parent, key), draw.choice(alike))
    if isinstance(parent, dict):
        ways["gone"] = lambda: parent.pop(key)
        ways["renamed"] = lambda: parent.__setitem__(key + draw.choice(["x", "\u200b"]), parent.pop(key))
        ways["one key more"] = lambda: parent.__setitem__("unheard of", draw.choice(VALUES))
    way = draw.choice(list(ways))
    ways[way]()
    return f"{key}: {way}"


def _places(value: Any) -> Any:
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(part)


def _put(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def _swap(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    (a, i), (b, j) = one, other
    a[i], b[j] = b[j], a[i]
