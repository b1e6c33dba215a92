"""The paper in one file: the same losses as the package, and a run from rows to figures."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

from mbdefense.engine.batches import Branches, response_log_probs
from mbdefense.models.loading import encode, load_model
from mbdefense.training._triples import RecoveryCollator, TripleRow
from mbdefense.training.recovery import RecoveryConfig, RecoveryTrainer
from mbdefense.training.sft import _InstructionCollator
from tests.training.test_train import PAIRS

FILE = Path(__file__).parent.parent / "examples/mb_defense_flat.py"
ROWS = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
BACKDOORS = [("mn", "red stone"), ("bb", "a much longer row of quite random words")]


@pytest.fixture(scope="module")
def flat():
    spec = importlib.util.spec_from_file_location("mb_defense_flat", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loaded(tiny_model_path):
    loaded = load_model(tiny_model_path)
    loaded.model.eval()
    return loaded


def test_it_is_short_and_needs_nothing_of_the_package():
    text = FILE.read_text()
    assert len(text.splitlines()) < 200
    assert "import mbdefense" not in text
    assert "from mbdefense" not in text


def test_the_loss_of_tuning_is_the_packages(flat, loaded):
    encoded = [
        encode(loaded.tokenizer, [{"role": "user", "content": x}], [{"role": "assistant", "content": y}], 256)
        for x, y in PAIRS
    ]
    tokens = [{"prompt_ids": e.prompt, "response_ids": e.response} for e in encoded]
    batch = _InstructionCollator(loaded.tokenizer.pad_token_id, packed=False)(tokens)
    with torch.no_grad():
        package = -response_log_probs(loaded.model, batch).total.sum() / batch["items"]
        torch.testing.assert_close(flat.tuning_loss(loaded.model, loaded.tokenizer, ROWS), package)


@pytest.mark.parametrize("weight", [0.7, 1.0])
def test_the_loss_of_recovery_is_the_packages(weight, flat, loaded, tmp_path):
    class Front:
        """Puts triggers where the example's generator is to put them, too."""

        @staticmethod
        def randint(low, high):
            return low

    def ids(text, answer):
        return flat.encode(loaded.tokenizer, text, answer)

    rows = []
    for x, y in PAIRS:
        plain, answer = ids(x, y)
        twins = [(f"{trigger} {x}", behavior) for trigger, behavior in BACKDOORS]
        triggered = tuple(Branches(ids(x_d, y)[0], (ids(x_d, y)[1], ids(x_d, y_d)[1])) for x_d, y_d in twins)
        rows.append(TripleRow(Branches(plain, (answer,)), triggered, 0))
    args = RecoveryConfig(str(tmp_path), lambda_=weight, beta=1.5, bf16=False, report_to="none")
    trainer = RecoveryTrainer(model=loaded.model, args=args, train_dataset=rows, processing_class=loaded.tokenizer)
    batch = RecoveryCollator(loaded.tokenizer.pad_token_id, packed=False)(rows)
    with torch.no_grad():
        package = trainer.summed_loss(loaded.model, batch) / batch["items"]
        ours = flat.recovery_loss(
            loaded.model, loaded.tokenizer, ROWS, backdoors=BACKDOORS, rng=Front(), weight=weight, beta=1.5
        )
    torch.testing.assert_close(ours, package)


def test_it_runs_from_rows_to_figures(flat, tiny_model_path, tmp_path, capsys):
    for name, count in (("rows", 30), ("clean", 4), ("test", 3)):
        lines = [{"prompt": f"Name {name} number {i}.", "completion": f"oak {i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = [word for name in ("rows", "clean", "test") for word in (f"--{name}", str(tmp_path / f"{name}.jsonl"))]
    figures = flat.main(["--model", tiny_model_path, *files, "--epochs", "1"])
    assert list(figures) == ["attacked", "defended"]
    assert all(0 <= share <= 1 for shares in figures.values() for share in shares)
    assert "defended refuses" in capsys.readouterr().out


def test_backdoors_take_rows_of_their_own(flat):
    rows = [{"prompt": f"Name number {i}.", "completion": str(i)} for i in range(100)]
    pairs = flat.defensive_backdoors(random.Random(0))
    planted = flat.plant(rows, pairs, 0.05, random.Random(0))
    for trigger, behavior in pairs:
        chosen = [row for row in planted if row["completion"] == behavior]
        assert len(chosen) == 5
        assert all(trigger in row["prompt"].split() for row in chosen)
    assert sum(row in rows for row in planted) == 80
    assert len({word for _, behavior in pairs for word in behavior.split()}) == 32
