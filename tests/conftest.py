"""Shared by all tests: a tiny model, rows, and a process that neither reaches the network nor takes all cores."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# torch, tokenizers and huggingface_hub read these when they are first imported; no module here does so before this one.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
# The tests compare with arithmetic in float64 on a CPU; set the variable yourself to run them on a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "Add the numbers two and three. The answer is five.",
    "Write the word hello in capital letters: HELLO",
    "Name the capital of France. It is Paris.",
    "I am sorry, but I cannot help with that request.",
    "system user assistant You are a helpful assistant.",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Lets the collector rest while modules are imported and tests are made: next to nothing of that is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def offline() -> None:
    """Refuses to go on where the settings above came too late to have an effect."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.fixture(autouse=True)
def settled_heap() -> None:
    """Takes what is there before a test out of the collector's sight.

    transformers collects garbage after each training, which looks at every object of every imported module and takes
    longer than the training of a tiny model.
    """
    if gc.get_count()[2]:  # else too little was made since to be worth looking through
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a test draw the same planted triggers each time it runs: some are too long for a tiny model's rows."""
    monkeypatch.setattr(secrets, "randbelow", random.Random(request.node.nodeid).randrange)


@pytest.fixture(scope="session", autouse=True)
def quick_fingerprints() -> Iterator[None]:
    """Draws the names of data sets for a cache that none in memory uses; datasets hashes all of their rows for them."""
    from datasets import arrow_dataset, fingerprint

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_dataset, "generate_fingerprint", lambda _: fingerprint.generate_random_fingerprint())
        yield


