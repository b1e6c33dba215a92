"""Hold the figures of a result file against limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mbdefense.recipes._given import Measured

if TYPE_CHECKING:
    from mbdefense.evaluation.gate import Condition


def check(
    results: Measured,
    *,
    max_asr: float | None = None,
    min_cacc: float | None = None,
    max_canary_asr: float | None = None,
    max_found_asr: float | None = None,
    arm: str | None = None,
    strict: bool = False,
) -> list[Condition]:
    """Hold the figures of a result file against limits, for use in continuous integration.

    Examples:
        >>> from mbdefense import check
        >>> all(condition.holds for condition in check("measured/results.json", max_asr=0.05))  # doctest: +SKIP

    Args:
        results: a result file, or what a recipe returned.
        max_asr: highest attack success rate, of every attack in the file.
        min_cacc: lowest accuracy on clean prompts.
        max_canary_asr: highest attack success rate, of every canary.
        max_found_asr: highest attack success rate, of every trigger that was found in the suspect data.
        arm: the model that is checked; by default the defense that `defend` made the file with, or the only one in it.
        strict: hold the limits against the interval's unfavorable end, not against the value.

    Returns:
        Each condition, whether it holds, and why. What cannot be evaluated does not hold.

    Raises:
        UserError: no limit is given or one is no share, the file is damaged, or it is not clear which model is meant.
    """
    from mbdefense.evaluation import gate
    from mbdefense.recipes._given import results_of

    return gate.check(
        results_of(results), max_asr=max_asr, min_cacc=min_cacc, max_canary_asr=max_canary_asr,
        max_found_asr=max_found_asr, arm=arm, strict=strict,
    )  # fmt: skip
