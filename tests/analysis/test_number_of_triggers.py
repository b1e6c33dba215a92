"""The curve over the number of defensive triggers: which result stands where, and what may have caused it."""

import dataclasses
import json

import pytest
from PIL import Image

from mbdefense.analysis._record import Record, record_of
from mbdefense.analysis.triggers import curves, in_words
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.evaluation.metrics import rate
from mbdefense.records.provenance import provenance
from mbdefense.records.results import ResultRow, Results, write

TRIGGERS = ["mn", "bb", "tq", "mb", "qw", "jh"]


def row(asr=5, cacc=60, **changes):
    made = ResultRow(
        arm="model", attack="badnet:word=cf", behavior="refusal", seed=0, model="model",
        asr=None if asr is None else rate([True] * asr + [False] * (100 - asr)),
        cacc=None if cacc is None else rate([True] * cacc + [False] * (100 - cacc)),
        aacc=None, false_activation=None, perplexity=None, seconds=0.0, peak_bytes=0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def record(number, stage="mb_defense", **options):
    return Record(stage, {"defensive_triggers": TRIGGERS[:number], "defensive_seed": 0, "seed": 0, **options})


UNDEFENDED = Record("none", {"seed": 0})


def test_points_stand_by_number_of_triggers_and_undefended_ones_at_none():
    made = curves([(row(10), record(4)), (row(30), record(1)), (row(80), UNDEFENDED), (row(20), record(2))])
    (curve,) = made
    assert (curve.attack, curve.behavior, curve.stage) == ("badnet:word=cf", "refusal", "mb_defense")
    assert [(point.triggers, point.asr.value) for point in curve.points] == [(0, 0.8), (1, 0.3), (2, 0.2), (4, 0.1)]
    assert curve.points[1].asr == rate([True] * 30 + [False] * 70)
    assert curve.differing == ()


def test_attacks_and_stages_have_curves_of_their_own_and_share_the_undefended():
    other = {"attack": "insent"}
    made = curves(
        [
            (row(80), UNDEFENDED),
            (row(10), record(1)),
            (row(40), record(1, "merged")),
            (row(7, **other), record(1)),
            (row(9, **other), record(2)),
        ]
    )
    found = {(curve.attack, curve.stage): [point.triggers for point in curve.points] for curve in made}
    assert found == {
        ("badnet:word=cf", "mb_defense"): [0, 1],
        ("badnet:word=cf", "merged"): [0, 1],
        ("insent", "mb_defense"): [1, 2],
    }


def test_a_curve_says_what_else_differs():
    made = curves([(row(), record(1, lambda_=1.0, seed=1)), (row(), record(2, lambda_=4.0, defensive_seed=5))])
    assert made[0].differing == ("lambda_",)
    assert [point.seed for point in made[0].points] == [1, 0]
    assert "also differ in lambda_" in in_words(made)


def test_rows_without_figures_are_passed_over_and_none_at_all_is_an_error():
    made = curves([(row(None, None), record(1)), (row(None, 50), record(2))])
    assert [point.triggers for point in made[0].points] == [2]
    assert "ASR not measured" in in_words(made)
    with pytest.raises(UserError, match="no result has"):
        curves([(row(None, None), record(1))])


@pytest.fixture
def runs(tmp_path):
    """Two defended models with their undefended one, and a folder of results for each."""

    def make(number, asr, attack="badnet:word=cf"):
        model = tmp_path / f"defended-{number}"
        for folder in (model, model / "merged", model / "attacked"):
            folder.mkdir(parents=True, exist_ok=True)
        config = {"defense": "mb_defense", "defensive_triggers": TRIGGERS[:number], "defensive_seed": 0, "seed": 3}
        write(model / "results.json", Results(provenance(config, [3]), ()))
        measured = tmp_path / f"measured-{number}"
        measured.mkdir()
        rows = [
            row(asr, model=str(model), attack=attack),
            row(asr + 20, model=str(model / "merged"), attack=attack),
            row(90, model=str(model / "attacked"), attack=attack),
        ]
        write(measured / "results.json", Results(provenance({"model": str(model)}, [0]), tuple(rows)))
        return measured

    return make


def test_from_result_files_to_data_and_picture(runs, tmp_path, capsys):
    hostile = "badnet:word=$x_{1$<b>\u202e\x1b[2J\n[red]"
    folders = [str(runs(1, 30, hostile)), str(runs(4, 5, hostile))]
    out = tmp_path / "out"
    assert main(["analyze", "triggers", *folders, "--output_dir", str(out)]) == 0
    value = json.loads((out / "triggers.json").read_text(encoding="utf-8"))
    assert (value["schema"], value["analysis"], value["n"]) == (1, "triggers", {"least": 100, "most": 100})
    assert value["provenance"]["seeds"] == [3]
    found = {
        curve["stage"]: [(point["triggers"], point["asr"]["value"]) for point in curve["points"]]
        for curve in value["curves"]
    }
    assert found == {
        "mb_defense": [(0, 0.9), (0, 0.9), (1, 0.3), (4, 0.05)],
        "merged": [(0, 0.9), (0, 0.9), (1, 0.5), (4, 0.25)],
    }
    with Image.open(out / "triggers.png") as picture:
        picture.load()
        assert picture.info["Description"] == value["alt"]
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


def test_unusable_folders_are_user_errors(runs, tmp_path, capsys):
    folder = runs(1, 30)

    def error(*folders):
        assert main(["analyze", "triggers", *map(str, folders), "--output_dir", str(tmp_path / "out")]) == 1
        return capsys.readouterr().err

    assert "named twice" in error(folder, f"{folder}/")
    assert "cannot read" in error(tmp_path / "absent")
    strange = tmp_path / "strange"
    strange.mkdir()
    write(strange / "results.json", Results(provenance({}, [0]), (row(model="a/hub-model"),)))
    assert "no record" in error(strange)
    assert not (tmp_path / "out").exists()


def test_no_folder_and_an_unknown_analysis_are_usage_errors(capsys):
    assert main(["analyze", "triggers", "--output_dir", "out"]) == 2
    assert "directories" in capsys.readouterr().err
    assert main(["analyze", "mtrix"]) == 2
    assert "did you mean 'matrix'" in capsys.readouterr().err


def test_records_tell_stages_apart(runs, tmp_path):
    runs(2, 10)
    model = tmp_path / "defended-2"
    stages = {name: record_of(str(model / name)).stage for name in ("", "merged", "attacked")}
    assert stages == {"": "mb_defense", "merged": "merged", "attacked": "none"}
    assert record_of(str(model / "attacked")).merging() is None
    assert record_of(str(model / "merged")).merging().defensive_triggers == ("mn", "bb")
    (model / "elsewhere").mkdir()
    assert record_of(str(model / "elsewhere")) is None
    assert record_of(str(tmp_path)) is None
