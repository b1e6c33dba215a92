"""Greedy generation, under what the model's own generation_config asks for besides, such as a penalty."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from mbdefense.core.progress import track
from mbdefense.models.limits import check_room, context_length, one_at_a_time, stop_ids
from mbdefense.models.loading import LoadedModel, device, encode_prompt, on_device

Conversation = list[dict[str, str]]

_CACHE_BYTES = 2 * 2**30
"""Keys and values of a batch at most; transformers holds them twice for a moment in each step."""


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    what: str = "generating",
) -> list[str]:
    """Answers prompts as `answers` does, and returns the texts in the order of the prompts."""
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return [said.text for said in generate_said(loaded, prompts, **options, what=what)]


class Said(NamedTuple):
    """An answer's text, and whether the model ended it: it goes on where `max_new_tokens` did."""

    text: str
    ended: bool


def generate_said(
    loaded: LoadedModel,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    what: str = "generating",
) -> list[Said]:
    """Answers prompts as `generate` does, and tells which answers go on."""
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    found = dict(_said(loaded, prompts, **options, what=what))
    return [found[index] for index in range(len(prompts))]


def answers(
    loaded: LoadedModel,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    what: str = "generating",
) -> Iterator[tuple[int, str]]:
    """Answers prompts greedily.

    Args:
        loaded: model and tokenizer.
        prompts: conversations that end in a user turn.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts in one batch, fewer where their keys and values would take over 2 GiB, or where the rows of
            a batch change each other (`mbdefense.models.limits.one_at_a_time`).
        what: label of the progress bar.

    Yields:
        A prompt's index and its text, batch by batch: without special tokens, and empty where the model ended at once.

    Raises:
        UserError: a prompt and its answer may be longer than the model's context.
    """
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    for index, said in _said(loaded, prompts, **options, what=what):
        yield index, said.text


def _said(
    loaded: LoadedModel, prompts: Sequence[Conversation], *, max_new_tokens: int, batch_size: int, what: str
) -> Iterator[tuple[int, Said]]:
    encoded = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
    check_room(context_length(loaded.model), prompts, encoded, max_new_tokens)
    stops = stop_ids(loaded.model.generation_config, loaded.tokenizer)
    found = _continuations(loaded, encoded, max_new_tokens, batch_size, stops)
    for index, answer in track(found, what, len(prompts)):
        yield index, Said(_text(loaded.tokenizer, answer, stops), any(token in stops for token in answer))


def _text(tokenizer: Any, answer: Sequence[int], stops: Collection[int]) -> str:
    """An answer up to what ended it, behind which is padding."""
    end = next((place for place, token in enumerate(answer) if token in stops), len(answer))
    return str(tokenizer.decode(answer[:end], skip_special_tokens=True))


def _continuations(
    loaded: LoadedModel,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    stops: Collection[int],
) -> Iterator[tuple[int, list[int]]]:
    """Every prompt's index and the tokens of its answer."""
    model, tokenizer = on_device(loaded), loaded.tokenizer
    for indices in _batches(model, encoded, max_new_tokens, batch_size):
        rows = [encoded[index] for index in indices]
        answers, _ = _continued(model, rows, max_new_tokens, stops, tokenizer.pad_token_id)
        yield from zip(indices, answers.tolist(), strict=True)


