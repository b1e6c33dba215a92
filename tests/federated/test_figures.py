"""Figures of a grid: known answers, and the command from its file to its table."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mbdefense import federate
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.federated.figures import as_text, cad, markdown, over_cells
from mbdefense.federated.grid import FederatedGrid, read_grid
from mbdefense.records.federated import (
    FEDERATED_FILE,
    TABLE_FILE,
    FederatedCell,
    FederatedResults,
    FederatedRound,
    Refusal,
    read_cell,
    read_federated,
)

SMALL = {
    "attacks": ["scaling"], "rules": ["mars"], "rows": 120, "test_rows": 40, "server_rows": 40, "clients": 4,
    "attackers": 1, "epochs": 1, "clean_rounds": 1, "attack_rounds": 1, "after_rounds": 1, "seeds": [0],
}  # fmt: skip


def test_cad_of_the_papers_figures():
    assert cad(0.8516, 0.0940, 1, 0) == pytest.approx(0.9394)
    assert cad(0.8437, 0.9676, 0, 0) == pytest.approx(0.4690, abs=1e-4)


def a_round(number, attacked, backdoor, kept, flagged=(), refused=()):
    refusals = tuple(Refusal(client, "sent nothing") for client in refused)
    return FederatedRound(number, attacked, 0.5, backdoor, kept, flagged, refusals, {})


ROUNDS = (
    a_round(0, True, 0.95, (1, 2), (0,), (3,)),
    a_round(1, True, 0.4, (0, 1, 2, 3)),
    a_round(2, False, 0.6, (1, 2, 3), (0,)),
)
CELL = FederatedCell("k", "scaling", "mars", "patch", 0, 4, (0,), ROUNDS, "1110", "1000", 0.1, 1.0)


def test_clients_that_are_left_out_are_counted_over_attacked_rounds():
    one = over_cells([CELL])
    assert (one.tpr.value, one.tpr.n) == (0.5, 2)
    assert (one.fpr.value, one.fpr.n) == (pytest.approx(1 / 6), 6)  # refused is left out, too
    assert (one.accuracy.value, one.backdoor.value) == (0.75, 0.25)
    assert one.cad == pytest.approx((0.75 + 0.75 + 0.5 + 5 / 6) / 4)
    assert (one.until, one.outlives, one.after, one.refused) == ((1,), (1,), 1, 1)


def test_seeds_are_taken_together_and_without_an_attack_all_are_honest():
    other = replace(CELL, seed=1, correct="0000", fooled="1111")
    two = over_cells([other, CELL])
    assert two.seeds == (0, 1)
    assert two.accuracy.value == pytest.approx(3 / 8)
    assert two.accuracy.low < 3 / 8 < two.accuracy.high
    control = over_cells([replace(CELL, attack="none")])
    assert control.tpr is None
    assert control.cad is None
    assert (control.fpr.value, control.fpr.n) == (0.25, 8)


@pytest.mark.parametrize(
    "wrong",
    [{"correct": ""}, {"fooled": "12"}, {"attackers": (4,)}, {"rounds": CELL.rounds[2:]},
     {"rounds": (a_round(0, True, 0.5, (1, 2)),)}, {"rounds": (a_round(0, True, 0.5, (0, 1, 2, 3), (0,)),)}],
)  # fmt: skip
def test_a_cell_that_contradicts_itself_is_refused(wrong, tmp_path):
    from mbdefense.records.federated import write_cell

    write_cell(tmp_path / "cell.json", replace(CELL, **wrong))
    with pytest.raises(UserError, match=r"cell.json: content.*delete this file"):
        read_cell(tmp_path / "cell.json")
    write_cell(tmp_path / "good.json", CELL)
    assert read_cell(tmp_path / "good.json") == CELL


def test_hostile_text_stays_text_in_a_table():
    cell = replace(CELL, attack="<b>|x")
    results = FederatedResults({"commit": "<i>"}, (over_cells([cell]),), ("a",), {"a \x1b[2J": "<u>"})
    text = markdown(results, [cell])
    assert not [mark for mark in ("<b>", "<i>", "<u>", "\x1b") if mark in text]
    assert "\x1b" not in as_text(results, 80)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federated")
    (folder / "grid.yaml").write_text(json.dumps(SMALL))
    assert main(["federated", str(folder / "grid.yaml"), "--output_dir", str(folder / "out")]) == 0
    return folder


def test_a_grid_gives_figures_with_their_controls(ran):
    results = read_federated(ran / "out" / FEDERATED_FILE)
    assert [(one.attack, one.rule) for one in results.figures] == [
        ("none", "mean"), ("none", "mars"), ("scaling", "mean"), ("scaling", "mars"),
    ]  # fmt: skip
    assert results.failed == {}
    assert results.provenance["seeds"] == [0]
    assert all(one.accuracy.n == 40 for one in results.figures)
    cells = [read_cell(ran / "out" / "cells" / name) for name in results.cells]
    assert [len(cell.rounds) for cell in cells] == [2] * 4
    text = (ran / "out" / TABLE_FILE).read_text()
    assert "| scaling | mars |" in text
    assert "Commit" in text


def test_it_goes_on_where_it_stopped(ran, monkeypatch, capsys):
    results = read_federated(ran / "out" / FEDERATED_FILE)
    gone = ran / "out" / "cells" / results.cells[1]
    before = {path: path.stat().st_mtime_ns for path in gone.parent.iterdir()}
    kept = read_cell(gone)
    gone.unlink()
    assert main(["federated", str(ran / "grid.yaml"), "--output_dir", str(ran / "out")]) == 0
    assert "1 of 1: mars against none, seed 0" in capsys.readouterr().err
    assert replace(read_cell(gone), seconds=0) == replace(kept, seconds=0)
    del before[gone]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_one_damaged_cell_costs_one_cell(ran, tmp_path, capsys):
    shutil.copytree(ran / "out", tmp_path / "out")
    whole = read_federated(tmp_path / "out" / FEDERATED_FILE)
    damaged = tmp_path / "out" / "cells" / whole.cells[1]
    damaged.write_text(damaged.read_text().replace('"accuracy"', '"acuracy"', 1))
    words = ["federated", str(ran / "grid.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main(words) == 1
    assert "failed: mars against none, seed 0: changed since it was written" in capsys.readouterr().err
    left = read_federated(tmp_path / "out" / FEDERATED_FILE)
    assert left.figures == tuple(one for one in whole.figures if (one.attack, one.rule) != ("none", "mars"))
    damaged.unlink()
    assert main(words) == 0


def test_a_cell_in_anothers_place_is_not_taken_for_it(ran, tmp_path, capsys):
    """Its seal is whole: what is wrong is where it lies."""
    shutil.copytree(ran / "out", tmp_path / "out")
    whole = read_federated(tmp_path / "out" / FEDERATED_FILE)
    one, other = (tmp_path / "out" / "cells" / name for name in whole.cells[1:3])
    shutil.copyfile(other, one)
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "page.html")]) == 1
    assert f"{one.name} holds another cell" in capsys.readouterr().err
    assert main(["federated", str(ran / "grid.yaml"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "holds another cell: 'mean against scaling, seed 0'" in capsys.readouterr().err
    left = read_federated(tmp_path / "out" / FEDERATED_FILE)
    assert left.figures == tuple(one for one in whole.figures if (one.attack, one.rule) != ("none", "mars"))


def test_a_cell_that_fails_does_not_stop_the_others(ran, monkeypatch):
    from mbdefense.federated.rules import MARS

    def fails(self, round):
        raise UserError("no layer to score")

    monkeypatch.setattr(MARS, "__call__", fails)
    done = federate(str(ran / "grid.yaml"), seeds=[3])
    assert [(one.attack, one.rule) for one in done.results.figures] == [("none", "mean"), ("scaling", "mean")]
    assert list(done.results.failed) == ["mars against none, seed 3", "mars against scaling, seed 3"]


def test_a_class_that_only_the_server_has_is_one_of_the_networks():
    from mbdefense.federated.cells import Data, Seed
    from mbdefense.vision.images import Split, load_images

    split = load_images("digits", 60, 20, 40, 0)
    train = split.train.take(split.train.labels < 9)
    grid = FederatedGrid(clients=2, attackers=1, clean_rounds=0, calibration_rounds=1, epochs=1)
    assert len(Seed(grid, Data(Split(train, split.clean, split.test), ""), 0).clean) == 1


def test_attackers_who_work_together_send_the_same_and_are_honest_apart():
    from mbdefense.federated.cells import Seed, load

    grid = FederatedGrid(clients=4, rows=120, test_rows=40, server_rows=40, epochs=1, clean_rounds=1)
    alike = Seed(grid, load(grid), 0)

    def sent(attack, attacking):
        return [
            client.sends(alike.learner, alike.start, at, attacking=attacking)["head.weight"]
            for at, client in enumerate(alike.clients(attack)[:2])
        ]

    assert torch.equal(*sent("scaling:together=true", True))
    assert not torch.equal(*sent("scaling", True))
    assert not torch.equal(*sent("scaling:together=true", False))


def test_a_cell_made_by_other_code_is_made_again(ran, monkeypatch, capsys):
    monkeypatch.setattr("mbdefense.grid.code.code_hash", lambda *rooms: "other")
    monkeypatch.setattr("mbdefense.federated.cells.Seed.play", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["federated", str(ran / "grid.yaml"), "--output_dir", str(ran / "out")]) == 130


def test_an_interrupt_keeps_what_is_done(ran, monkeypatch, capsys, tmp_path):
    def stop(self, attack, rule, key):
        raise KeyboardInterrupt

    monkeypatch.setattr("mbdefense.federated.cells.Seed.play", stop)
    words = ["federated", str(ran / "grid.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main(words) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert main(["federated", str(ran / "grid.yaml"), "--output_dir", str(ran / "out")]) == 0  # all is done


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rulez": ["mars"]}, "did you mean 'rules'"),
        ({"rules": ["mras"]}, "did you mean 'mars'"),
        ({"rules": []}, "empty"),
        ({"rules": ["mars", "mars"]}, "twice"),
        ({"attacks": ["scaling:factor=big"]}, "factor"),
        ({"backdoor": "path"}, "did you mean 'patch'"),
        ({"clients": 3, "attackers": 3}, "not all clients"),
        ({"clients": 0}, "at least 1"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": ".nan"}, "alpha"),
        ({"lr": "fast"}, "lr"),
        ({"seeds": [-1]}, "seeds"),
        ({"images": "nowhere"}, "no file"),
        ({"rows": 10**6}, "fewer images"),
        ({"network": "transformer"}, "batch_norm"),
        ({"backdoor": "patch:target=42"}, "no rows for the backdoor"),
        ({"clients": {"a": 1}}, "one value"),
    ],
)
def test_a_grid_that_cannot_work_is_one_line_and_writes_nothing(given, says, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(json.dumps({**SMALL, **given}))
    assert main(["federated", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_grid_by_default_has_its_controls():
    grid = read_grid(None, seeds=[5])
    assert grid == replace(FederatedGrid(), seeds=(5,))
    assert grid.cells()[0] == (5, "none", "mean")
    assert len(grid.cells()) == 12
