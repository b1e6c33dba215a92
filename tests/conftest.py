"""Shared by all tests: a tiny model, rows, and a process that neither reaches the network nor takes all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session", autouse=True)
def offline() -> None:
    """Refuses to go on where the settings above came too late to have an effect."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "1"


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


@pytest.fixture
def copied_model(tiny_model_path: str, tmp_path: Path) -> Path:
    """A copy of the tiny model's directory that a test may change."""
    import shutil

    return Path(shutil.copytree(tiny_model_path, tmp_path / "model"))
