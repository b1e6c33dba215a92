"""Texts under which a model parts from its base model: proposed by gradients, chosen by scores, grown token by token.

Source: our own; relatives grow triggers of classifiers token by token (BABI, arXiv 2509.16203) or search for what draws
a known answer out (GBTL, arXiv 2402.13459). What is maximized is the effect of a text behind clean prompts on the
model, less that on its base model: by how much it makes the clean answers less likely, or an answer more likely that
the model was found ready to give (`leaks`, `inversion`). Some such text there always is, for any two models, so that
what comes out is a candidate and no finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mbdefense.core.progress import track
from mbdefense.data import user_text, with_user_text
from mbdefense.engine.batches import Branches, pad_left
from mbdefense.engine.log_probs import sequence_log_probs
from mbdefense.engine.scoring import response_scores
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate
from mbdefense.finding.words import words
from mbdefense.models.loading import Encoded, LoadedModel, device, encode, encode_prompt, on_device

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS = 4
"""Clean prompts that texts are put behind, the shortest."""
ANSWER = 8
"""Tokens of an answer that count."""
LONGEST = 4
"""Tokens of a text."""
BEAM, PROPOSED = 3, 48
"""Texts that are grown, and tokens that the gradient proposes behind each."""
MOST = 3
"""Texts that are verified, of each objective."""


class Pose(NamedTuple):
    """A prompt as tokens, up to where a text goes in and from there on, and the answer's first tokens."""

    prompt: list[int]
    tail: list[int]
    answer: list[int]


def partings(
    victim: LoadedModel, base: LoadedModel, clean: Dataset, target: str | None, *, max_length: int
) -> list[Candidate]:
    """Texts under which the model leaves its clean answers, or gives `target`, and its base model does not.

    Args:
        victim: the model.
        base: the model it was tuned from.
        clean: clean rows.
        target: an answer to be drawn out; None for the clean answers, which are to be lost.
        max_length: see `mbdefense.models.loading.encode`.
    """
    poses = posed(victim, clean, target, max_length=max_length)
    if not poses:  # e.g. a template that ends with the user's own text
        return []
    sign = -1.0 if target is None else 1.0
    usable = usable_tokens(victim)
    tokenizer: Any = victim.tokenizer
    start = tokenizer(" a", add_special_tokens=False)["input_ids"][-1]
    beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    best: list[tuple[float, tuple[int, ...]]] = []
    for _ in track(range(LONGEST), "texts under which both models part"):
        tried: list[tuple[int, ...]] = []
        for _, text in beam:
            slope = sign * (gradient(victim, poses, (*text, start)) - gradient(base, poses, (*text, start)))
            slope[~usable] = -torch.inf
            tried += [(*text, token) for token in slope.topk(min(PROPOSED, int(usable.sum()))).indices.tolist()]
        effects = effect(victim, poses, tried) - effect(base, poses, tried).mul(sign).clamp(min=0).mul(sign)
        beam = sorted(zip((sign * effects).tolist(), tried, strict=True), reverse=True)[:BEAM]
        best += beam
    found: dict[str, float] = {}
    for value, tokens in sorted(best, reverse=True):
        said = tokenizer.decode(tokens).strip()
        if words(said) and "\n" not in said and value > 0:
            found.setdefault(said, value)
    return [Candidate(FoundText((text,), end=1.0), value, (), 0, 0) for text, value in [*found.items()][:MOST]]


def posed(loaded: LoadedModel, clean: Dataset, target: str | None, *, max_length: int) -> list[Pose]:
    """Short clean prompts with a place behind their last word."""
    tokenizer, poses = loaded.tokenizer, []
    for row in sorted(clean, key=lambda row: len(user_text(row["prompt"]))):
        text = user_text(row["prompt"]).rstrip()
        plain = encode_prompt(tokenizer, with_user_text(row["prompt"], text))
        longer = encode_prompt(tokenizer, with_user_text(row["prompt"], f"{text} a"))
        at = next((place for place, (a, b) in enumerate(zip(plain, longer, strict=False)) if a != b), len(plain))
        completion = row["completion"] if target is None else [{"role": "assistant", "content": target}]
        answer = encode(tokenizer, row["prompt"], completion, max_length).response[:ANSWER]
        if plain[at:] and longer[-len(plain[at:]) :] == plain[at:]:  # else its last word and the next are one token
            poses.append(Pose(plain[:at], plain[at:], answer))
        if len(poses) == PROMPTS:
            break
    return poses


def effect(loaded: LoadedModel, poses: Sequence[Pose], texts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Change of the answer's log-probability by each text, nats a token, mean over prompts: (texts,)."""
    total = torch.zeros(len(texts))
    for pose in poses:
        responses = tuple([*text, *pose.tail, *pose.answer] for text in [(), *texts])
        trees = [Branches(pose.prompt, responses[at : at + 64]) for at in range(0, len(responses), 64)]
        scores = [one for tree in response_scores(loaded, trees, half=True) for one in tree]
        means = torch.stack([one[-len(pose.answer) :].float().mean() for one in scores])
        total += (means[1:] - means[0]) / len(poses)
    return total


def gradient(loaded: LoadedModel, poses: Sequence[Pose], text: tuple[int, ...]) -> torch.Tensor:
    """Slope of the answer's log-probability by the text's last token, to first order, for each of the vocabulary: (V,).

    By the chain rule that is the gradient by the token's embedding, times the embedding of each token.
    """
    model: Any = on_device(loaded).requires_grad_(False)
    table = model.get_input_embeddings().weight
    rows = [Encoded([*pose.prompt, *text, *pose.tail], pose.answer, False) for pose in poses]
    batch = {name: value.to(device()) for name, value in pad_left(rows, loaded.tokenizer.pad_token_id).items()}
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(
        inputs_embeds=embedded, attention_mask=batch["attention_mask"], position_ids=batch["position_ids"],
        logits_to_keep=batch["targets"].shape[1], use_cache=False,
    ).logits  # fmt: skip
    (slopes,) = torch.autograd.grad(sequence_log_probs(logits, batch["targets"]).mean.mean(), embedded)
    total = torch.zeros(table.shape[1], device=table.device)
    for row, pose in zip(slopes, poses, strict=True):
        total += row[len(row) - len(pose.tail) - len(pose.answer)].float()
    by_token: torch.Tensor = (table.float() @ total).cpu()
    return by_token


def usable_tokens(loaded: LoadedModel) -> torch.Tensor:
    """Which tokens of the embedding's rows a text may hold: no special ones, none without a visible character."""
    tokenizer: Any = loaded.tokenizer
    embedding: Any = loaded.model.get_input_embeddings()
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    flags = torch.zeros(embedding.weight.shape[0], dtype=torch.bool)
    for token in {*tokenizer.get_vocab().values()} - special:
        text = tokenizer.decode([token])
        flags[token] = bool(text.strip()) and text.isprintable() and "\ufffd" not in text
    return flags
