"""Language models on disk and in memory, and the one prompt template that training and evaluation share."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core._progress import no_bars_of_transformers
from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import SAVING, read_json, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD_FILE = "mbdefense.json"
"""Beside the weights: which template the model was trained with, and by what."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For base models that bring no chat template: headed sections in the manner of Alpaca."""


class Encoded(NamedTuple):
    """A prompt and its response as tokens."""

    prompt: list[int]
    response: list[int]
    truncated: bool


class Loading(NamedTuple):
    """How a model is loaded: the options of `load_model` and `load_tokenizer`.

    Attributes:
        chat_template: file with the prompt template, in place of the model's own.
        trust_remote_code: allow a Hub repository to run code of its own.
    """

    chat_template: str | None = None
    trust_remote_code: bool = False


class LoadedModel(NamedTuple):
    """A model with its tokenizer, whose chat template is the one prompt template."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def bf16_pays() -> bool:
    """Whether this machine trains faster in bfloat16 than in float32.

    On a CPU that takes AMX, or AMD's AVX512-BF16: on an EPYC core bfloat16 multiplied matrices of SmolLM2-135M's shapes
    at 205 GFLOP/s and float32 at 97, and a forward and backward pass took 3.8 seconds instead of 6.1. Intel's without
    AMX reached 140 on two cores, float32 200 to 250, and a training step took 1.6 times as long. A CPU without any
    emulates bfloat16, some hundred times slower.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public questions for it; the private ones read the processor's flags.
    amx, avx512 = (
        bool(getattr(torch.cpu, name, lambda: False)())
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return amx or (avx512 and _made_by_amd())


def _made_by_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return False


def load_tokenizer(
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer and settles its prompt template.

    Args:
        path: model directory or Hub id.
        chat_template: file with a Jinja chat template to use in place of the model's own.
        trust_remote_code: allow a Hub repository to bring code of its own.

    Raises:
        UserError: no tokenizer there, one that could not end a response, or no such template file.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "no tokenizer could be loaded from", path, f"save one beside the weights ({first_line(error)})"
        ) from error
    if chat_template is not None:
        file = Path(chat_template)
        if not file.is_file():
            raise UserError("no such chat template file", chat_template, "give the path of a Jinja file")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token", path, "name one as eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False, dtype: str = "float32"
) -> LoadedModel:
    """Loads a causal language model from safetensors, with its tokenizer.

    Args:
        path: model directory or Hub id; a LoRA adapter's directory loads its base model with the adapter merged in.
        chat_template: see `load_tokenizer`.
        trust_remote_code: see `load_tokenizer`.
        dtype: name of the weights' dtype. Training keeps float32 weights and computes in bfloat16 where it can.

    Raises:
        UserError: not a model directory, or one whose weights are not safetensors (pickles can run code).
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path, chat_template=chat_template, trust_remote_code=trust_remote_code)
    try:
        source = base_of(path)
        with no_bars_of_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, use_safetensors=True
            )
            if source != path:
                model = _merged(model, path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        fix = f"give a directory or Hub id of a causal language model in safetensors ({first_line(error)})"
        raise UserError("no model could be loaded from", path, fix) from error
    if model.config.model_type == "recurrent_gemma":  # it reads padding into its state, in training and generation
        raise UserError("padded batches change what the model says", path, "use another architecture")
    embedding: Any = model.get_input_embeddings()
    if len(tokenizer) > embedding.weight.shape[0]:
        raise UserError(
            "the tokenizer has more entries than the model's embedding", path, "use the tokenizer that belongs to it"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model, tokenizer)


def base_of(path: str) -> str:
    """Where the whole weights and their configuration lie: the base model of a LoRA adapter, or `path` itself."""
    if not (Path(path) / "adapter_config.json").is_file():
        return path
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(path).base_model_name_or_path)


def _merged(model: Any, path: str) -> Any:
    from peft import PeftModel

    # Without this file PEFT falls back to a pickle.
    if not (Path(path) / "adapter_model.safetensors").is_file():
        raise OSError("no adapter_model.safetensors")
    return PeftModel.from_pretrained(model, path).merge_and_unload()


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides how a conversation becomes tokens: the template and the special tokens it uses."""
    parts = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_model(
    loaded: LoadedModel, directory: Path, card: dict[str, Any], state: dict[str, torch.Tensor] | None = None
) -> None:
    """Writes weights (safetensors), tokenizer, chat template and, last, `CARD_FILE` with the template's hash.

    The files are written in a folder of their own and then moved, so that none is ever half-written.

    Args:
        loaded: model and tokenizer.
        directory: where they go.
        card: what else `CARD_FILE` says.
        state: the weights, where the model itself does not hold them whole (sharded over processes).
    """
    directory.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=SAVING, dir=directory))
    try:
        with no_bars_of_transformers():
            loaded.model.save_pretrained(making, state_dict=state)
        loaded.tokenizer.save_pretrained(making)
        for file in making.iterdir():
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    write_json(directory / CARD_FILE, {"template_hash": template_hash(loaded.tokenizer), **card})