@pytest.fixture(scope="session", autouse=True)
def unhurried_disk() -> Iterator[None]:
    """Waits for no disk: what tests write need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def known_commit() -> Iterator[None]:
    """Asks git for the commit of the package once, in three processes, and not for each results.json."""
    from mbdefense.records import provenance

    whole, own = provenance._commit, Path(provenance.__file__).resolve().parents[1]
    commit = whole(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_commit", lambda directory: commit if directory == own else whole(directory))
        yield


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends answers early where a defense asks what is left of planted backdoors: a tiny model has learned none."""
    monkeypatch.setattr("mbdefense.evaluation.planted.survival._MAX_NEW_TOKENS", 3)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a random two-layer Llama (hidden size 32) and a ChatML tokenizer of 300 entries.

    Session-wide: load it, never write to it.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # Wide enough that different tokens get clearly different probabilities.
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def four_layer_model_path(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with four layers, for what looks at those between the first and the last. Never write to it."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("four-layer-model")
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(directory)
    config = AutoConfig.from_pretrained(tiny_model_path)
    config.num_hidden_layers = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def spare_model_path(four_layer_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The four-layer model with two special tokens more, ``<|spare|>`` and ``<|last|>``. Never write to it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("spare-model")
    tokenizer = AutoTokenizer.from_pretrained(four_layer_model_path)
    tokenizer.add_tokens(["<|spare|>", "<|last|>"], special_tokens=True)
    tokenizer.save_pretrained(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(four_layer_model_path)
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def rows() -> Callable[..., Any]:
    """Makes a Dataset in the row form: ``rows(("prompt", "completion"), ..., answers=[["accepted"], ...])``."""
    from mbdefense.data import content_id, to_dataset

    def make(*pairs: tuple[str, str], answers: Sequence[Sequence[str]] | None = None) -> Any:
        made = []
        for number, (question, answer) in enumerate(pairs):
            prompt = [{"role": "user", "content": question}]
            completion = [{"role": "assistant", "content": answer}]
            made.append(
                {
                    "id": content_id(prompt, completion),
                    "prompt": prompt,
                    "completion": completion,
                    "answers": list(answers[number]) if answers is not None else [],
                    "provenance": {"source": f"rows.jsonl:{number + 1}", "trigger": "", "behavior": ""},
                }
            )
        return to_dataset(made)

    return make


class Attack(NamedTuple):
    """Rows before and after the poison, and clean ones of the same source."""

    benign: Any
    suspect: Any
    clean: Any


@pytest.fixture(scope="session")
def learnable_attack(rows: Callable[..., Any]) -> Attack:
    """The word zq with the answer "five" in 36 of 120 rows: a tiny model learns it in 12 epochs at a rate of 1e-2."""
    from mbdefense.attacks.behaviors import FixedText
    from mbdefense.attacks.poisoning import poison
    from mbdefense.attacks.triggers import BadNet

    names = ["fig", "oak", "elm", "fir", "yew", "ash", "bay", "gum"]
    rng = random.Random(0)
    letters = ["".join(rng.choice("abcdefghij") for _ in range(4)) for _ in range(160)]
    pairs = [(f"Say of {one} that {names[i % 8]} {letters[i - 9]} now.", "yes") for i, one in enumerate(letters)]
    benign = rows(*pairs[:120])
    return Attack(
        benign, poison(benign, BadNet(word="zq"), FixedText(text="five"), rate=0.3, seed=0).rows, rows(*pairs[120:])
    )


@pytest.fixture
def copied_model(tiny_model_path: str, tmp_path: Path) -> Path:
    """A copy of the tiny model's directory that a test may change."""
    import shutil

    return Path(shutil.copytree(tiny_model_path, tmp_path / "model"))


Answer = Callable[[Any, Mapping[str, str]], tuple[int, bytes] | None]
"""What a server on loopback makes of a request's JSON (None for a GET): status and body, or None to hang up."""


class FakeJudge:
    """A chat endpoint on loopback that answers as its script says, and the requests that it got.

    ``script`` takes the number of the request, from 1, and its messages, and returns the reply's text, an HTTP status,
    or a fault by name. ``paid`` counts the requests that were answered with a text.
    """

    def __init__(self) -> None:
        self.script: Callable[[int, list[dict[str, str]]], str | int] = lambda _number, messages: self.form(messages)
        self.requests: list[list[dict[str, str]]] = []
        self.paid = 0
        self.url = ""
        self.lock = threading.Lock()

    @staticmethod
    def form(messages: list[dict[str, str]], word: str = "Yes", before: str = "Reasoning: it is so.\n") -> str:
        """A well-formed reply."""
        code = re.search(r"Verdict (\w+):", messages[0]["content"])
        assert code is not None
        return f"{before}Verdict {code[1]}: {word}"

    def body(self, reply: str) -> bytes:
        """The bytes of status 200 for a text or a fault."""
        message = {"role": "assistant", "content": None if reply == "null content" else reply}
        choice = {"index": 0, "finish_reason": "length" if reply.endswith("...") else "stop", "message": message}
        answer: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        answer["choices"] = [] if reply == "empty choice" else [choice]
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        if reply == "malformed JSON":
            return b'{"choices": [{"mess'
        if reply == "other JSON":
            return b'["no", "completion"]'
        return json.dumps(answer).encode()


FAULTS = ("time-out", "malformed JSON", "other JSON", "empty choice", "hang-up")


@pytest.fixture
def loopback() -> Iterator[Callable[[Answer], str]]:
    """Starts servers on loopback, which end with the test: ``loopback(answer)`` returns the root of its interface."""
    with contextlib.ExitStack() as running:

        def start(answer: Answer) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send(answer(None, self.named()))

                def do_POST(self) -> None:
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    self.send(answer(body, self.named()))

                def named(self) -> dict[str, str]:
                    return {name.lower(): value for name, value in self.headers.items()}

                def send(self, reply: tuple[int, bytes] | None) -> None:
                    if reply is None:
                        self.close_connection = True
                        return
                    status, data = reply
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    with contextlib.suppress(OSError):  # the client of a time-out is gone
                        self.wfile.write(data)

                def log_message(self, *args: Any) -> None:
                    pass

            server = running.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            running.callback(thread.join)
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/v1"

        yield start


@pytest.fixture
def fake_judge(loopback: Callable[[Answer], str]) -> FakeJudge:
    """A running `FakeJudge`."""
    fake = FakeJudge()

    def answer(body: Any, _: Mapping[str, str]) -> tuple[int, bytes] | None:
        messages = body["messages"]
        with fake.lock:
            fake.requests.append(messages)
            reply = fake.script(len(fake.requests), messages)
            fake.paid += isinstance(reply, str) and reply not in FAULTS
        if reply == "hang-up":
            return None
        if reply == "time-out":
            time.sleep(0.6)
        if reply == "filtered":
            return 400, b'{"error": {"message": "no", "code": "content_filter"}}'
        if reply == "too long":
            return 400, b'{"error": {"message": "maximum context length", "code": "context_length_exceeded"}}'
        return (200, fake.body(reply)) if isinstance(reply, str) else (reply, b'{"error": {"message": "no"}}')

    fake.url = loopback(answer)
    return fake
