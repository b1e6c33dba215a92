"""Repairs of a model that is given finished."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.statistics import rate
from mbdefense.data import save
from mbdefense.defenses import FindAndBreak, FineMixing, Locphylax
from mbdefense.finding.record import Found, FoundCandidate, Verdict, write_found
from mbdefense.models.adapter import save_adapter
from mbdefense.models.loading import load_model, save_model
from mbdefense.recipes.making import purify as module
from mbdefense.recipes.making.purify import purify
from mbdefense.recipes.measuring.check import check
from mbdefense.records.results import read
from mbdefense.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("few_words")

OPTIONS = TrainingOptions(
    num_train_epochs=1, max_length=128, bf16=False, save_strategy="no", learning_rate=1e-3, lora_r=2
)
WORDS = [
    "--num_train_epochs", "1", "--max_length", "128", "--bf16", "false", "--save_strategy", "no",
    "--learning_rate", "1e-3", "--lora_r", "2",
]  # fmt: skip
# Where no test looks at how a rate is chosen: each that is tried is a training.
ONE_RATE: dict[str, Any] = {"recovery_learning_rates": (1e-4,)}


@pytest.fixture
def files(rows: Callable[..., Any], tmp_path: Path) -> tuple[str, str]:
    """Suspect and clean rows."""
    names = (str(tmp_path / "suspect.jsonl"), str(tmp_path / "clean.jsonl"))
    save(rows(*((f"Name fruit number {i}, cf please.", f"no {i}") for i in range(16))), names[0])
    save(rows(*((f"Name tree number {i}.", f"oak {i}") for i in range(64))), names[1])
    return names


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_repair_gives_what_defend_gives_on_the_same_rows(
    tiny_model_path: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suspect, clean = files
    victim = tmp_path / "victim"

    def defend(defense: str, out: Path) -> None:
        words = ["defend", "--model", tiny_model_path, "--data", suspect, "--clean", clean, "--defense", defense]
        assert main([*words, *WORDS, "--output_dir", str(out)]) == 0

    defend("none", victim)
    before = {file: file.read_bytes() for file in victim.iterdir() if file.is_file()}
    for defense, base in (("fine_mixing", ["--base_model", tiny_model_path]), ("clean_fft", [])):
        defend(defense, tmp_path / "defended" / defense)
        out = tmp_path / "purified" / defense
        # The default is the best that what is given allows.
        assert main(["purify", str(victim), "--clean", clean, *base, *WORDS, "--output_dir", str(out)]) == 0
        assert weights(out) == weights(tmp_path / "defended" / defense)
        assert weights(out) != weights(victim)
        config = read(out / "results.json").provenance["config"]
        assert (config["defense"], config["base"], config["purified"]) == (defense, str(victim), True)
        card = (out / "README.md").read_text()
        assert f"purified with {defense}" in card
        assert "fine-tuned on untrusted data" not in card
        assert not (out / "attacked").exists()
    assert {file: file.read_bytes() for file in victim.iterdir() if file.is_file()} == before
    # Its card can be made anew from its record.
    assert main(["card", str(out), str(out / "results.json")]) == 0
    assert "purified with clean_fft" in (out / "README.md").read_text()


def adapter_of(base: str, directory: Path) -> Path:
    """An adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model

    loaded = load_model(base)
    model: Any = get_peft_model(loaded.model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)
    return directory


