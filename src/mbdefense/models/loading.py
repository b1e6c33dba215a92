"""Language models on disk and in memory."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import SAVING, sha256_of, write_sealed
from mbdefense.core.progress import no_bars_of_transformers
from mbdefense.models._card import check_contents
from mbdefense.models._files import base_of, check_files
from mbdefense.models._whole import check_finite, check_generation, check_whole, merged
from mbdefense.models.template import (
    CARD_FILE,
    PLAIN_TEMPLATE,
    Encoded,
    check_contract,
    check_template,
    defang,
    encode,
    encode_prompt,
    prompt_text,
    template_hash,
    without_thinking,
)

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "CARD_FILE",
    "PLAIN_TEMPLATE",
    "Encoded",
    "LoadedModel",
    "base_of",
    "bf16_pays",
    "check_template",
    "defang",
    "device",
    "encode",
    "encode_prompt",
    "load_model",
    "load_tokenizer",
    "on_device",
    "prompt_text",
    "save_model",
    "template_hash",
]


logger = logging.getLogger(__name__)


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
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False, renders: bool = True
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer and settles its prompt template.

    Args:
        path: model directory or Hub id.
        chat_template: file with a Jinja chat template to use in place of the model's own.
        trust_remote_code: allow a Hub repository to bring code of its own.
        renders: False for a model that is given texts or tokens only, whose template plays no part.

    Raises:
        UserError: no tokenizer there, one that could not end a response or whose settings have values of another type,
            no such template file, or a template that breaks the contract of `mbdefense.models.template`.
    """
    tokenizer = _tokenizer(path, trust_remote_code)
    longest: object = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise UserError("model_max_length is no number in the tokenizer's settings", longest, f"correct it in {path}")
    if chat_template is not None:
        file = Path(chat_template)
        if not file.is_file():
            raise UserError("no such chat template file", chat_template, "give the path of a Jinja file")
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("cannot read the chat template", chat_template, first_line(error)) from error
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token", path, "name one as eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if renders:
        check_contract(tokenizer)
    return tokenizer


def _tokenizer(path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory; an adapter that brings none has that of its base model."""
    from transformers import AutoTokenizer

    check_files(path)
    source = path
    try:
        own = not (Path(path) / "adapter_config.json").is_file() or any(Path(path).glob("tokenizer*"))
        source = path if own else base_of(path)
        check_files(source)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # of a stranger's file the libraries raise what they like
        fix = f"save one beside the weights ({first_line(error)})"
        raise _not_here(path, source, error) or UserError("no tokenizer could be loaded from", path, fix) from error
    return tokenizer


def _not_here(path: str, source: str, error: Exception) -> UserError | None:
    """What is said of a model that is no directory here and that the Hub does not give; None of one that is here.

    Args:
        path: as it was given.
        source: what was to be loaded for it, which is the base model of an adapter.
        error: of the library, which takes every name that is no directory for one of the Hub.
    """
    if Path(source).is_dir():
        return None
    if source != path:
        fix = f"correct base_model_name_or_path in its adapter_config.json ({first_line(error)})"
        return UserError(f"the base model of the adapter {path} could not be loaded from", source, fix)
    fix = f"give a directory that is there, or a Hub id that can be reached ({first_line(error)})"
    return UserError("no such model directory, and no tokenizer could be loaded from the Hub", path, fix)


def load_model(
    path: str,
    *,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    renders: bool = True,
    dtype: str = "float32",
    quantization: BitsAndBytesConfig | None = None,
) -> LoadedModel:
    """Loads a causal language model from safetensors, with its tokenizer.

    Args:
        path: model directory or Hub id; a LoRA adapter's directory loads its base model with the adapter merged in.
        chat_template: see `load_tokenizer`.
        trust_remote_code: see `load_tokenizer`.
        renders: see `load_tokenizer`.
        dtype: name of the weights' dtype. Training keeps float32 weights and computes in bfloat16 where it can.
        quantization: how to quantize the weights of linear layers while they are loaded; None leaves them whole.

    Raises:
        UserError: not a model directory, one whose weights are not safetensors (pickles can run code), weights that
            are not all of the model's and no others: what is missing would be filled with random numbers; or files that
            are not those that the model's card was written for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path, chat_template=chat_template, trust_remote_code=trust_remote_code, renders=renders)
    check_contents(Path(path))
    source = base_of(path)
    try:
        check_files(source)
        # Given as None it would put out what the model's own configuration says of its weights.
        quantized = {} if quantization is None else {"quantization_config": quantization}
        with no_bars_of_transformers():
            both: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, use_safetensors=True,
                output_loading_info=True, **quantized,
            )  # fmt: skip
            model, found = both
            check_whole(found, source)
            if source != path:
                model = merged(model, path)
                logger.info("%s is an adapter: it is merged into its base model %s", path, source)
        check_finite(model, path)
        check_generation(model.generation_config)
    except UserError:
        raise
    except Exception as error:  # as above
        if source != path and (missing := _not_here(path, source, error)):
            raise missing from error
        fix = f"give a directory or Hub id of a causal language model in safetensors ({first_line(error)})"
        raise UserError("no model could be loaded from", path, fix) from error
    if model.config.model_type == "recurrent_gemma":  # it reads padding into its state, in training and generation
        raise UserError("padded batches change what the model says", path, "use another architecture")
    embedding: Any = model.get_input_embeddings()
    if _largest_id(tokenizer, renders) >= embedding.weight.shape[0]:
        raise UserError(
            "the tokenizer has more entries than the model's embedding", path, "use the tokenizer that belongs to it"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model, tokenizer)


def _largest_id(tokenizer: PreTrainedTokenizerBase, renders: bool) -> int:
    """Of the tokens that a conversation can hold.

    A special token that neither the template names nor the tokenizer uses itself is none of them, for in messages its
    text is read as text: Gemma 3 in its smallest sizes brings one for images that its embedding has no row for. A model
    that is given plain texts meets all.
    """
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    template = str(tokenizer.chat_template)
    unused = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if renders and token.special and number not in own and token.content not in template
    }
    return max(number for number in tokenizer.get_vocab().values() if number not in unused)


def save_model(
    loaded: LoadedModel, directory: Path, card: dict[str, Any], state: dict[str, torch.Tensor] | None = None
) -> None:
    """Writes weights (safetensors), tokenizer, chat template and, last, `CARD_FILE` with the template's hash.

    A template that thinks unless it is told not to is told so, for that is how the model was trained and asked. All is
    written in a folder of its own and then moved, so that no file is ever half-written.

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
        save_tokenizer(loaded.tokenizer, making)
        for file in making.iterdir():
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    names = sorted(file.name for file in directory.iterdir() if is_weighty(file.name))
    files = {name: sha256_of(directory / name) for name in names}
    write_sealed(directory / CARD_FILE, {"template_hash": template_hash(loaded.tokenizer), "files": files, **card})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes a tokenizer with its template, see `mbdefense.models.template.without_thinking`."""
    own = tokenizer.chat_template
    try:
        if isinstance(own, str):
            tokenizer.chat_template = without_thinking(own)
        tokenizer.save_pretrained(directory)
    finally:
        tokenizer.chat_template = own


def is_weighty(name: str) -> bool:
    """Whether a model's file decides what the model says, its prompt template aside, which has a hash of its own."""
    return name.endswith((".safetensors", ".safetensors.index.json")) or name in ("config.json", "tokenizer.json")


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None else torch.device("cpu")


def on_device(loaded: LoadedModel) -> Any:
    """The model on `device`, in evaluation mode."""
    model: Any = loaded.model
    return model.to(device()).eval()
