"""What a method needs beyond the model and the data at hand, and where it comes from: class attributes of each."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Need = Literal[
    "victim",
    "suspect data",
    "clean data",
    "reference model",
    "known behavior",
    "GPU",
    "endpoint",
    "extra package",
    "extra data",
]

MEANINGS: dict[Need, str] = {
    "victim": "the undefended model; tuned from base model and suspect data unless given",
    "suspect data": "uses the suspect rows and cannot repair a finished model without them; for find_and_break "
    "a found.json will do",
    "clean data": "about 128 rows checked by eye",
    "reference model": "a clean model of the same architecture or vocabulary, such as the untouched base model",
    "known behavior": "what the backdoor makes the model do",
    "GPU": "trains or runs a language model; from about a billion parameters on that needs an accelerator",
    "endpoint": "a language model behind an OpenAI-compatible interface",
    "extra package": "an extra of this package, named in the error if it is missing",
    "extra data": "files that no Python package provides, named in the error if they are missing",
}


class Facts(NamedTuple):
    """What a method's class says of itself."""

    needs: tuple[Need, ...]
    source: str


def facts(method: type) -> Facts:
    """Reads the class attributes ``needs`` and ``source`` of a method.

    Raises:
        TypeError: one is missing, or not what it should be.
    """
    needs, source = getattr(method, "needs", None), getattr(method, "source", None)
    if not isinstance(needs, tuple) or not set(needs) <= set(get_args(Need)):
        raise TypeError(f"{method.__name__}.needs must be a tuple of {', '.join(get_args(Need))}; it is {needs!r}")
    if not isinstance(source, str) or not source.strip():
        raise TypeError(f"{method.__name__}.source must say where the method comes from; it is {source!r}")
    return Facts(needs, source)
