"""Choosing a judge, shared by the commands that judge."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.recipes._given import JudgeSpec

if TYPE_CHECKING:
    from mbdefense.attacks.behaviors import Behavior
    from mbdefense.judges import Judge

logger = logging.getLogger(__name__)


def chosen_judge(
    given: JudgeSpec, behavior: Behavior, directory: Path, model: str | None, base_url: str | None, cache: str | None
) -> Judge:
    """A judge from its spec and options, or as it is."""
    from mbdefense.evaluation.judging import make_judge
    from mbdefense.judges.embedding import Embedding

    judge = given
    if isinstance(judge, str):
        judge = make_judge(judge, behavior, directory, model=model, base_url=base_url, cache=cache)
    if isinstance(judge, Embedding):
        judge.check()
    if judge.describe().startswith("keywords"):
        logger.warning("keywords over-counts; compare its figures with BackdoorLLM's, not more")
    return judge


def usage_in(directory: Path, judge: Judge) -> dict[str, Any]:
    """What a judge that is paid by tokens has used; empty for any other."""
    from mbdefense.core.files import read_json
    from mbdefense.evaluation.judging import USAGE_FILE
    from mbdefense.judges import Metered

    return read_json(directory / USAGE_FILE) if isinstance(judge, Metered) else {}
