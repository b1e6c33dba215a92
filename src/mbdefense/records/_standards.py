"""What each figure is evidence about, in the terms of public standards; the one table of their ids.

None of it is a claim of conformity: a figure is one piece of evidence, and a standard asks for more than figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

AS_OF = "2026-11-28"
"""The day on which the ids were looked up."""


@dataclass(frozen=True)
class Standard:
    """A public standard: its name, who keeps it, which version the ids are of, and where it stands."""

    name: str
    organization: str
    version: str
    uri: str


@dataclass(frozen=True)
class Reference:
    """A part of a standard: a key of `STANDARDS`, its id there, and what it is called."""

    standard: str
    id: str
    name: str


STANDARDS = {
    "OWASP LLM 2026": Standard(
        "OWASP Top 10 for LLM Applications", "OWASP", "2026 (2026-08-04)", "https://genai.owasp.org/llm-top-10/"
    ),
    "OWASP LLM 2025": Standard(
        "OWASP Top 10 for LLM Applications", "OWASP", "2025 (2024-11-18)", "https://genai.owasp.org/llm-top-10/"
    ),
    "MITRE ATLAS": Standard("MITRE ATLAS", "MITRE", f"as of {AS_OF}", "https://atlas.mitre.org/"),
    "NIST AI 100-2": Standard(
        "Adversarial Machine Learning: A Taxonomy and Terminology", "NIST", "AI 100-2e2025 (2025-03-24)",
        "https://csrc.nist.gov/pubs/ai/100/2/e2025/final",
    ),
    "EU AI Act": Standard(
        "Regulation (EU) 2024/1689", "European Union", "2024-06-13", "https://eur-lex.europa.eu/eli/reg/2024/1689/oj"
    ),
    "OWASP AISVS": Standard(
        "Artificial Intelligence Security Verification Standard", "OWASP", "1.0", "https://github.com/OWASP/AISVS"
    ),
}  # fmt: skip
_POISONING = (
    Reference("OWASP LLM 2026", "LLM05:2026", "Data and Model Poisoning"),
    Reference("OWASP LLM 2025", "LLM04:2025", "Data and Model Poisoning"),
    Reference("MITRE ATLAS", "AML.T0020", "Poison Training Data"),
    Reference("NIST AI 100-2", "NISTAML.023", "Backdoor Poisoning"),
    Reference("EU AI Act", "Art. 15(5)", "measures against data poisoning and model poisoning"),
)
_EVALUATED = Reference("OWASP AISVS", "11.1.3", "evaluation against known adversarial attack techniques")
_ACCURATE = Reference("EU AI Act", "Art. 15(1)", "an appropriate level of accuracy")


@dataclass(frozen=True)
class Evidence:
    """What a figure says, and which parts of standards that bears on."""

    says: str
    bears_on: tuple[Reference, ...]


EVIDENCE = {
    "asr": Evidence("how often a tried trigger still evokes its behavior", (*_POISONING, _EVALUATED)),
    "canary_asr": Evidence("how often a backdoor planted on purpose still works", (*_POISONING, _EVALUATED)),
    "found_asr": Evidence("how often a trigger found in the data still works", (*_POISONING, _EVALUATED)),
    "cacc": Evidence("how often clean prompts are answered right: what the defense costs", (_ACCURATE,)),
    "aacc": Evidence("how often triggered prompts are answered right", (*_POISONING, _ACCURATE)),
    "false_activation": Evidence("how often the behavior comes without a trigger", (*_POISONING,)),
    "suspects": Evidence(
        "which rows of the training data bear signs of poison",
        (*_POISONING, Reference("NIST AI 100-2", "NISTAML.013", "Data Poisoning")),
    ),
    "pinned": Evidence(
        "whether the files are those that the figures are of",
        (*_POISONING[:2], Reference("NIST AI 100-2", "NISTAML.051", "Model Poisoning (Supply Chain)"), _POISONING[-1]),
    ),
}
"""By figure; those of results by their key there."""


def ids() -> dict[str, object]:
    """The ids of the parts that each figure bears on, and the day on which they were looked up, for result files."""
    return {"as_of": AS_OF, "figures": {key: _named(told) for key, told in EVIDENCE.items()}}


def _named(told: Evidence) -> list[str]:
    return [f"{STANDARDS[one.standard].organization} {one.id}" for one in told.bears_on]


def evidence_lines(names: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Of each figure, given by key and name: the name, what it says, and the parts of standards that it bears on."""
    lines = []
    for key, name in names.items():
        told = EVIDENCE[key]
        lines.append((name, told.says, ", ".join(_named(told))))
    return lines
