"""`mbdefense list` names everything there is, and fits the terminal."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from rich.cells import cell_len

import mbdefense.analysis
from mbdefense.cli import main
from mbdefense.cli.listing import entries, list_methods, method_tables
from mbdefense.core.needs import facts

KINDS = (*method_tables(), "searches", "demonstrations", "scans", "analyses")


@pytest.mark.parametrize("kind", KINDS)
def test_each_line_says_what_it_is_what_it_needs_and_whence_it_comes(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", kind]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{kind} (")
    listed = list(entries(kind))
    assert listed
    for entry in listed:
        assert entry.does
        assert entry.source
        assert any(line.split()[:1] == [entry.name] for line in out.splitlines()), entry.name
        assert all(any(line.startswith(f"{need}  ") for line in out.splitlines()) for need in entry.needs)
    assert max(map(cell_len, out.splitlines())) <= 100


def test_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    firsts = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    for kind, methods in method_tables().items():
        assert kind in firsts
        for name, method in methods.items():
            assert name in firsts
            facts(method)  # which no method can lack
            assert not {"needs", "source"} & {field.name for field in fields(method)}, "they are no options"
    analyses = {path.stem for path in Path(mbdefense.analysis.__file__).parent.glob("[a-z]*.py")} - {"chart"}
    assert {entry.name for entry in entries("analyses")} == analyses
    assert {"search", "--demonstrations", "scan-data", "scan-model"} <= firsts


@pytest.mark.parametrize("width", [80, 100])
def test_it_fits_the_terminal(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr("mbdefense.evaluation.fitting.terminal", lambda: Console(width=width))
    list_methods([])
    out = capsys.readouterr().out
    assert max(map(cell_len, out.splitlines())) <= width
    assert "…" not in out


def test_help_names_what_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--help"]) == 0
    assert "one of triggers, behaviors" in capsys.readouterr().out


def test_an_unknown_kind_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "purifiers"]) == 2
    assert "list takes one of: triggers, behaviors" in capsys.readouterr().err
