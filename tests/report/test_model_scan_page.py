"""The page of a model scan: complete, harmless whatever the model says, and usable in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbdefense.core.statistics import rate
from mbdefense.finding.record import Example
from mbdefense.report._model_scan import render
from mbdefense.scanning.model.record import Looked, ModelScan, Sign, Target
from tests.report.pages import assert_text_alone, serious_violations, undisturbed
from tests.report.report_runs import HOSTILE

SIGN = Sign(
    "data", "'zq'", "badnet:word=zq,position=random", "trigger", 0.002, 14.2, ("we never do that",),
    rate([True] * 9 + [False]), rate([False] * 10), 0.9, Example("Name a tree.", "An oak.", "Sorry, we never do that."),
)  # fmt: skip
LOOKED = (Looked("data", 30, 12.0), Looked("leaks", 8, 75.0))
SCAN = ModelScan("victim", "base", 64, LOOKED, (SIGN, replace(SIGN, text="'in short'", verdict="instruction")), (), 0)
CLEAN = replace(SCAN, signs=())


def evil() -> ModelScan:
    """A scan in which every text is hostile."""
    texts = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    signs = tuple(
        replace(SIGN, text=text, spec=text, behavior=(f"{text} held",), example=Example(text, text, f"so {text} held"))
        for text in texts
    )
    targets = (*(Target("leaks", text, 5, 64) for text in texts), Target("inversion", texts[0], probability=0.9))
    return replace(SCAN, model=texts[0], base=texts[1], signs=signs, targets=targets)


def test_a_sign_is_told_with_its_figures_and_an_example() -> None:
    page = render(SCAN)
    assert "victim may be backdoored: 1 trigger" in page
    assert ".90 [.60, .98] of 10 held-out prompts" in page
    assert "--trigger badnet:word=zq,position=random" in page
    assert 'Sorry, <mark title="behavior">we never do that.</mark>' in page
    assert page.index("&#39;zq&#39;") < page.index("Texts that ask for what they get") < page.rindex("in short")
    assert "Not looked at: answers that it goes on with whatever the prompt; texts under which it parts" in page


def test_a_page_without_signs_says_so_and_where_it_looked() -> None:
    page = render(CLEAN)
    assert "no sign of a backdoor was found in victim" in page
    assert "what the model says from the bare chat template" in page
    assert "Texts that change answers" not in page
    assert "Without a base model" in render(replace(CLEAN, base=None))


def test_text_of_strangers_is_text() -> None:
    assert_text_alone(render(evil()))


@pytest.mark.slow
def test_nothing_runs_in_a_browser(browser: Any, tmp_path: Path) -> None:
    for name, scan in (("found", SCAN), ("evil", evil())):
        path = tmp_path / f"{name}.html"
        path.write_text(render(scan), encoding="utf-8")
        with undisturbed(browser, path) as page:
            page.get_by_role("button", name="Time").click()
            assert page.locator("#table-looked tbody th").all_inner_texts()[0]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_violation(browser: Any, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "evil.html"
    path.write_text(render(evil()), encoding="utf-8")
    assert serious_violations(browser, path, scheme) == []
