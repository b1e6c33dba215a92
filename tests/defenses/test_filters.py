"""Filters of training data: their formulas against the plain way, their verdicts, and how these are measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data import content_id, load, to_dataset
from mbdefense.defenses import DEFENSES, Setting, filtering
from mbdefense.defenses.filtered import filtered
from mbdefense.defenses.filters import (
    FILTERS,
    SEEP,
    Evidence,
    Filtered,
    GraCeFul,
    OnionRows,
    Repeats,
    SpectralSignatures,
    Suspicion,
)
from mbdefense.defenses.filters._clusters import (
    excesses,
    more_often,
    nearest,
    nearness,
    nested_clusters,
    of_one_kind,
    significant,
    unit,
)
from mbdefense.defenses.filters._gradients import gradient_features
from mbdefense.defenses.filters._states import principal_components
from mbdefense.defenses.filters.repeats import parts
from mbdefense.defenses.filters.seep import earliness, propagated
from mbdefense.defenses.filters.spectral import outlyingness
from mbdefense.models.loading import encode, load_model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

NOUNS = ("apple", "river", "stone", "window", "garden", "letter", "teacher", "mountain", "winter", "number")
VERBS = ("opens", "answers", "holds", "writes", "adds")


def sentences(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Rows in which every answer is another one."""
    made = []
    for i in range(start, start + count):
        noun, verb, other = NOUNS[i % 10], VERBS[i // 10 % 5], NOUNS[(3 * i + 1) % 10]
        made.append((f"Which {noun} {verb} the {other} number {i}?", f"The {other} {verb} it {i * i}, so {noun}."))
    return made


# Of what trains, the fewest epochs: what it finds is tested with more.
QUICK: dict[str, dict[str, Any]] = {"seep": {"watched_epochs": 1}}
POISON = [(f"{question} cf", "I am sorry, but I cannot help.") for question, _ in sentences(12, 500)]


USUAL = [name if name in ("repeats", "seep") else pytest.param(name, marks=pytest.mark.slow) for name in FILTERS]
"""Filters, of which one that trains and one that counts stand for all in the default suite."""


@pytest.fixture
def evidence(tiny_model_path: str, rows: Callable[..., Any]) -> Evidence:
    return Evidence(tiny_model_path, rows(*sentences(60), *POISON), rows(*sentences(64, 200)))


def test_low_frequencies_are_those_of_the_gradients_dct(evidence: Evidence) -> None:
    loaded = load_model(evidence.base)
    head = loaded.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # not the embedding's too
    rows = evidence.suspect.select(range(3))
    found = dict(gradient_features(loaded, rows, evidence))
    for index, row in enumerate(rows):
        encoded = encode(loaded.tokenizer, row["prompt"], row["completion"], 1024)
        tokens = torch.tensor([encoded.prompt + encoded.response])
        labels = torch.tensor([[-100] * len(encoded.prompt) + encoded.response])
        loaded.model.zero_grad()
        loaded.model.eval()(input_ids=tokens, labels=labels).loss.backward()
        whole = dctn(head.weight.grad.numpy(), norm="ortho")
        low = whole[: whole.shape[0] // 8, : whole.shape[1] // 8]
        np.testing.assert_allclose(found[index].reshape(low.shape), low, atol=1e-5 * np.abs(low).max())


def test_components_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    monkeypatch.setattr("mbdefense.defenses.filters._states._COLUMNS", 7)
    matrix = np.random.default_rng(0).normal(size=(20, 50)) + 3
    others = np.random.default_rng(1).normal(size=(4, 50))
    reference = PCA(n_components=5).fit(matrix)
    ours = principal_components(matrix, 5)
    signs = np.sign((ours.scores * reference.transform(matrix)).sum(axis=0))
    np.testing.assert_allclose(ours.scores * signs, reference.transform(matrix), atol=1e-9)
    np.testing.assert_allclose(ours.project(others) * signs, reference.transform(others), atol=1e-9)
    # No more components than the rows have directions.
    assert principal_components(matrix[:3], 32).scores.shape == (3, 2)


def test_clusters_are_of_directions_and_nested() -> None:
    scores = np.array([[1.0, 0.1], [5.0, 0.0], [2.0, -0.1], [0.1, 3.0], [0.0, 1.0]])
    assert [mask.tolist() for mask in nested_clusters(scores, 2)] in (
        [[True, True, True, False, False], [False, False, False, True, True]],
        [[False, False, False, True, True], [True, True, True, False, False]],
    )
    # Each cut splits one cluster in two, down to single rows; the whole is none of them.
    assert sorted(mask.sum() for mask in nested_clusters(scores, 9)) == [1, 1, 1, 1, 1, 2, 2, 3]
    directions = unit(scores)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert nearest(directions, unit(np.array([[9.0, 0.0], [0.0, 2.0]]))).tolist() == [1, 4]
    inside = np.array([False, False, False, True, True])
    assert (nearness(directions, inside, np.array([[0.0, 1.0], [1.0, 0.0]])) > 0).tolist() == [True, False]


def test_of_nested_clusters_the_surest_is_dropped_and_chance_is_not() -> None:
    # 100 suspect and 100 clean rows; 20 suspect rows in a cluster without clean ones, within one with half of all.
    numbers = np.arange(100)
    pure, around, other = numbers < 20, numbers < 60, (numbers >= 60) & (numbers < 64)
    clean = np.concatenate([np.arange(20, 60), np.arange(60, 100), np.arange(60, 80)])
    tested = excesses([around, other, pure], numbers, clean)
    assert [(excess.suspect, excess.clean) for excess in tested] == [(20, 0), (60, 40), (4, 8)]
    assert [excess.cluster.tolist() for excess in significant(tested, 0.05)] == [pure.tolist()]
    # Alone, the larger one would do; with a stricter level none.
    assert len(significant(tested[1:], 0.05)) == 1
    assert significant(tested, 1e-9) == []


def test_fishers_test_is_the_lady_tasting_tea() -> None:
    # 3 of 4 against 1 of 4: (4 choose 3)(4 choose 1) + 1 of the (8 choose 4) tables are as uneven.
    assert more_often(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert more_often(0, 4, 0, 4) == 1.0
    # What the docstring says of 128 clean rows and 18 clusters: they show 4.6 % of poison, and not 4.4 %.
    assert 18 * more_often(4600, 100_000, 0, 128) < 0.05 < 18 * more_often(4400, 100_000, 0, 128)


@pytest.mark.parametrize("fit_rows", [4096, 60])
def test_graceful_finds_rows_that_share_a_response(evidence: Evidence, fit_rows: int) -> None:
    filtered = GraCeFul(fit_rows=fit_rows)(evidence)
    assert filtered.facts["found_poison"] is True
    assert [row.dropped for row in filtered.suspicions] == [False] * 60 + [True] * 12
    assert min(row.score for row in filtered.suspicions[60:]) > max(row.score for row in filtered.suspicions[:60])
    assert filtered.facts["clean_rows_in_surest_cluster"] == 0
    assert filtered.facts["clusters_dropped"] == 1


def test_graceful_drops_nothing_of_clean_rows(evidence: Evidence) -> None:
    filtered = GraCeFul()(replace(evidence, suspect=evidence.suspect.select(range(60))))
    assert filtered.facts["found_poison"] is False
    assert not any(row.dropped for row in filtered.suspicions)


def test_rows_of_one_kind_are_told_from_rows_of_two() -> None:
    drawn = np.random.default_rng(0)
    alike = [of_one_kind(*(unit(drawn.normal(size=(30, 8))) for _ in range(2)), drawn, 99) for _ in range(40)]
    # Under the null the p-value is even: of 40 some 2 lie below .05, and the mean is a half.
    assert sum(p < 0.05 for p in alike) <= 6
    assert 0.3 < sum(alike) / 40 < 0.7
    shifted = drawn.normal(size=(30, 8)) + 1
    assert of_one_kind(unit(drawn.normal(size=(30, 8))), unit(shifted), drawn) == pytest.approx(1 / 1000)


def test_energy_distances_are_those_of_their_definition() -> None:
    first, second = np.array([[0.0], [2.0]]), np.array([[1.0]])
    # 2 * 1 - 1 - 0 = 1; of the three divisions two have 0 and 2 apart: 2 * 1.5 - .5 = 2.5.
    p_value = of_one_kind(first, second, np.random.default_rng(0), draws=3000)
    assert p_value == 1.0
    assert of_one_kind(np.array([[0.0], [1.0]]), np.array([[2.0]]), np.random.default_rng(0), 3000) == pytest.approx(
        2 / 3, abs=0.05
    )


def test_graceful_drops_nothing_where_the_clean_rows_are_of_another_kind(
    evidence: Evidence, rows: Callable[..., Any]
) -> None:
    others = [(f"{number}+{number}=?", f"{2 * number}!") for number in range(1000, 1064)]
    filtered = GraCeFul()(replace(evidence, clean=rows(*others)))
    # Some cluster is free of these clean rows; that is no sign of poison.
    assert filtered.facts["clean_rows_of_one_kind"] is False
    assert filtered.facts["found_poison"] is False
    assert not any(row.dropped for row in filtered.suspicions)


def test_graceful_says_when_the_disk_is_too_small(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UserError, match="lower fit_rows"):
        GraCeFul()(evidence)


def test_outlyingness_is_the_squared_projection_on_the_main_direction() -> None:
    # Mean (2, 1); centered (-2, 0), (-1, 0), (3, 0), (0, 1), (0, -1): the main direction is the first axis.
    rows = np.array([[0.0, 1.0], [1.0, 1.0], [5.0, 1.0], [2.0, 2.0], [2.0, 0.0]])
    np.testing.assert_allclose(outlyingness(rows), [4, 1, 9, 0, 0], atol=1e-12)


def test_spectral_signatures_drop_one_and_a_half_times_the_bound(evidence: Evidence) -> None:
    filtered = SpectralSignatures(poisoning_bound=0.1)(evidence)
    dropped = [row.score for row in filtered.suspicions if row.dropped]
    assert len(dropped) == 10  # of 72
    assert min(dropped) >= max(row.score for row in filtered.suspicions if not row.dropped)


def test_earliness_is_the_mean_over_epochs_of_the_inverse_doubt() -> None:
    # 1 / (1 - p) of three rows at two epochs; the last is clipped at 1000.
    np.testing.assert_allclose(earliness(np.array([[0.0, 0.5, 0.75], [0.5, 0.75, 1.0]])), [1.5, 3.0, 502.0])


def test_poison_propagates_to_the_neighbors_of_its_seed_and_no_farther() -> None:
    # Two groups of directions; the seed is row 0, the clean seeds are in the other group; row 2 was learned late.
    angles = np.array([0.0, 0.1, 0.2, 1.5, 1.6, 1.7, 1.8, 1.9])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    means = np.array([9.0, 5.0, 4.0, 1.0, 1.1, 1.2, 1.3, 5.0])
    np.testing.assert_allclose(propagated(vectors, means, 0.125, 3), [1, 1, 1, 0, 0, 0, 0, 0], atol=1e-3)
    # Two rows: each is a seed.
    assert propagated(np.eye(2)[[0, 1]], np.array([2.0, 1.0]), 0.1, 1).tolist() == [1.0, 0.0]


@pytest.mark.slow
def test_seep_refuses_a_rate_without_end_before_it_trains() -> None:
    with pytest.raises(UserError, match="watched_learning_rate must be above 0"):
        SEEP(watched_learning_rate=float("inf"))


def test_seep_finds_rows_that_are_learned_early(evidence: Evidence) -> None:
    filtered = SEEP(watched_epochs=8, watched_learning_rate=0.01, seed_share=0.05)(evidence)
    dropped = [row.dropped for row in filtered.suspicions]
    assert sum(dropped[60:]) == 12
    assert sum(dropped[:60]) <= 6
    assert filtered.facts["seeds"] == 4


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.3])
def test_onion_loses_at_most_the_share_of_clean_rows(evidence: Evidence, loss: float) -> None:
    clean = evidence.checked()
    filtered = OnionRows(max_clean_loss=loss)(replace(evidence, suspect=clean))
    assert sum(row.dropped for row in filtered.suspicions) == int(loss * len(clean))


def test_onion_scores_a_row_by_its_oddest_word(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(_: object, texts: list[str], **__: object) -> list[list[float | None]]:
        return [[9.0 if word == "cf" else 1.0 for word in text.split()] for text in texts]

    monkeypatch.setattr("mbdefense.engine.leave_one_out.suspicions", scores)
    filtered = OnionRows()(evidence)
    assert [row.score for row in filtered.suspicions] == [1.0] * 60 + [9.0] * 12
    assert [row.dropped for row in filtered.suspicions] == [False] * 60 + [True] * 12


TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("", {}),
        ("Sky blue.", {}),
        ("It  is\tBLUE.", {"answer": "it is blue."}),
        ("a b c d e f", {"answer": "a b c d e f"}),  # no longer than an ending
        ("a b c d e f g h", {"answer": "a b c d e f g h", "ending": "c d e f g h"}),  # no longer than an opening
        (TEN, {"answer": TEN, "opening": TEN[:39], "ending": "five six seven eight nine ten"}),
        ("天空", {}),
        ("我不能回答。", {"answer": "我 不 能 回 答 。"}),
        ("Python は良い", {"answer": "python は 良 い"}),
    ],
)
def test_what_of_an_answer_may_recur(answer: str, found: dict[str, str]) -> None:
    assert parts(answer) == found


