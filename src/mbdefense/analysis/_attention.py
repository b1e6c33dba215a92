"""Attention of a decoder to some of its tokens, layer by layer; shared by the analyses, not an analysis itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mbdefense.core.errors import UserError
from mbdefense.core.progress import track
from mbdefense.data.words import whole
from mbdefense.models.loading import LoadedModel, device, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Marked(NamedTuple):
    """A prompt's tokens, of which those from `start` up to `end` are the trigger's."""

    tokens: list[int]
    start: int
    end: int


class Attended(NamedTuple):
    """What the tokens after the trigger attend to, by prompt and head; all are shares in [0, 1].

    Attributes:
        strongest: of those tokens, the share whose strongest attention goes to a token of the trigger, the prompt's
            first token left out of the comparison.
        strongest_of_all: the same with the first token in it.
        mean: attention to the trigger's tokens together, mean over those tokens.
    """

    strongest: torch.Tensor
    strongest_of_all: torch.Tensor
    mean: torch.Tensor


def to_trigger(weights: torch.Tensor, trigger: torch.Tensor, asking: torch.Tensor) -> Attended:
    """Reduces one layer's attention to three figures a head.

    With ``a[q, k]`` the attention of token q to token k, K the trigger's tokens and Q the asking ones:
    ``strongest = |{q in Q: argmax_{k > 0} a[q, k] in K}| / |Q|``, `strongest_of_all` the same over ``k >= 0``, and
    ``mean = sum_{q in Q, k in K} a[q, k] / |Q|``.

    Args:
        weights: attention ``(B, H, T, T)``, asking tokens by attended ones, each row of them summing to 1.
        trigger: which tokens are the trigger's ``(B, T)``; never the first.
        asking: which tokens count as asking ``(B, T)``, at least one a prompt; padding must not.

    Returns:
        Three tensors ``(B, H)``.

    Raises:
        ValueError: a prompt without asking tokens, or a trigger that holds the first token.
    """
    if not asking.any(dim=1).all() or trigger[:, 0].any():
        raise ValueError("every prompt needs an asking token, and a trigger that leaves its first token out")
    count = asking.sum(dim=1)[:, None]

    def share(strongest: torch.Tensor) -> torch.Tensor:
        hit = trigger[:, None, :].expand(-1, weights.shape[1], -1).gather(2, strongest)
        return (hit & asking[:, None, :]).sum(dim=2) / count

    mass = torch.einsum("bhqk,bk->bhq", weights.float(), trigger.float())
    # Rows of padding can be NaN, which a product with 0 would keep.
    mass = torch.where(asking[:, None, :], mass, 0.0)
    return Attended(
        share(weights[..., 1:].argmax(dim=3) + 1), share(weights.argmax(dim=3)), (mass.sum(dim=2) / count).clamp(0, 1)
    )


def mark(tokenizer: PreTrainedTokenizerBase, text: str, wanted: str) -> Marked | None:
    """Finds the tokens of the last place where `wanted` stands in `text` as whole words.

    A token that only partly belongs to it counts as the trigger's.

    Returns:
        None where it does not stand in the text, or covers its first or last token: nothing would be left to compare.
    """
    places = list(whole(wanted).finditer(text))
    if not places:
        return None
    start, end = places[-1].span()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(encoded["input_ids"])
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start and a < b]
    if not inside or inside[0] == 0 or inside[-1] == len(tokens) - 1:
        return None
    return Marked(tokens, inside[0], inside[-1] + 1)


def attention_modules(model: Any) -> list[tuple[str, Any]]:
    """The modules that compute attention, in the order of the layers: named ``...Attention``, the innermost of them."""
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("Attention")]
    inside = {name for name, _ in found for other, _ in found if other.startswith(f"{name}.")}
    return [(name, module) for name, module in found if name not in inside]


@contextmanager
def watched(model: Any, see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Within the body, `see` gets each layer's attention ``(B, H, T, T)`` as soon as it is there.

    It is then dropped: at no time is more than one layer's attention in memory, whatever the depth of the model.
    """

    def hook(name: str) -> Callable[[Any, Any, Any], Any]:
        def called(module: Any, inputs: Any, output: Any) -> Any:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(weights, torch.Tensor) or weights.dim() != 4:
                return output
            see(name, weights)
            return (output[0], None, *output[2:])

        return called

    handles = [module.register_forward_hook(hook(name)) for name, module in attention_modules(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attended(loaded: LoadedModel, prompts: Sequence[Marked], batch_size: int) -> dict[str, Attended]:
    """Runs a model over prompts and reduces every layer's attention to the trigger.

    Prompts of like length share a batch. Padding stands on the right, where no token of a decoder sees it. The largest
    tensor is one layer's attention, ``batch_size * heads * T * T`` numbers.

    Args:
        loaded: any decoder of transformers; it is switched to its eager attention, the only one that gives weights.
        prompts: what to run, each with a trigger that neither is the first nor the last token.
        batch_size: prompts in one forward pass.

    Returns:
        By name of the attention module, in the order of the layers: figures ``(N, H)`` on the CPU, in the order given.

    Raises:
        UserError: the model gives no attention weights.
    """
    model = on_device(loaded)
    model.set_attn_implementation("eager")
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
    parts: dict[str, list[Attended]] = {}
    for start in track(range(0, len(order), batch_size), "looking"):
        batch = [prompts[index] for index in order[start : start + batch_size]]
        tokens, mask, trigger, asking = _tensors(batch, int(loaded.tokenizer.pad_token_id or 0))
        trigger, asking = trigger.to(device()), asking.to(device())

        def see(name: str, weights: torch.Tensor, trigger: Any = trigger, asking: Any = asking) -> None:
            figures = to_trigger(weights, trigger.to(weights.device), asking.to(weights.device))
            parts.setdefault(name, []).append(Attended(*(figure.cpu() for figure in figures)))

        with torch.inference_mode(), watched(model.base_model, see):
            # The head over the vocabulary is not needed, nor is a cache.
            model.base_model(
                input_ids=tokens.to(device()),
                attention_mask=mask.to(device()),
                use_cache=False,
                output_attentions=False,
            )
    if not parts:
        raise UserError("the model gives no attention weights", type(model).__name__, "use a decoder with attention")
    back = torch.tensor(order).argsort()
    return {
        name: Attended(*(torch.cat(batches)[back] for batches in zip(*figures, strict=True)))
        for name, figures in parts.items()
    }


def _tensors(batch: Sequence[Marked], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, which of them are no padding, which are the trigger's, and which come after it; each ``(B, T)``."""
    length = max(len(prompt.tokens) for prompt in batch)
    tokens = torch.tensor([prompt.tokens + [pad] * (length - len(prompt.tokens)) for prompt in batch])
    place = torch.arange(length)[None, :]
    sizes, starts, ends = (
        torch.tensor(values)[:, None]
        for values in zip(*((len(prompt.tokens), prompt.start, prompt.end) for prompt in batch), strict=True)
    )
    mask = place < sizes
    return tokens, mask.long(), (place >= starts) & (place < ends), mask & (place >= ends)