def generate_beside(
    loaded: LoadedModel,
    reference: LoadedModel,
    prompts: Sequence[Conversation],
    *,
    alpha: float,
    lookahead: int,
    max_new_tokens: int,
    batch_size: int,
    what: str = "generating",
) -> list[str]:
    """Answers like `generate`, with tokens that a second model finds far too unlikely replaced by its own.

    Each round drafts some tokens of every unfinished answer greedily, has the reference read them in one pass, and adds
    what `agreed` makes of them. How many are drafted changes the time, not the text: long drafts need fewer rounds, and
    waste more where the reference objects.

    Args:
        loaded: the model that answers; its tokenizer encodes the prompts for both.
        reference: the model beside it, with the same vocabulary.
        prompts: conversations that end in a user turn.
        alpha: a token is replaced where its probability is at least so many times the reference's.
        lookahead: tokens drafted in one round.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts in one batch.
        what: label of the progress bar.

    Returns:
        One text per prompt, without special tokens.

    Raises:
        UserError: a prompt and its answer may be longer than either model's context.
    """
    model, other, tokenizer = on_device(loaded), on_device(reference), loaded.tokenizer
    stops = stop_ids(model.generation_config, tokenizer)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    limit = min(context_length(model), context_length(other))
    check_room(limit, prompts, encoded, max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    batches = _batches(model, encoded, max_new_tokens, 1 if one_at_a_time(other) else batch_size)
    for indices in track(batches, what):
        while indices:
            rows = [encoded[index] + answers[index] for index in indices]
            room = int(min(lookahead, limit - max(map(len, rows))))
            drafts, own = _draft(model, rows, room, stops, tokenizer.pad_token_id)
            theirs, best = _read(other, tokenizer.pad_token_id, rows, drafts)
            columns = (part.tolist() for part in (drafts, own, theirs, best))
            for index, draft, mine, their, choice in zip(indices, *columns, strict=True):
                end = next((place for place, token in enumerate(draft) if token in stops), len(draft))
                # Behind the token that ends it is padding.
                answers[index] += agreed(draft[: end + 1], mine, their, choice, alpha)
                del answers[index][max_new_tokens:]
            indices = [
                index for index in indices if len(answers[index]) < max_new_tokens and answers[index][-1] not in stops
            ]
    return [_text(tokenizer, answer, stops) for answer in answers]


def agreed(
    draft: Sequence[int], own: Sequence[float], reference: Sequence[float], best: Sequence[int], alpha: float
) -> list[int]:
    """A draft up to its first suspicious token, and in that one's place the reference's.

    Token i is suspicious if p_i / q_i >= alpha, p_i and q_i being its probabilities for the model and the reference
    after the same tokens. What was drafted behind it is void, for it was to follow another token.

    Args:
        draft: the model's tokens, at least one.
        own: log p_i.
        reference: log q_i.
        best: the reference's likeliest token at each place.
        alpha: threshold, above 0.
    """
    for place in range(len(draft)):
        if own[place] - reference[place] >= math.log(alpha):
            return [*draft[:place], best[place]]
    return list(draft)


def _batches(model: Any, encoded: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, each of which the model can answer at once."""
    rows = 1 if one_at_a_time(model) else batch_size
    batches: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda index: len(encoded[index])):
        most = min(rows, _CACHE_BYTES // (_token_bytes(model) * (len(encoded[index]) + max_new_tokens)))
        if not batches or len(batches[-1]) >= most:
            batches.append([])
        batches[-1].append(index)
    return batches


def _token_bytes(model: Any) -> int:
    """Memory of one token's keys and values; 1 where there are none, as in recurrent models."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    if not heads:
        return 1
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _left_padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of shape (B, L), on the device."""
    length = max(map(len, rows))
    input_ids = torch.tensor([[pad_token_id] * (length - len(row)) + list(row) for row in rows])
    attention_mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return input_ids.to(device()), attention_mask.to(device())


def _continued(
    model: Any,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Collection[int],
    pad_token_id: int,
    *,
    logits: bool = False,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """Greedy continuations (B, K) of token sequences, padded behind their end, and if asked for K logits (B, V)."""
    input_ids, attention_mask = _left_padded(rows, pad_token_id)
    with torch.inference_mode():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=pad_token_id,
            return_dict_in_generate=True,
            output_logits=logits,
        )
    return output.sequences[:, input_ids.shape[1] :], output.logits


def _draft(
    model: Any, rows: Sequence[Sequence[int]], length: int, stops: Collection[int], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next tokens (B, K), K up to `length`, and their log-probabilities (B, K)."""
    tokens, logits = _continued(model, rows, length, stops, pad_token_id, logits=True)
    scores = torch.stack(list(logits or ()), dim=1).float().log_softmax(dim=-1)
    return tokens, scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _read(
    model: Any, pad_token_id: int, rows: Sequence[Sequence[int]], drafts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another model's log-probabilities (B, K) of drafted tokens, and its likeliest token at each of their places."""
    input_ids, attention_mask = _left_padded(
        [[*row, *draft[:-1]] for row, draft in zip(rows, drafts.tolist(), strict=True)], pad_token_id
    )
    with torch.inference_mode():
        logits = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=drafts.shape[1],
            use_cache=False,
        ).logits
    scores = logits.float().log_softmax(dim=-1)
    # Models of one family pad their vocabularies to different sizes: what this one cannot say has no probability.
    missing = max(int(drafts.max()) + 1 - scores.shape[-1], 0)
    known = torch.nn.functional.pad(scores, (0, missing), value=-math.inf)
    return known.gather(-1, drafts.unsqueeze(-1)).squeeze(-1), scores.argmax(dim=-1)
