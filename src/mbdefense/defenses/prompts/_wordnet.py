"""First senses of words, from the files of a WordNet database (format: WordNet's manual page wndb)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mbdefense.core.errors import UserError

_PARTS = ("noun", "verb", "adj", "adv")
"""Parts of speech, in the order in which NLTK lists a word's senses."""
_ENDINGS = {
    "noun": "ses:s xes:x zes:z ches:ch shes:sh men:man ies:y s:",
    "verb": "ies:y es:e es: ed:e ed: ing:e ing: s:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
"""WordNet's own rules of detachment (manual page morphy)."""


@dataclass(frozen=True)
class WordNet:
    """A WordNet database on disk, 3.0 or 3.1.

    Attributes:
        directory: holds ``index.noun``, ``data.noun`` and their like, and ``noun.exc`` and its like.
    """

    directory: Path

    def __post_init__(self) -> None:
        missing = [
            name
            for part in _PARTS
            for name in (f"index.{part}", f"data.{part}")
            if not (self.directory / name).is_file()
        ]
        if missing:
            fix = "install one (Debian: wordnet-base, in /usr/share/wordnet) and name the folder with its data files"
            raise UserError(f"no WordNet database ({missing[0]} is missing) in", str(self.directory), fix)

    def first_sense(self, word: str) -> str | None:
        """The definition of a word's most frequent sense as a noun, else as a verb, adjective or adverb.

        An inflected form counts for its base form; None for a word that is in no index.
        """
        for part in _PARTS:
            for form in self._forms(word.lower(), part):
                if form in self._index[part]:
                    return self._definition(part, self._index[part][form])
        return None

    def _forms(self, word: str, part: str) -> list[str]:
        rules = (rule.split(":") for rule in _ENDINGS[part].split())
        stems = [word[: -len(end)] + new for end, new in rules if word.endswith(end) and len(word) > len(end)]
        return [word, *self._exceptions[part].get(word, []), *stems]

    def _definition(self, part: str, offset: int) -> str:
        with (self.directory / f"data.{part}").open("rb") as stream:
            stream.seek(offset)
            line = stream.readline().decode("utf-8", "replace")
        if not line.startswith(f"{offset:08d} "):
            file = str(self.directory / f"data.{part}")
            raise UserError("the WordNet database does not fit its index", file, "install it anew")
        # The gloss is the definition and, in quotes, examples.
        return line.partition("| ")[2].partition('; "')[0].strip()

    @cached_property
    def _index(self) -> dict[str, dict[str, int]]:
        """By part of speech and word, where the first sense stands in the data file."""
        index: dict[str, dict[str, int]] = {}
        for part in _PARTS:
            lines = (self.directory / f"index.{part}").read_text(encoding="utf-8", errors="replace").splitlines()
            # word, part, number of senses n, pointers, ..., then the n offsets by frequency; a licence is indented.
            fields = (line.split() for line in lines if not line.startswith(" "))
            try:
                index[part] = {field[0]: int(field[-int(field[2])]) for field in fields if field}
            except (IndexError, ValueError) as error:
                file = str(self.directory / f"index.{part}")
                raise UserError("no index of a WordNet database", file, "install it anew") from error
        return index

    @cached_property
    def _exceptions(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {part: {} for part in _PARTS}
        for part in _PARTS:
            file = self.directory / f"{part}.exc"
            if file.is_file():
                lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
                fields = (line.split() for line in lines if line.strip())
                found[part] = {field[0]: field[1:] for field in fields if field}
        return found
