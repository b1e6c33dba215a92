"""Find, verify, break: the attacker's own trigger enters recovery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mbdefense.core.checks import share_below_one
from mbdefense.core.needs import Need
from mbdefense.defenses.found import Finding, meetings, questions
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import Recovery


@dataclass(frozen=True)
class FindAndBreak(Recovery, Finding):
    """Finds triggers in the suspect data, or takes those of a found.json, and unlearns them on the clean rows.

    The attacker's trigger has to be in the data. Candidates are mined from the suspect prompts
    (`mbdefense.finding.mining`), verified on the undefended model (`mbdefense.finding.finding`), and put into clean
    prompts during recovery, where the clean answer is the target. Texts that are instructions meet what the tuned model
    answers. Where nothing was verified, the best candidates are met all the same, and recovery starts a part of the way
    to the base model, which breaks something of what no candidate names. What rate a model can bear is told by the
    clean rows held out, and whether one is too low by what the recovered model says under the triggers (of several
    processes, which may hold a part of the model each, by the clean rows alone).

    Source: this project; recovery is MB-Defense's (arXiv 2601.04448) without its planted backdoors. Relatives find the
    triggers of classifiers (BKI, arXiv 2007.12070; Z-defence, 2305.11596) or invert them from a model alone (BABI,
    2509.16203).

    What was found stands in ``found.json``; the undefended model stays in ``attacked`` below the output directory. A
    finished model is repaired with the rows that it was tuned on or with a ``found.json``; then a base model is not
    needed, without which triggers and instructions that were searched for stay ``unclear``, and nothing is mixed in.

    Attributes:
        unverified_base_share: used instead of ``base_share`` if no trigger was verified.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "suspect data", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "this project"

    recovery_learning_rates: tuple[float, ...] = (1e-4, 3e-5, 1e-5)
    unverified_base_share: float = 0.25

    def __post_init__(self) -> None:
        Recovery.__post_init__(self)
        Finding.__post_init__(self)
        share_below_one("unverified_base_share", self.unverified_base_share, "0 leaves the tuned model as it is")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        if setting.victim is None or (self.found == "search" and setting.suspect is None):
            setting.check(self)
        victim = setting.victim_model()
        found = self.find(setting, victim)
        recovery: Recovery = self
        if setting.base is not None and (found is None or not found.of("trigger")):
            recovery = replace(self, base_share=self.unverified_base_share)
        known = found, setting.training.seed, setting.suspect
        return recovery.recover(setting, victim, [], meetings(*known), questions(*known), about=self)