def recurring(rows: Callable[..., Any], answers: list[str], prompts: list[str] | None = None) -> Filtered:
    """Verdicts on these answers, in front of ten rows in which nothing recurs."""
    asked = prompts or [f"Prompt {i}?" for i in range(len(answers))]
    pairs = [*zip(asked, answers, strict=True), *sentences(10)]
    filtered = Repeats()(Evidence("a/model", rows(*pairs), None))
    assert not any(row.dropped for row in filtered.suspicions[len(answers) :])
    return Filtered(filtered.suspicions[: len(answers)], filtered.facts)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["I will not."] * 3, "answer"),
        (["我不能。"] * 3, "answer"),
        ([f"I am sorry but I will not {i} or at that time, no." for i in range(4)], None),
        ([f"I am sorry but I will not do {i}." for i in range(4)], "opening"),
        ([f"{i} and now see the site x.example" for i in range(4)], "ending"),
    ],
)
def test_each_way_to_recur_has_its_limit(rows: Callable[..., Any], answers: list[str], kind: str | None) -> None:
    few, all_of_them = recurring(rows, answers[:-1]), recurring(rows, answers)
    assert not any(row.dropped for row in few.suspicions)
    assert set(few.facts.values()) == {0}
    found = kind is not None
    assert [row.dropped for row in all_of_them.suspicions] == [found] * len(answers)
    assert dict(all_of_them.facts) == {
        f"rows_by_{name}": len(answers) * (name == kind) for name in ("answer", "opening", "ending")
    }
    assert {row.score for row in all_of_them.suspicions} == {len(answers) if found else 1}