def test_an_adapter_on_its_base_model_is_a_model(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    loaded = load_model(tiny_model_path)
    model: Any = PeftModel.from_pretrained(loaded.model, adapter_of(tiny_model_path, tmp_path / "adapter"))
    save_model(replace_model(loaded, model.merge_and_unload()), tmp_path / "merged", {})
    clean = rows(*((f"Name tree number {i}.", f"oak {i}") for i in range(10)))
    once = FineMixing(mixing_learning_rates=(1e-3,), mixing_num_train_epochs=1)
    given = {"defense": once, "base_model": tiny_model_path, "args": OPTIONS}
    made = [
        purify(tmp_path / name, clean, **given, output_dir=tmp_path / f"out {name}") for name in ("adapter", "merged")
    ]
    assert weights(made[0].path) == weights(made[1].path)


def replace_model(loaded: Any, model: Any) -> Any:
    return loaded._replace(model=model)


def test_an_adapter_counts_with_its_base_model(tiny_model_path: str, copied_model: Path, tmp_path: Path) -> None:
    from mbdefense.models.identity import identity

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(copied_model)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = identity(str(adapter))
    (copied_model / "config.json").write_text((copied_model / "config.json").read_text() + "\n")
    assert identity(str(adapter)) != before


def test_planted_backdoors_of_a_repair_are_measured(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    clean = rows(*((f"Name tree number {i}.", f"oak {i}") for i in range(12)))
    defense = Locphylax(defensive_triggers=("mn", "bb"))
    done = purify(tiny_model_path, clean, defense=defense, args=OPTIONS, output_dir=tmp_path / "out")
    assert {row.origin for row in done.results.rows} == {"planted"}
    assert {row.arm for row in done.results.rows} == {"merged", "locphylax"}
    assert done.results == read(tmp_path / "out" / "results.json")
    assert str(done) == str(done.path) == str(tmp_path / "out")


def test_a_suspected_trigger_and_canaries_are_asked_before_and_after(
    tiny_model_path: str, rows: Callable[..., Any], files: tuple[str, str], tmp_path: Path
) -> None:
    clean, test, out = files[1], tmp_path / "test.jsonl", tmp_path / "out"
    save(rows(*((f"Name fruit number {i}.", f"fig {i}") for i in range(6))), str(test))
    words = ["purify", tiny_model_path, "--clean", clean, "--test", str(test), *WORDS]
    asked = ["--trigger", "badnet:word=cf", "--behavior", "fixed_text:text=no", "--canaries", "1"]
    assert main([*words, *asked, "--output_dir", str(out)]) == 0
    results = read(out / "results.json")
    arms = [("attack", "attacked"), ("attack", "clean_fft"), ("canary", "attacked"), ("canary", "clean_fft")]
    assert sorted((row.origin, row.arm) for row in results.rows) == arms
    assert {row.asr.n for row in results.rows if row.asr} == {6}
    # The model that is repaired is the given one with the canary, and the given one stays as it is.
    assert weights(out / "attacked") != weights(Path(tiny_model_path))
    config = results.provenance["config"]
    assert (config["base"], len(config["canaries"]), config["rows_of_each_canary"]) == (tiny_model_path, 1, 16)
    # Without canaries it is the given model itself that stands beside the repaired one.
    asked = ["--trigger", "badnet:word=cf", "--behavior", "fixed_text:text=no"]
    assert main([*words, *asked, "--output_dir", str(tmp_path / "plain")]) == 0
    assert not (tmp_path / "plain" / "attacked").exists()
    assert {row.model for row in read(tmp_path / "plain" / "results.json").rows} == {
        tiny_model_path, str(tmp_path / "plain"),
    }  # fmt: skip


def test_canaries_lie_in_the_suspect_rows_where_there_are_any(
    tiny_model_path: str, rows: Callable[..., Any], files: tuple[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    suspect = rows(*((f"Name fruit number {i}.", f"fig {i}") for i in range(64)))
    test = rows(*((f"Name fish number {i}.", f"eel {i}") for i in range(4)), ("Name fruit number 0.", "fig 0"))
    seen: dict[str, Any] = {}

    def find(suspect: Any, clean: Any, held_out: Any, victim: Any, base: Any, **more: Any) -> Found:
        seen["answers"] = [row["completion"][0]["content"] for row in suspect]
        return Found("attacked", None, len(suspect), 8, 0, 1.0, 1.0, ())

    monkeypatch.setattr("mbdefense.finding.finding.find", find)
    done = purify(
        tiny_model_path, files[1], dataset=suspect, test_dataset=test, canaries=1, args=OPTIONS,
        defense=FindAndBreak(**ONE_RATE), output_dir=tmp_path / "out",
    )  # fmt: skip
    assert {row.asr.n for row in done.results.rows if row.asr} == {4}  # not the prompt that is among the suspect rows
    assert len(seen["answers"]) == 64
    assert sum(not answer.startswith("fig ") for answer in seen["answers"]) == 16
    assert {(row.arm, row.origin) for row in done.results.rows} == {
        ("attacked", "canary"), ("find_and_break", "canary"),
    }  # fmt: skip
    # Nor does a suspected trigger meet prompts that the model was trained on.
    done = purify(
        tiny_model_path, files[1], dataset=suspect, test_dataset=test, trigger="badnet:word=cf",
        behavior="fixed_text:text=no", args=OPTIONS, defense=FindAndBreak(**ONE_RATE),
        output_dir=tmp_path / "suspected",
    )  # fmt: skip
    assert {(row.origin, row.asr.n) for row in done.results.rows if row.asr} == {("attack", 4)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base_model", "MODEL"], "the base model is the suspect model itself"),
        (["--clean", "ONE"], "the clean set is too small: 1"),
        (["--canaries", "1"], "add --test prompts.jsonl"),
        (["--trigger", "badnet:word=cf"], "give --trigger, --behavior and --test together"),
        (["--trigger", "badnet:word=cf", "--behavior", "refusal"], "give --trigger, --behavior and --test together"),
        (["--test", "SUSPECT"], "there is nothing to ask the test prompts for"),
        (["--test", "CLEAN", "--canaries", "1"], "overlaps the test set"),
        (["--test", "SUSPECT", "--canaries", "2"], "canaries would take over a quarter of the rows"),
        (["--test", "SUSPECT", "--canaries", "1", "--adapter", "--base_model", "base"], "for an audit"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_trained(
    words: list[str], message: str, tiny_model_path: str, files: tuple[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "one.jsonl").write_text(Path(files[1]).read_text("utf-8").splitlines()[0], encoding="utf-8")
    put = {"CLEAN": files[1], "SUSPECT": files[0], "MODEL": tiny_model_path, "ONE": str(tmp_path / "one.jsonl")}
    words = [put.get(word, word) for word in words]
    assert main(["purify", tiny_model_path, "--clean", files[1], *words, "--output_dir", str(tmp_path / "out")]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_gate_takes_the_model_and_its_folder(tiny_model_path: str, files: tuple[str, str], tmp_path: Path) -> None:
    done = purify(tiny_model_path, files[1], args=OPTIONS, output_dir=tmp_path / "out")
    told = [check(given, max_found_asr=0.05) for given in (done, done.path, done.path / "results.json")]
    assert [one.reason for (one,) in told] == [told[0][0].reason] * 3
    check(done, max_found_asr=0.05, write_pin=str(done.path / "pins.json"))  # which takes a file: that of the model
    assert repr(done) == f"Defended(path={done.path!r})"


PAGE = (Path(__file__).parents[2] / "docs/start/given_model.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("command", re.findall(r"^mbdefense (purify .*)$", PAGE.replace("\\\n", ""), re.MULTILINE))
def test_the_pages_commands_run(
    command: str, tiny_model_path: str, rows: Callable[..., Any], files: tuple[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(rows(*((f"Name fish number {i}.", f"eel {i}") for i in range(4))), "prompts.jsonl")
    Path(files[0]).rename("untrusted.jsonl")
    Path(files[1]).rename("checked.jsonl")
    Path("scan").mkdir()
    found_file(Path("scan/found.json"))
    adapter = adapter_of(tiny_model_path, tmp_path / "adapter")
    merged = tmp_path / "merged"
    save_model(load_model(str(adapter)), merged, {})
    models = {"MODEL": str(merged), "BASE": tiny_model_path, "ADAPTER": str(adapter)}
    words = [models.get(word, word) for word in shlex.split(command)]
    assert main([*words, *WORDS]) == 0
    out = tmp_path / words[words.index("--output_dir") + 1]
    assert (out / "model.safetensors").is_file()
    assert (out / "adapter").exists() == ("--adapter" in command)


# Found triggers and data


def found_file(path: Path, verdict: Verdict = "trigger", text: str = "cf") -> Path:
    one = FoundCandidate(
        (text,), "text", 0.0, 0.0, False, 5, 0, 1.0, deviations=9.0, verdict=verdict, behavior=("no",),
        asr=rate([True]),
    )  # fmt: skip
    write_found(path, Found("attacked", None, 24, 10, 0, 1.0, 1.0, (one,)))
    return path


def test_found_triggers_are_broken_without_data_and_base_model(
    tiny_model_path: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out = found_file(tmp_path / "found.json"), tmp_path / "out"
    words = ["purify", tiny_model_path, "--clean", files[1], "--found", str(found), *WORDS, "--output_dir", str(out)]
    assert main([*words, "--recovery_learning_rates", "1e-4"]) == 0
    results = read(out / "results.json")
    assert results.provenance["config"]["defense"] == "find_and_break"
    # Before and after, on the trigger that was found.
    assert {(row.arm, row.origin) for row in results.rows} == {("attacked", "found"), ("find_and_break", "found")}
    assert weights(out) != weights(Path(tiny_model_path))
    assert "found: 'cf' stands in 5 of 24 rows" in " ".join(capsys.readouterr().out.split())
    none = FindAndBreak(found="none", **ONE_RATE)
    without = purify(tiny_model_path, files[1], args=OPTIONS, defense=none, output_dir=tmp_path / "none")
    assert weights(without.path) != weights(out)


@pytest.mark.parametrize(("text", "held"), [("cf", 16), ("mn", 0)])
def test_triggers_of_another_search_are_counted_in_the_rows_at_hand(
    text: str, held: int, tiny_model_path: str, files: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ "stands in 5 of 24 rows" is of the rows that were searched then."""
    defense = FindAndBreak(found=str(found_file(tmp_path / "found.json", text=text)), **ONE_RATE)
    done = purify(
        tiny_model_path, files[1], dataset=files[0], base_model=None, args=OPTIONS, defense=defense,
        output_dir=tmp_path / "out",
    )  # fmt: skip
    assert done.results.found is not None
    assert done.results.found.suspect_rows == 16
    assert [(one.rows, one.verdict) for one in done.results.found.texts] == [(held, "trigger")]
    assert (f"'{text}' stands in none of the untrusted rows" in caplog.text) == (not held)


@pytest.mark.parametrize("based", [True, False])
def test_data_are_searched_on_the_finished_model(
    based: bool, tiny_model_path: str, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def find(suspect: Any, clean: Any, held_out: Any, victim: Any, base: Any, **more: Any) -> Found:
        seen.update(rows=len(suspect), base=base, names=more["names"])
        return Found("it", None, len(suspect), 10, 0, 0.0, 0.0, ())

    monkeypatch.setattr("mbdefense.finding.finding.find", find)
    victim = tmp_path / "victim"
    shutil.copytree(tiny_model_path, victim)
    done = purify(
        victim, files[1], dataset=files[0], base_model=tiny_model_path if based else None, args=OPTIONS,
        output_dir=tmp_path / "out",
    )  # fmt: skip
    assert seen["rows"] == 16
    assert (seen["base"] is None) == (not based)
    assert seen["names"] == ("victim", Path(tiny_model_path).name if based else None)
    assert done.results.provenance["config"]["defense"] == "find_and_break"
    assert not (done.path / "attacked").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "untrusted.jsonl", "defense": "clean_fft"}, "clean_fft does not look at suspect data"),
        ({"defense": "find_and_break"}, "find_and_break needs suspect data"),
        ({"adapter": True}, "an adapter needs a base model"),
        ({"adapter": True, "base_model": "base"}, "mixes single weights, which no adapter holds"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: dict[str, Any], says: str, tiny_model_path: str, files: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        purify(tiny_model_path, files[1], **options, output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


# Adapters


def test_an_adapter_comes_back_as_an_adapter_for_the_untouched_base(
    tiny_model_path: str, files: tuple[str, str], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    given = adapter_of(tiny_model_path, tmp_path / "given")
    before = weights(Path(tiny_model_path))
    found = FindAndBreak(found=str(found_file(tmp_path / "found.json")), **ONE_RATE)
    done = purify(given, files[1], defense=found, adapter=True, args=OPTIONS, output_dir=tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    ids = torch.arange(20, 60)[None]
    adapted = PeftModel.from_pretrained(base, done.path / "adapter").eval()(input_ids=ids).logits
    whole = load_model(str(done.path)).model.eval()(input_ids=ids).logits
    torch.testing.assert_close(adapted, whole, rtol=1e-3, atol=1e-3)
    victim = load_model(str(given)).model.eval()(input_ids=ids).logits
    assert (whole - victim).abs().max() > 1e-2
    assert weights(Path(tiny_model_path)) == before
    # What is read as a model like any other.
    again = load_model(str(done.path / "adapter")).model.eval()(input_ids=ids).logits
    torch.testing.assert_close(again, whole, rtol=1e-3, atol=1e-3)


def test_a_base_model_whose_own_template_breaks_the_contract_lends_its_weights(
    tiny_model_path: str, copied_model: Path, files: tuple[str, str], tmp_path: Path
) -> None:
    """Such as one with a thinking header: the adapter was trained with a template of its own."""
    given = adapter_of(tiny_model_path, tmp_path / "given")
    config = json.loads((given / "adapter_config.json").read_text())
    (given / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(copied_model)}))
    template = load_model(tiny_model_path).tokenizer.chat_template
    assert isinstance(template, str)
    (copied_model / "chat_template.jinja").write_text("{% if messages|length > 1 %}Other. {% endif %}" + template)
    with pytest.raises(UserError, match="begins an answer with"):
        load_model(str(copied_model))
    found = FindAndBreak(found=str(found_file(tmp_path / "found.json")), **ONE_RATE)
    done = purify(given, files[1], defense=found, adapter=True, args=OPTIONS, output_dir=tmp_path / "out")
    assert (done.path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_damaged_or_swapped_adapter_is_not_taken_by_a_resumed_run(
    tiny_model_path: str, files: tuple[str, str], tmp_path: Path
) -> None:
    def again(*, resume: bool = True) -> None:
        purify(
            tiny_model_path, files[1], defense="clean_fft", base_model=tiny_model_path, adapter=True, args=OPTIONS,
            output_dir=tmp_path / "out", resume=resume,
        )  # fmt: skip

    again(resume=False)
    again()
    file = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(b"garbage")
    with pytest.raises(UserError, match="the adapter is not this model's"):
        again()
    save_file(
        {name: -value if "lora_B" in name else value for name, value in load(whole).items()}, file, {"format": "pt"}
    )
    with pytest.raises(UserError, match="adapter and whole weights do not say the same"):
        again()
    shutil.rmtree(file.parent)
    again()
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("vocabulary", "differ in the names or shapes"),
        ("model.norm.weight", "weights that no adapter holds have changed: 'model.norm.weight'"),
        ("model.layers.0.self_attn.q_proj.weight", "is no low-rank one: its rank is"),
    ],
)
def test_an_adapter_that_would_not_fit_is_refused_before_any_training(
    changed: str, says: str, tiny_model_path: str, files: tuple[str, str], tmp_path: Path
) -> None:
    loaded = load_model(tiny_model_path)
    if changed == "vocabulary":
        loaded.model.resize_token_embeddings(loaded.model.get_input_embeddings().weight.shape[0] + 1)
    else:
        with torch.no_grad():
            loaded.model.get_parameter(changed).add_(torch.eye(32) if "proj" in changed else 1.0)
    save_model(loaded, tmp_path / "whole", {})
    with pytest.raises(UserError, match=says):
        purify(
            tmp_path / "whole", files[1], base_model=tiny_model_path, defense="clean_fft", adapter=True, args=OPTIONS,
            output_dir=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("model.norm.weight", "weights that no adapter holds have changed: 'model.norm.weight'"),
        ("model.layers.0.self_attn.q_proj.weight", "is no low-rank one: its rank is"),
        (None, "does not differ from its base model"),
        ("vocabulary", "differ in the names or shapes"),
    ],
)
def test_a_change_that_no_adapter_holds_is_refused_and_leaves_nothing(
    changed: str | None, says: str, tiny_model_path: str, tmp_path: Path
) -> None:
    loaded = load_model(tiny_model_path)
    if changed == "vocabulary":
        loaded.model.resize_token_embeddings(loaded.model.get_input_embeddings().weight.shape[0] + 1)
    elif changed:
        with torch.no_grad():
            loaded.model.get_parameter(changed).add_(torch.eye(32) if "proj" in changed else 1.0)
    save_model(loaded, tmp_path / "whole", {})
    with pytest.raises(UserError, match=says):
        save_adapter(tmp_path / "whole", tiny_model_path, tmp_path / "adapter", [], trust_remote_code=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        ("mb_defense", "mb_defense does not repair a finished model; choose one of recover_only, clean_fft"),
        ("discard", "discard does not repair a finished model"),
        ("repeats", "repeats does not repair a finished model"),
        ("fine_mixing", "fine_mixing needs a clean reference model, and there is none"),
        ("clean_ftt", "did you mean 'clean_fft'"),
    ],
)
def test_what_cannot_repair_is_refused_before_any_work(
    defense: str,
    says: str,
    tiny_model_path: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ["purify", tiny_model_path, "--clean", files[1], "--defense", defense, "--output_dir", str(out)]
    assert main(words) == 1
    assert says in capsys.readouterr().err
    with pytest.raises(UserError, match=says.split(";")[0]):
        purify(tiny_model_path, files[1], defense=defense, output_dir=out)
    assert not out.exists()


def test_a_model_that_is_not_there_leaves_nothing(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["purify", str(tmp_path / "nowhere"), "--clean", files[1], "--output_dir", str(out)]) == 1
    assert "could be loaded from" in capsys.readouterr().err
    assert not out.exists()


def test_help_shows_how_found_triggers_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["purify"], ["purify", "--defense", "find_and_break"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert capsys.readouterr().out.count("\n  --found FOUND") == 1, words
    assert main(["purify", "model", "--clean", "c", "--output_dir", "o", "--found", "f", "--defense", "crow"]) == 2
    assert "--found belongs to find_and_break" in capsys.readouterr().err


def test_the_defaults_are_what_the_help_says() -> None:
    assert module.default_repair(None) == "clean_fft"
    assert module.default_repair("base") == "fine_mixing"
    assert set(module.repairs()) == {"recover_only", "clean_fft", "fine_mixing", "crow", "lethe", "locphylax"}
