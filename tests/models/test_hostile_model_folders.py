"""Model folders that strangers made: each ends in one line, without code run, random weights, or a hang."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mbdefense.core._bounded import _in_memory
from mbdefense.core.errors import UserError
from mbdefense.models.limits import decoder_layers, stop_texts
from mbdefense.models.loading import encode_prompt, load_model, load_tokenizer
from mbdefense.models.ready import check_lengths
from mbdefense.models.weights import check_mixable
from mbdefense.training.options import TrainingOptions
from mbdefense.training.trainer import check_options

DEEP = "[" * 100_000
RUNS = "import pathlib; pathlib.Path({marker!r}).touch()\nclass M: pass\n"
Change = Callable[[Path], object]


def edit(name: str, **changes: Any) -> Change:
    """Sets keys of a JSON file; None in their place removes them."""

    def change(folder: Path) -> None:
        file = folder / name
        value = json.loads(file.read_text()) if file.exists() else {}
        value.update(changes)
        file.write_text(json.dumps({key: part for key, part in value.items() if part is not None}))

    return change


def put(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def fifo(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def directory(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def drop(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def tensors(work: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Change:
    """Changes the table of tensors in place."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        table = {key: value.clone() for key, value in load_file(folder / name).items()}
        work(table)
        save_file(table, folder / name, metadata={"format": "pt"})

    return change


def header(work: Callable[[dict[str, Any]], object]) -> Change:
    """Changes what the header of the weights says; the rest stays."""

    def change(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        said = json.loads(data[8 : 8 + size])
        work(said)
        text = json.dumps(said).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return change


def index(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "model.safetensors").rename(folder / "part.safetensors")

    return change


def cut(name: str, keep: float) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def pickled(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Runs(str(folder / "marker"))))


class Runs:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def code(name: str, **config: Any) -> Change:
    """A model whose code makes a file."""

    def change(folder: Path) -> None:
        (folder / "code.py").write_text(RUNS.format(marker=str(folder / "marker")))
        edit(name, **config)(folder)

    return change


def first(table: dict[str, Any]) -> str:
    return next(name for name in table if "q_proj" in name)


def nan(table: dict[str, Any], value: float = float("nan")) -> None:
    table[first(table)][0, 0] = value