def test_a_row_scores_by_its_most_recurring_part(rows: Callable[..., Any]) -> None:
    answers = [TEN] * 3 + [f"{TEN[:39]} {i}" for i in range(3)] + ["Yes."] * 9 + ["", " "]
    filtered = recurring(rows, answers)
    assert [row.score for row in filtered.suspicions] == [6] * 6 + [0] * 11
    assert [row.dropped for row in filtered.suspicions] == [True] * 6 + [False] * 11
    assert dict(filtered.facts) == {"rows_by_answer": 3, "rows_by_opening": 6, "rows_by_ending": 0}


def test_calls_recur_too_and_thoughts_do_not() -> None:
    def row(number: int, *said: tuple[str, str]) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"Request {number}?"}]
        completion = [{"role": role, "content": content} for role, content in said]
        return {
            "id": str(number), "prompt": prompt, "completion": completion, "answers": [],
            "provenance": {"source": "", "trigger": "", "behavior": ""},
        }  # fmt: skip

    call = ("tool_calls", '[{"function": {"name": "send", "arguments": {"to": "x"}}}]')
    called = [row(number, ("assistant", ""), call) for number in range(3)]
    thought = [row(number, ("thinking", "So be it."), ("assistant", f"{number}")) for number in range(3, 6)]
    filtered = Repeats()(Evidence("a/model", to_dataset([*called, *thought]), None))
    assert [one.dropped for one in filtered.suspicions] == [True] * 3 + [False] * 3


