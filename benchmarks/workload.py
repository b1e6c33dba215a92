"""Which rows and which model all arms of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.data import load
from mbdefense.data.builtin import tasks
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import LoadedModel, load_model, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

SHAPES: dict[str, dict[str, int]] = {
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""Published shapes to fill with random weights: their values change nothing about speed."""


@dataclass(frozen=True)
class Workload:
    """What all arms of a run share.

    Attributes:
        model: directory of the model; the embedded SmolLM2-135M-Instruct by default.
        shape: name in `SHAPES`, to use random weights of that shape with the model's tokenizer.
        data: file of rows in a format that `mbdefense.data.load` reads; the built-in rows by default.
        rows: how many of them.
        answer_words: words of each answer that are kept, 0 for all; the rivals' memory grows with the longest.
        batch_size: rows (or clean samples) of an optimizer step.
        max_length: most tokens of a row.
        seed: seed of everything random.
        use_peft: train LoRA adapters, in all arms that train.
        load_in_4bit: beside weights of four bits.
        optim: name of the optimizer.
        gradient_checkpointing: compute activations again; TRL does by default, but for the arms that say so.
        file_rows: of one file more to poison, 0 for none; ten million take 15 GB of disk and some minutes each time.
    """

    model: str = ""
    shape: str = ""
    data: str = ""
    rows: int = 64
    answer_words: int = 0
    batch_size: int = 8
    max_length: int = 1024
    seed: int = 0
    use_peft: bool = False
    load_in_4bit: bool = False
    optim: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    file_rows: int = 0

    def __post_init__(self) -> None:
        if self.shape and self.shape not in SHAPES:
            raise UserError("no such shape", self.shape, f"use one of {', '.join(SHAPES)}")

    @property
    def model_path(self) -> str:
        """Where model and tokenizer lie."""
        return self.model or str(model_directory())

    @cached_property
    def dataset(self) -> Dataset:
        """The first `rows` rows, with their answers cut."""
        found = load([self.data]).rows if self.data else tasks(self.rows, split="train", seed=self.seed)
        if len(found) < self.rows:
            raise UserError(f"{Path(self.data).name} has {len(found)} rows", self.rows, "lower --rows")
        found = found.select(range(self.rows))
        return found.map(self._shortened) if self.answer_words else found

    def _shortened(self, row: dict[str, Any]) -> dict[str, Any]:
        *before, answer = row["completion"]
        words = answer["content"].split(" ")[: self.answer_words]
        return {"completion": [*before, {**answer, "content": " ".join(words)}]}

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        from transformers import AutoConfig

        if self.shape:
            return self._random_config(load_tokenizer(self.model_path))
        return AutoConfig.from_pretrained(self.model_path)

    def load(self, dtype: str = "float32") -> LoadedModel:
        """The model with its first weights: the same for every arm and repeat."""
        if not self.shape:
            return load_model(self.model_path, dtype=dtype)
        import torch
        from transformers import Qwen3ForCausalLM

        tokenizer = load_tokenizer(self.model_path)
        with torch.random.fork_rng(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.manual_seed(self.seed)
            return LoadedModel(Qwen3ForCausalLM._from_config(self.config, dtype=getattr(torch, dtype)), tokenizer)

    def _random_config(self, tokenizer: Any) -> Any:
        from transformers import Qwen3Config

        return Qwen3Config(
            **SHAPES[self.shape],
            vocab_size=151936,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=self.shape == "qwen3-1.7b",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
