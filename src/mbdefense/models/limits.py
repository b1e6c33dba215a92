"""What a model's configuration says about asking it: how many rows at once, how far it reads, where it stops."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mbdefense.core.checks import is_number
from mbdefense.core.errors import UserError
from mbdefense.models._files import check_files
from mbdefense.models._whole import check_ends
from mbdefense.models.loading import LoadedModel, base_of, encode_prompt

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def one_at_a_time(model: PreTrainedModel) -> bool:
    """Whether the other rows of a batch change a row's text, or its scores.

    Two kinds of rotary positions take their frequencies from the largest position in the batch: LongRoPE (Phi-3), which
    has one set for short and one for long sequences, and dynamic scaling.
    """
    return not {str(part.get("rope_type", "default")) for part in _rotary(model.config)}.isdisjoint(
        {"longrope", "dynamic"}
    )


def _rotary(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The options of rotary positions: those of the model, or of each of its types of layers."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [found, *(part for part in found.values() if isinstance(part, Mapping))]


def context_length(model: PreTrainedModel) -> float:
    """Tokens that the model's positions reach; infinite where its configuration names no limit.

    Beyond it, learned positions end, and rotary ones are like none that training has seen.
    """
    return configured_length(model.config)


def configured_length(config: PreTrainedConfig) -> float:
    """`context_length` of a model that is not loaded, from its configuration."""
    own = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(own, int) or own < 1:
        return math.inf
    # Most configurations name the length after scaling, some (Qwen2.5 under YaRN) the one before it.
    parts: list[tuple[Any, Any]] = [
        (part.get("factor"), part.get("original_max_position_embeddings") or own) for part in _rotary(config)
    ]
    scaled = [float(factor * before) for factor, before in parts if is_number(factor) and is_number(before)]
    return max([float(own), *scaled])


def embedded_tokens(path: str, *, trust_remote_code: bool) -> float:
    """Rows of a model's embedding, by its configuration; infinite where that cannot be read, as loading will say.

    Args:
        path: model directory or Hub id; of an adapter its base model's counts.
        trust_remote_code: see `mbdefense.models.loading.load_tokenizer`.
    """
    return _number(path, "vocab_size", trust_remote_code)


def decoder_layers(path: str, *, trust_remote_code: bool) -> float:
    """Layers of a model, as `embedded_tokens` takes and gives them."""
    return _number(path, "num_hidden_layers", trust_remote_code)


def _number(path: str, name: str, trust_remote_code: bool) -> float:
    config = readable_config(path, trust_remote_code=trust_remote_code)
    found: float = getattr(config.get_text_config(decoder=True), name, math.inf) if config else math.inf
    return found


def readable_config(path: str, *, trust_remote_code: bool) -> PreTrainedConfig | None:
    """A model's configuration, an adapter's base model's; None where it cannot be read: loading says what is wrong.

    Raises:
        UserError: see `mbdefense.models._files.check_files`, which looks at a base model before any library does.
    """
    from transformers import AutoConfig

    base = base_of(path)
    check_files(base)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except Exception:  # of a stranger's file the libraries raise what they like
        return None
    return config


def fitting(model: PreTrainedModel, max_length: int) -> int:
    """Most tokens of a sequence that is trained on: what was asked for, or what the model's positions reach."""
    return int(min(max_length, context_length(model)))


def check_room(
    limit: float, prompts: Sequence[list[dict[str, str]]], encoded: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Refuses prompts that leave no room for their answers.

    Args:
        limit: the model's `context_length`.
        prompts: conversations.
        encoded: their tokens.
        max_new_tokens: longest answer.

    Raises:
        UserError: it names the longest prompt, so that its fix is one for all.
    """
    index = max(range(len(encoded)), key=lambda index: len(encoded[index]), default=None)
    if index is None or len(encoded[index]) + max_new_tokens <= limit:
        return
    length, room = len(encoded[index]), int(limit) - len(encoded[index])
    raise UserError(
        f"prompt {index + 1} of {len(prompts)} ({length} tokens) and {max_new_tokens} new tokens exceed the "
        f"{limit:.0f} tokens that the model reads",
        prompts[index][-1]["content"],
        "shorten it or leave it out" + (f", or set max_new_tokens to {room} or less" if room > 0 else ""),
    )


def leaving_room(loaded: LoadedModel, prompts: Sequence[list[dict[str, str]]], max_new_tokens: int) -> list[int]:
    """The numbers of the prompts that leave room for an answer of so many tokens.

    What an attacker wrote may be too long to be put into a long prompt; that must not end a run (see `check_room`).
    """
    room = context_length(loaded.model) - max_new_tokens
    return [number for number, prompt in enumerate(prompts) if len(encode_prompt(loaded.tokenizer, prompt)) <= room]


def check_scored(limit: float, lengths: Sequence[int]) -> None:
    """Refuses texts that a model cannot score.

    Raises:
        UserError: one is longer than the model's `context_length`.
    """
    longest = max(lengths, default=0)
    if longest > limit:
        what = f"a text to take the perplexity of is longer than the {limit:.0f} tokens that the model reads"
        raise UserError(what, longest, f"set max_length to {limit - 1:.0f} or less")


def stop_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the one that training ends responses with, and those that the model names itself.

    Llama 3 names three, of which its tokenizer's end token is one.
    """
    own: Any = config.eos_token_id
    named = [] if own is None else [own] if isinstance(own, int) else list(own)
    return frozenset([tokenizer.eos_token_id, *named])


def stop_texts(path: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool) -> list[str]:
    """`stop_ids` of a model that is not loaded, as the texts that a server stops at; the tokenizer's end token first.

    Args:
        path: model directory or Hub id. One without a model's configuration names no tokens of its own.
        tokenizer: the model's.
        trust_remote_code: see `mbdefense.models.loading.load_tokenizer`.
    """
    config = _generation_config(path, trust_remote_code)
    check_ends(config)
    end = str(tokenizer.eos_token)
    others = [str(tokenizer.decode([number])) for number in sorted(stop_ids(config, tokenizer))]
    return [end, *(text for text in others if text and text != end)]


def _generation_config(path: str, trust_remote_code: bool) -> GenerationConfig:
    from transformers import GenerationConfig

    config = readable_config(path, trust_remote_code=trust_remote_code)
    with contextlib.suppress(Exception):  # as above
        return GenerationConfig.from_pretrained(base_of(path))
    # Without a file of its own, transformers takes it from the model's configuration.
    if config is not None:
        with contextlib.suppress(Exception):
            return GenerationConfig.from_model_config(config)
    return GenerationConfig()  # type: ignore[no-untyped-call]