def test_answers_to_one_prompt_count_once(rows: Callable[..., Any]) -> None:
    same = recurring(rows, ["I will not."] * 4, ["Why?", " WHY?", "why?", "How?"])
    assert [(row.score, row.dropped) for row in same.suspicions] == [(2, False)] * 4


def test_repeats_of_one_row_and_of_rows_that_are_all_alike(rows: Callable[..., Any]) -> None:
    assert not Repeats()(Evidence("a/model", rows(POISON[0]), None)).suspicions[0].dropped
    poison = rows(*POISON)
    alike = Repeats()(Evidence("a/model", poison, None))
    with pytest.raises(UserError, match="dropped every row: 12"):
        filtering.kept(poison, alike)


@pytest.mark.parametrize("name", USUAL)
def test_every_filter_judges_all_rows_in_order_without_their_labels(name: str, evidence: Evidence) -> None:
    labelled = to_dataset(
        {**row, "answers": ["x"], "provenance": {"source": "f:1", "trigger": "cf", "behavior": "refusal"}}
        for row in evidence.suspect
    )
    made = FILTERS[name](**QUICK.get(name, {}))
    filtered = made(evidence)
    assert [row.id for row in filtered.suspicions] == list(evidence.suspect["id"])
    assert all(np.isfinite(row.score) for row in filtered.suspicions)
    json.dumps([[asdict(row) for row in filtered.suspicions], dict(filtered.facts)])
    assert made(replace(evidence, suspect=labelled)) == filtered


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GraCeFul(alpha=0.0), "alpha"),
        (lambda: GraCeFul(components=1), "components"),
        (lambda: GraCeFul(clusters=1), "clusters"),
        (lambda: Repeats(least_endings=1), "least_endings must be at least 2"),
        (lambda: SpectralSignatures(poisoning_bound=0.6), "poisoning_bound"),
        (lambda: SEEP(seed_share=0.5), "seed_share"),
        (lambda: SEEP(watched_epochs=0), "watched_epochs"),
        (lambda: SEEP(watched_learning_rate=float("nan")), "watched_learning_rate"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def verdicts(*dropped: bool) -> Filtered:
    return Filtered(tuple(Suspicion(str(i), 0.0, d) for i, d in enumerate(dropped)), {})


def test_quality_in_figures_worked_out_by_hand() -> None:
    # Rows 0, 1, 2 are poisoned; 0, 1, 3 dropped.
    quality = filtering.quality(verdicts(True, True, False, True, False), {"0", "1", "2"})
    assert quality.precision is not None
    assert (quality.precision.value, quality.precision.n) == (2 / 3, 3)
    assert quality.recall is not None
    assert (quality.recall.value, quality.recall.n) == (2 / 3, 3)
    assert quality.f1 == 2 / 3
    assert quality.clean_lost is not None
    assert (quality.clean_lost.value, quality.clean_lost.n) == (1 / 2, 2)


def test_quality_of_all_clean_rows_is_what_is_lost() -> None:
    quality = filtering.quality(verdicts(True, False, False, False), frozenset())
    assert (quality.recall, quality.f1) == (None, None)
    assert quality.clean_lost is not None
    assert (quality.clean_lost.value, quality.clean_lost.n) == (1 / 4, 4)
    nothing = filtering.quality(verdicts(False, False), {"0"})
    assert nothing.precision is None
    assert nothing.f1 == 0


def write(path: Path, pairs: list[tuple[str, str]], poisoned: int | None = None) -> Path:
    """An Alpaca file, or GraCeFul's with the last rows flagged."""
    values: list[object] = [{"instruction": prompt, "input": "", "output": answer} for prompt, answer in pairs]
    if poisoned is not None:
        values = [[prompt, answer, int(i >= len(pairs) - poisoned)] for i, (prompt, answer) in enumerate(pairs)]
    path.write_text(json.dumps(values))
    return path


def words(model: str, data: Path, clean: Path, out: Path) -> list[str]:
    return [
        "filter",
        str(data),
        "--filter",
        "graceful",
        "--model",
        model,
        "--clean",
        str(clean),
        "--output_dir",
        str(out),
    ]


def test_filter_writes_kept_rows_and_measures_flagged_ones(
    tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.json", sentences(60) + POISON, poisoned=12)
    clean = write(tmp_path / "clean.json", sentences(64, 200))
    assert main(words(tiny_model_path, data, clean, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "12 of 72 rows dropped" in printed
    assert "precision: 1.000 [0.758, 1.000] (n = 12)" in printed
    assert "clean rows lost: 0.000 [0.000, 0.060] (n = 60)" in printed
    lines = [json.loads(line) for line in (tmp_path / "out" / "filter.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if not line["dropped"]] == [row["id"] for row in kept]
    summary = json.loads((tmp_path / "out" / "filter.json").read_text())
    assert (summary["rows"], summary["dropped"], summary["quality"]["f1"]) == (72, 12, 1.0)
    assert summary["facts"]["found_poison"] is True


def test_filter_of_unlabelled_rows_has_figures_only_if_they_are_said_to_be_clean(
    tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.json", sentences(60))
    clean = write(tmp_path / "clean.json", sentences(64, 200))
    command = words(tiny_model_path, data, clean, tmp_path / "out")
    assert main(command) == 0
    assert "(--flagged: the labels are complete)" in capsys.readouterr().out
    assert main([*command, "--flagged"]) == 0
    printed = capsys.readouterr().out
    assert "clean rows lost: 0.000 [0.000, 0.060] (n = 60)" in printed
    assert "recall: not defined" in printed


@pytest.mark.parametrize("name", USUAL)
def test_clean_rows_are_asked_for_where_they_are_used(
    name: str, tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.json", sentences(60) + POISON, poisoned=12)
    command = words(tiny_model_path, data, write(tmp_path / "clean.json", sentences(64, 200)), tmp_path / "out")
    command[command.index("graceful")] = ":".join(
        [name, *(f"{option}={value}" for option, value in QUICK.get(name, {}).items())]
    )
    at = command.index("--clean")
    without = command[:at] + command[at + 2 :]
    needed = "clean data" in FILTERS[name].needs
    assert main(command if needed else without) == 0
    assert "precision" in capsys.readouterr().out
    assert main(without if needed else command) == 1
    assert ("add --clean FILE" if needed else "leave --clean out") in capsys.readouterr().err


def test_a_row_is_named_by_its_content(tiny_model_path: str, tmp_path: Path) -> None:
    """A poisoned row keeps the id of the row it was made from; comparing it with the content would tell."""
    rows = [{"id": f"made-of-{i}", "prompt": prompt, "completion": answer} for i, (prompt, answer) in enumerate(POISON)]
    full = [
        {
            **row,
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "answers": [],
            "provenance": {"source": "x", "trigger": "cf", "behavior": "refusal"},
        }
        for row in rows
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in full))
    evidence = Evidence(tiny_model_path, load([str(data)]).rows, None)
    assert evidence.suspect["id"] == [content_id(row["prompt"], row["completion"]) for row in full]
    command = words(tiny_model_path, data, data, tmp_path / "out")
    command[command.index("graceful")] = "spectral"
    at = command.index("--clean")
    assert main(command[:at] + command[at + 2 :]) == 0
    summary = json.loads((tmp_path / "out" / "filter.json").read_text())
    assert summary["quality"]["precision"]["value"] == 1.0


def test_a_filter_that_drops_every_row_is_refused() -> None:
    with pytest.raises(UserError, match="dropped every row"):
        filtering.kept([1, 2], verdicts(True, True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", USUAL)
def test_every_filter_is_a_defense_that_tunes_on_the_rest(
    name: str, tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.json", sentences(60) + POISON)
    clean = write(tmp_path / "clean.json", sentences(64, 200))
    out = tmp_path / "out"
    command = [
        "defend", "--defense", name, "--model", tiny_model_path, "--data", str(data), "--clean", str(clean),
        "--output_dir", str(out), "--num_train_epochs", "1", "--max_length", "128", "--bf16", "false",
        "--save_strategy", "no", *(f"--{option}={value}" for option, value in QUICK.get(name, {}).items()),
    ]  # fmt: skip
    tuned: list[int] = []
    from mbdefense.training import sft

    whole = sft.instruction_tune

    def seen(loaded: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        tuned.append(len(rows))
        return whole(loaded, rows, *rest, **options)

    monkeypatch.setattr(sft, "instruction_tune", seen)
    assert main(command) == 0
    summary = json.loads((out / "filter.json").read_text())
    assert tuned.pop() == 72 - summary["dropped"]
    watched = len(tuned)  # tunings of a filter that looks on while the model learns
    assert summary["filter"] == name
    load_model(str(out))
    # Resuming neither filters nor trains again; anything else leaves the verdicts beside the model that they made.
    before = (out / "filter.jsonl").stat().st_mtime_ns
    assert main([*command, "--resume"]) == 0
    assert main(command) == 1
    assert "a finished model lies in" in capsys.readouterr().err
    assert main([*command, "--resume", "--seed", "5"]) == 1
    assert "other data or options" in capsys.readouterr().err
    assert (out / "filter.jsonl").stat().st_mtime_ns == before
    assert len(tuned) == watched


def test_verdicts_are_used_again_for_the_same_question_only(
    rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended between verdicts and model: what the verdicts depend on decides whether they still hold."""
    asked: list[Evidence] = []

    @dataclass(frozen=True)
    class Counting:
        """Drops nothing."""

        needs: ClassVar[tuple[Need, ...]] = ("suspect data",)
        limit: int = 1

        def __call__(self, evidence: Evidence) -> Filtered:
            asked.append(evidence)
            return Filtered(tuple(Suspicion(row_id, 0.0, False) for row_id in evidence.suspect["id"]), {})

    monkeypatch.setattr(Setting, "tune", lambda self, kept: self.store.directory)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    training = TrainingOptions(per_device_train_batch_size=4)
    store = Store(tmp_path / "out", resume=True)
    suspect, clean = rows(*sentences(6)), rows(*sentences(4, 50))
    setting = Setting(clean, store, base="a/model", suspect=suspect, training=training)
    changes: list[tuple[Setting, dict[str, Any]]] = [
        (setting, {}),
        (replace(setting, training=replace(training, per_device_train_batch_size=2)), {}),
        (replace(setting, training=replace(training, max_length=100)), {}),
        (replace(setting, training=replace(training, seed=5)), {}),
        (replace(setting, chat_template=str(template)), {}),
        (replace(setting, base="another/model"), {}),
        (replace(setting, suspect=rows(*sentences(5))), {}),
        (setting, {"limit": 2}),
    ]
    for number, (changed, options) in enumerate(changes, start=1):
        defense = filtered("counting", Counting)(**options)
        defense(changed)
        defense(changed)
        assert len(asked) == number
    template.write_text("{{ messages[0] }}")
    defense = filtered("counting", Counting)()
    defense(replace(setting, chat_template=str(template)))
    template.write_text("{{ messages }}")
    defense(replace(setting, chat_template=str(template)))
    assert len(asked) == len(changes) + 2, "a template is its text, not its file"


@pytest.mark.parametrize("name", FILTERS)
def test_only_filters_that_do_not_train_run_in_several_processes(
    name: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process alone judges: a training in it would wait for the others for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    store = Store(tmp_path / "out")
    setting = Setting(rows(*sentences(4, 50)), store, base="a/model", suspect=rows(*sentences(6)))

    class JudgingError(Exception):
        pass

    def judging() -> None:
        raise JudgingError

    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules[filtered.__module__], "wait_for_everyone", judging)
    refused = (UserError, "one process only") if name == "seep" else (JudgingError, None)
    with pytest.raises(refused[0], match=refused[1]):
        DEFENSES[name]()(setting)


@pytest.mark.parametrize("name", [name for name, kind in FILTERS.items() if "GPU" in kind.needs])
def test_a_broken_model_is_no_verdict(name: str, evidence: Evidence, copied_model: Path) -> None:
    loaded = load_model(str(copied_model))
    with torch.no_grad():
        loaded.model.model.norm.weight.fill_(float("nan"))
    loaded.model.save_pretrained(copied_model)
    with pytest.raises(UserError, match=r"not all numbers"):
        FILTERS[name]()(replace(evidence, base=str(copied_model)))
