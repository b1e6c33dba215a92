"""What every judge gives; here, not in the package's table, so that a judge's own file can import it."""

from __future__ import annotations

from dataclasses import dataclass

from mbdefense.responses import Kind


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion of one response.

    Attributes:
        id: the response's id.
        kind: the response's kind.
        shows: whether the response shows the behavior.
        follows: whether it follows the instruction; None where the judge cannot tell. Whether a judge can tell must
            depend on the prompt alone, or the share of those judged would be one of chosen responses.
        reason: why, in a few words.
    """

    id: str
    kind: Kind
    shows: bool
    follows: bool | None
    reason: str