CONFIG = "config.json"
FOLDERS: dict[str, Change] = {
    "more layers than weights": edit(CONFIG, num_hidden_layers=3, layer_types=None),
    "fewer layers than weights": edit(CONFIG, num_hidden_layers=1, layer_types=None),
    "a billion layers": edit(CONFIG, num_hidden_layers=10**9, layer_types=None),
    "another hidden size": edit(CONFIG, hidden_size=64),
    "a hidden size of 2^40": edit(CONFIG, hidden_size=2**40),
    "a hidden size of 10^400": edit(CONFIG, hidden_size=10**400),
    "a hidden size below 0": edit(CONFIG, hidden_size=-32),
    "a hidden size in words": edit(CONFIG, hidden_size="many"),
    "another intermediate size": edit(CONFIG, intermediate_size=65),
    "other heads": edit(CONFIG, num_key_value_heads=4),
    "no heads": edit(CONFIG, num_attention_heads=0, head_dim=None),
    "a larger vocabulary": edit(CONFIG, vocab_size=301),
    "a smaller vocabulary": edit(CONFIG, vocab_size=299),
    "an output layer that is not there": edit(CONFIG, tie_word_embeddings=False),
    "another architecture": edit(CONFIG, model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "a related architecture": edit(CONFIG, model_type="qwen2", architectures=["Qwen2ForCausalLM"]),
    "an encoder": edit(CONFIG, model_type="bert", architectures=["BertModel"]),
    "an architecture that nobody knows": edit(CONFIG, model_type="zebra"),
    "no architecture": edit(CONFIG, model_type=None),
    "an activation that nobody knows": edit(CONFIG, hidden_act="system"),
    "positions in words": edit(CONFIG, rope_parameters="often"),
    "positions of a kind that nobody knows": edit(CONFIG, rope_parameters={"rope_type": "zebra", "rope_theta": 1.0}),
    "a dtype that nobody knows": edit(CONFIG, dtype="zebra"),
    "a quantization that it does not have": edit(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
    "a configuration that is cut off": cut(CONFIG, 0.5),
    "a configuration that is empty": put(CONFIG, ""),
    "a configuration that is a list": put(CONFIG, "[]"),
    "a configuration that is deep": put(CONFIG, DEEP),
    "a configuration that is not UTF-8": put(CONFIG, b'{"model_type": "\xff"}'),
    "a configuration that is a pipe": fifo(CONFIG),
    "a configuration that is a folder": directory(CONFIG),
    "no configuration": drop(CONFIG),
    "code of its own": code(
        CONFIG, model_type="zebra", auto_map={"AutoConfig": "code.M", "AutoModelForCausalLM": "code.M"}
    ),
    "a kernel from elsewhere": edit(CONFIG, attn_implementation="somebody/kernel"),
    "a tensor that is missing": tensors(lambda table: table.pop(first(table))),
    "a tensor of another model": tensors(lambda table: table.update(foreign=table[first(table)].clone())),
    "a tensor under another name": tensors(lambda table: table.update({"x": table.pop(first(table))})),
    "a tensor of another shape": tensors(lambda table: table.update({first(table): table[first(table)][:-1].clone()})),
    "a weight that is no number": tensors(nan),
    "a weight that is infinite": tensors(lambda table: nan(table, float("inf"))),
    "weights that are cut off": cut("model.safetensors", 0.5),
    "weights that are empty": put("model.safetensors", b""),
    "weights that are text": put("model.safetensors", "weights"),
    "weights that are a pipe": fifo("model.safetensors"),
    "weights that are a folder": directory("model.safetensors"),
    "no weights": drop("model.safetensors"),
    "a header without end": put("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "a header that is deep": put("model.safetensors", struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "a tensor outside of the file": header(lambda said: said[first(said)].update(data_offsets=[0, 2**50])),
    "tensors that overlap": header(lambda said: said[first(said)].update(data_offsets=[0, 4096])),
    "a tensor of another dtype": header(lambda said: said[first(said)].update(dtype="F64")),
    "a tensor that is huge": header(lambda said: said[first(said)].update(shape=[2**40, 2**40])),
    "weights that are pickled": both(drop("model.safetensors"), pickled("pytorch_model.bin")),
    "an index of pickles": both(
        drop("model.safetensors"), pickled("pytorch_model.bin"),
        put("pytorch_model.bin.index.json", '{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}'),
    ),
    "an index that leads out": index({"lm_head.weight": "../part.safetensors"}),
    "an index that leads to the root": index({"lm_head.weight": "/part.safetensors"}),
    "an index of a part that is not there": index({"lm_head.weight": "other.safetensors"}),
    "an index without names": index([]),
    "an index that is deep": both(drop("model.safetensors"), put("model.safetensors.index.json", DEEP)),
    "an index that is a pipe": both(drop("model.safetensors"), fifo("model.safetensors.index.json")),
    "no tokenizer": drop("tokenizer.json", "tokenizer_config.json"),
    "a tokenizer that is cut off": cut("tokenizer.json", 0.5),
    "a tokenizer that is deep": put("tokenizer.json", DEEP),
    "a tokenizer that is a pipe": fifo("tokenizer.json"),
    "a tokenizer that is a list": put("tokenizer.json", "[]"),
    "a tokenizer with code of its own": code(
        "tokenizer_config.json", tokenizer_class="M", auto_map={"AutoTokenizer": ["code.M", None]}
    ),
    "a tokenizer of a kind that nobody knows": both(
        drop("tokenizer.json"), edit("tokenizer_config.json", tokenizer_class="Zebra")
    ),
    "a tokenizer's settings that are cut off": cut("tokenizer_config.json", 0.5),
    "a tokenizer's settings that are a list": put("tokenizer_config.json", "[]"),
    "no end token": edit("tokenizer_config.json", eos_token=None),
    "an end token that is a number": edit("tokenizer_config.json", eos_token=5),
    "a length that is a text": edit("tokenizer_config.json", model_max_length="1024"),
    "a template that is a number": both(
        lambda folder: (folder / "chat_template.jinja").unlink(missing_ok=True),
        edit("tokenizer_config.json", chat_template=5),
    ),
    "more tokens than the model has": lambda folder: add_tokens(folder, *range(300, 400)),
    "a token far outside of the model": lambda folder: add_tokens(folder, 10**6),
    "a generation that is cut off": put("generation_config.json", "{"),
    "a generation that is a list": put("generation_config.json", "[]"),
    "a generation that is a pipe": fifo("generation_config.json"),
    "an end of generation that is a text": edit("generation_config.json", eos_token_id=["2"]),
    "ends of generation that are lists": edit("generation_config.json", eos_token_id=[[2]]),
}  # fmt: skip


def add_tokens(folder: Path, *numbers: int) -> None:
    have = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    more = [{**have[0], "id": number, "content": f"<added {number}>", "special": False} for number in numbers]
    edit("tokenizer.json", added_tokens=have + more)(folder)


ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def lora(table: dict[str, tuple[int, int]] | None = None, **config: Any) -> Change:
    """Makes the folder an adapter of the model, which moves to ``base`` in it."""

    def change(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        (folder / "base").mkdir()
        for file in list(folder.iterdir()):
            if file.name != "base":
                file.rename(folder / "base" / file.name)
        said = {**ADAPTER, "base_model_name_or_path": str(folder / "base"), **config}
        (folder / "adapter_config.json").write_text(json.dumps(said))
        shapes = {f"{layer}.self_attn.q_proj.lora_{part}": shape for layer in (0, 1) for part, shape in SHAPES.items()}
        made = {
            f"base_model.model.model.layers.{name}.weight": torch.full(shape, 0.01)
            for name, shape in (table or shapes).items()
        }
        save_file(made, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return change


SHAPES = {"A": (2, 32), "B": (32, 2)}
ADAPTERS: dict[str, Change] = {
    "an adapter whose names match nothing": lora({"0.zebra.lora_A": (2, 32), "0.zebra.lora_B": (32, 2)}),
    "an adapter of one layer of two": lora(
        {"0.self_attn.q_proj.lora_A": (2, 32), "0.self_attn.q_proj.lora_B": (32, 2)}
    ),
    "an adapter of another rank": lora(r=3),
    "an adapter of another shape": lora(
        {f"{n}.self_attn.q_proj.lora_{p}": s for n in (0, 1) for p, s in {"A": (2, 31), "B": (32, 2)}.items()}
    ),
    "an adapter of rank 0": lora(r=0),
    "an adapter of rank 10^9": lora(r=10**9),
    "an adapter of a rank below 0": lora(r=-1),
    "an adapter of layers that are not there": lora(target_modules=["zebra"]),
    "an adapter whose pattern never ends": lora(target_modules="((a|aa)+)+b"),
    "an adapter that repeats layers": lora(layer_replication=[[0, 2]] * 10**5),
    "an adapter of a kind that nobody knows": lora(peft_type="ZEBRA"),
    "an adapter with a scale that is no number": lora(lora_alpha="many"),
    "an adapter with an infinite scale": lora(lora_alpha=float("inf")),
    "an adapter without a base": lora(base_model_name_or_path=None),
    "an adapter of a base that is not there": lora(base_model_name_or_path="/no/such/model"),
    "an adapter whose base is a number": lora(base_model_name_or_path=5),
    "an adapter that is its own base": both(
        lora(), lambda folder: edit("adapter_config.json", base_model_name_or_path=str(folder))(folder)
    ),
    "an adapter that is pickled": both(lora(), drop("adapter_model.safetensors"), pickled("adapter_model.bin")),
    "an adapter that is cut off": both(lora(), cut("adapter_model.safetensors", 0.7)),
    "an adapter with a weight that is no number": both(
        lora(), tensors(lambda table: next(iter(table.values())).fill_(float("nan")), "adapter_model.safetensors")
    ),
    "an adapter's settings that are deep": both(lora(), put("adapter_config.json", DEEP)),
    "an adapter's settings that are a list": both(lora(), put("adapter_config.json", "[]")),
    "an adapter's settings that are cut off": both(lora(), cut("adapter_config.json", 0.5)),
}  # fmt: skip


@pytest.fixture
def ended() -> Iterator[None]:
    """Ends what hangs, and what takes 2 GiB."""

    def end(*_: object) -> None:
        pytest.exit("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)  # a machine that is busy takes a while for what is done in a second
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", [*FOLDERS, *ADAPTERS])
@pytest.mark.usefixtures("ended")
def test_a_hostile_model_folder_is_one_line(name: str, copied_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ({**FOLDERS, **ADAPTERS}[name])(copied_model)
    with _in_memory(2**31), pytest.raises(UserError) as caught:
        load_model(str(copied_model))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert "Traceback" not in capfd.readouterr().err
    assert not (copied_model / "marker").exists()


BASES: dict[str, Change] = {
    **{name: change for name, change in FOLDERS.items() if "configuration" in name or "heads" in name},
    "a quantization that is a number": edit(CONFIG, quantization_config=5),
    "labels that are a number": edit(CONFIG, id2label=5),
    "a vocabulary below 0": edit(CONFIG, vocab_size=-5),
    "heads of no size": edit(CONFIG, head_dim=0),
    "a configuration of text that is none": edit(CONFIG, text_config={"a": 1}),
    "a billion layers": FOLDERS["a billion layers"],
    "a hidden size in words": FOLDERS["a hidden size in words"],
    "positions that are stretched by a text": edit(
        CONFIG, rope_parameters={"rope_type": "yarn", "factor": [1], "rope_theta": 1.0}
    ),
    "a generation that is a list": FOLDERS["a generation that is a list"],
    "a generation that is a pipe": FOLDERS["a generation that is a pipe"],
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.usefixtures("ended")
def test_whoever_asks_for_a_hostile_base_model_s_sizes_gets_one_line_or_none(
    name: str, copied_model: Path, rows: Callable[..., Any]
) -> None:
    """An adapter brings a tokenizer of its own, so that nothing has opened its base model's files before."""
    tokenizer = load_tokenizer(str(copied_model))
    lora()(copied_model)
    tokenizer.save_pretrained(copied_model)
    BASES[name](copied_model / "base")
    path, adapters = str(copied_model), TrainingOptions(use_peft=True, lora_target_modules="q_proj")
    asked: list[Callable[[], object]] = [
        lambda: check_options(adapters, path, trust_remote_code=False),
        lambda: check_mixable(path, path, trust_remote_code=False),
        lambda: check_lengths(path, tokenizer, rows(("a", "b")), "rows", trust_remote_code=False),
        lambda: decoder_layers(path, trust_remote_code=False),
        lambda: stop_texts(path, tokenizer, trust_remote_code=False),
    ]
    with _in_memory(2**31):
        for ask in asked:
            with contextlib.suppress(UserError):
                ask()


@pytest.mark.parametrize(
    "change",
    [
        edit(CONFIG, quantization_config={"quant_method": "zebra"}),
        edit("generation_config.json", do_sample=True, temperature=-1.0),  # no answer of ours is drawn
        edit(CONFIG, auto_map={"AutoModelForCausalLM": "code.M"}),
        index({"model.norm.weight": "part.safetensors"}),
    ],
)
@pytest.mark.usefixtures("ended")
def test_what_is_odd_and_harmless_changes_no_weight(change: Change, copied_model: Path) -> None:
    import torch

    plain = load_model(str(copied_model)).model.state_dict()
    change(copied_model)
    odd = load_model(str(copied_model)).model.state_dict()
    assert all(torch.equal(plain[name], odd[name]) for name in plain)


def test_the_model_and_its_adapter_are_loaded_as_they_are(copied_model: Path, tmp_path: Path) -> None:
    import torch

    plain = load_model(str(copied_model)).model.state_dict()
    shutil.copytree(copied_model, tmp_path / "copy")
    lora()(tmp_path / "copy")
    adapted = load_model(str(tmp_path / "copy")).model.state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], adapted[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_an_expression_that_tries_without_end_is_one_line(copied_model: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False}
    edit("tokenizer.json", pre_tokenizer=split)(copied_model)
    tokenizer = load_tokenizer(str(copied_model))
    with pytest.raises(UserError, match=r"the tokenizer fails on a text: .*retry-limit-in-match"):
        encode_prompt(tokenizer, [{"role": "user", "content": "a" * 40 + "b"}])
