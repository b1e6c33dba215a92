"""Typed JSON: dataclasses whose types say what a file may hold, read strictly."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, cast

from annotated_types import Ge, Interval

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_sealed

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Share = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Interval(ge=0, le=2**53)]
Positive = Annotated[int, Interval(ge=1, le=2**53)]
NotNegative = Annotated[float, Ge(0)]
_T = TypeVar("_T", bound="Form")


class Form:
    """A dataclass below it is read without conversion: a value is of its type, finite, and no key is unknown."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        return ""


class OpenForm(Form):
    """The same, but that unknown keys are passed over: files of which a part is read, or that later versions extend."""

    __pydantic_config__: ClassVar[dict[str, object]] = {**Form.__pydantic_config__, "extra": "ignore"}


def parse(form: type[_T], data: bytes | str, where: str, fix: str = "make it again") -> _T:
    """JSON in a form.

    Args:
        form: a dataclass whose fields, and theirs, are `Form`s or plain types.
        data: the JSON.
        where: what it was read from, for the message.
        fix: what to do about a value that does not fit.

    Raises:
        UserError: not JSON, a key missing or unknown, or a value of the wrong type or range or that contradicts another
            one; the first is named.
    """
    from pydantic import ValidationError

    try:
        found = cast(_T, _adapter(cast(Hashable, form)).validate_json(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "content"
        said = {"missing": "missing key", "unexpected_keyword_argument": "unknown key"}.get(first["type"], first["msg"])
        raise UserError(f"{where}: {place}: {said}", first["input"], fix) from error
    for place, part in _parts(found, ""):
        if said := part.contradiction():
            raise UserError(f"{where}: {place or 'content'}: {said}", part, fix)
    return found


def read_form(form: type[_T], path: Path, where: str = "", fix: str = "make it again") -> _T:
    """What `mbdefense.core.files.write_sealed` wrote, in a form.

    Args:
        form: see `parse`.
        path: of the file.
        where: what to call it in a message; by default its path.
        fix: see `parse`.

    Raises:
        UserError: see `mbdefense.core.files.read_sealed` and `parse`.
    """
    return parse(form, json.dumps(read_sealed(path, fix)), where or str(path), fix)


@cache
def _adapter(form: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cast(Any, form))


def _parts(value: object, place: str) -> Iterator[tuple[str, Form]]:
    """All forms in a form, each with where it stands."""
    below = f"{place}." if place else ""
    if isinstance(value, Form):
        yield place, value
        for name, part in vars(value).items():
            yield from _parts(part, f"{below}{name}")
    elif isinstance(value, tuple):
        for number, part in enumerate(value):
            yield from _parts(part, f"{below}{number}")