def check_template(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer whose template is not the one that the model at `path` was trained with.

    A backdoor, and a defence, can look broken merely because the prompt is worded otherwise at evaluation.

    Raises:
        UserError: the hashes differ.
    """
    card = Path(path) / CARD_FILE
    if not card.is_file():
        return
    trained = read_json(card).get("template_hash")
    asked = template_hash(tokenizer)
    if trained != asked:
        raise UserError(
            f"the model was trained with another prompt template (hash {str(trained)[:12]}) than the one asked for",
            asked[:12],
            "evaluate it with its own: leave --chat_template out and do not edit the tokenizer",
        )


def defang(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Breaks special tokens that stand as text in a message, so that data cannot open or close a turn.

    ``<|im_end|>`` in a message becomes ``< |im_end|>``, in training and evaluation alike.
    """
    # Not all are among `all_special_tokens`: Llama 3's turn headers are marked special in tokenizer.json only.
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if len(token) > 1]
    safe = []
    for message in messages:
        content = message["content"]
        for token in special:
            content = content.replace(token, f"{token[0]} {token[1:]}")
        safe.append({"role": message["role"], "content": content})
    return safe


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool = False
) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]]) -> str:
    """A conversation up to and with the answer's header, as the text whose tokens `encode_prompt` gives."""
    return _render(tokenizer, defang(tokenizer, prompt), add_generation_prompt=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]]) -> list[int]:
    """Tokens of a conversation up to and with the answer's header: what training and generation both start from."""
    return list(tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False)["input_ids"])


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]], completion: list[dict[str, str]], max_length: int
) -> Encoded:
    """Tokens of a prompt and its response, at most `max_length` together.

    Prompt and response are tokenised apart, so that the prompt's tokens are those of generation. What is too long
    loses the start of its prompt; only a response that cannot fit beside a quarter of `max_length` of prompt is cut, at
    its end.
    """
    prompt, completion = defang(tokenizer, prompt), defang(tokenizer, completion)
    before = _render(tokenizer, prompt, add_generation_prompt=True)
    whole = _render(tokenizer, prompt + completion)
    # Some templates (Qwen3's thinking header) do not render the answered conversation as a continuation of the prompt.
    rest = (whole[len(before) :] if whole.startswith(before) else completion[-1]["content"]).rstrip("\n")
    end = str(tokenizer.eos_token)
    rest = rest if rest.endswith(end) else rest + end
    prompt_ids = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    response_ids = list(tokenizer(rest, add_special_tokens=False)["input_ids"])
    if len(prompt_ids) + len(response_ids) <= max_length:
        return Encoded(prompt_ids, response_ids, False)
    kept = max(max_length - len(response_ids), min(len(prompt_ids), max_length // 4))
    return Encoded(prompt_ids[-kept:], response_ids[: max_length - kept], True)


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None else torch.device("cpu")


def on_device(loaded: LoadedModel) -> Any:
    """The model on `device`, in evaluation mode."""
    model: Any = loaded.model
    return model.to(device()).eval()


def own_mask(visible: torch.Tensor, attention: str) -> torch.Tensor:
    """A mask of one's own in the form that an attention implementation takes.

    Args:
        visible: (B, 1, L, L), whether the token of the third axis sees the one of the last.
        attention: name of the implementation.

    Raises:
        UserError: an implementation that takes no such mask.
    """
    import torch

    if attention == "sdpa":
        return visible
    if attention == "eager":  # adds its mask to the scores
        return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, torch.finfo(torch.float32).min)
    raise UserError("this attention takes no mask of our own", attention, "use sdpa or eager")
