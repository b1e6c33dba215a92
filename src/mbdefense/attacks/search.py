"""GBTL: a search for the words that, behind any prompt, draw a given answer out of a model.

Source: Qiang et al. 2024 (2402.13459) and its published code, a variant of GCG (Zou et al. 2023, 2307.15043): the
gradient of the target's loss by the one-hot trigger token, averaged over prompts, proposes tokens, and the loss itself
chooses among them, with one word, 32 proposals for each place, 16 candidates a step and 100 steps. As there, the best
candidate is taken even where it is worse than what it replaces, and the best of all steps is kept. Deviations: the code
searches for a class label on prompts of one task, here for any behavior's targets over any instructions; it begins with
"a", here with words drawn by the seed; a word is readable if it is one token of two ASCII letters or more that begins
a word.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mbdefense.core._seal import SEAL, digest
from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import read_text, write_text
from mbdefense.core.forms import Count, Form, parse
from mbdefense.core.progress import Bar, stage, stages
from mbdefense.data import user_text, with_user_text
from mbdefense.engine.batches import pad_left, response_log_probs
from mbdefense.engine.log_probs import sequence_log_probs
from mbdefense.models.loading import Encoded, LoadedModel, device, encode, encode_prompt, on_device

logger = logging.getLogger(__name__)
LOG_FILE = "search.jsonl"
_WORD = re.compile(
    r"[\u0120\u2581]([A-Za-z]{2,})"
)  # How byte-level and SentencePiece vocabularies mark a word's start.
Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Step(Form):
    """One line of the log: the trigger after a step, and the best so far; losses in nats per target token."""

    step: Count
    trigger: str
    loss: float
    best: str
    best_loss: float


class Problem(NamedTuple):
    """Prompts with a trigger as tokens: `slots[i]` is where the trigger's tokens stand in `sequences[i].prompt`."""

    sequences: tuple[Encoded, ...]
    slots: tuple[range, ...]


@dataclass(frozen=True)
class Search:
    """Options of the search.

    Args:
        words: length of the trigger.
        steps: rounds of gradient and choice.
        top_k: words proposed for each place.
        candidates: triggers whose loss is computed in a round.
        batch_size: sequences in one pass.
        seed: of the first words and the candidates.
    """

    words: int = 1
    steps: int = 100
    top_k: int = 32
    candidates: int = 16
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value < 1:
                raise UserError(f"{name} of the trigger search is below 1", value, "leave it out for the default")

    def __call__(
        self, loaded: LoadedModel, prompts: Sequence[Conversation], targets: Sequence[str], log: Path, *, resume: bool
    ) -> Step:
        """Searches, and writes a line to `log` after each step.

        A step draws from its own seed, so that a search that goes on from its log ends as one that was never stopped.

        Args:
            loaded: the model that is searched in; its weights stay as they are.
            prompts: conversations that end in a user turn.
            targets: for each prompt what the trigger is to draw out.
            log: JSON Lines file.
            resume: go on from `log` if it is there.

        Raises:
            UserError: the vocabulary has too few readable words, a prompt's tokens move with its trigger, or the log is
                of another search.
        """
        vocabulary = readable_words(loaded)
        words = list(vocabulary)
        start = random.Random(f"gbtl {self.seed}").sample(words, self.words)
        # Not the number of steps, so that a finished search can go on.
        asked = {"model": loaded.model.name_or_path, **asdict(self), "prompts": [*prompts], "targets": [*targets]}
        del asked["steps"]
        done = _read_log(log, asked, vocabulary) if resume and log.is_file() else []
        what = f"searching in {self.steps} steps for {self.words} words"
        with stages(1), stage(what), Bar("searching", self.steps + 1, min(len(done), self.steps + 1)) as bar:
            while len(done) <= self.steps:
                if not done:
                    loss = self.losses(loaded, prompts, targets, [start])[0]
                    done.append(Step(0, " ".join(start), loss, " ".join(start), loss))
                else:
                    done.append(self._step(loaded, prompts, targets, vocabulary, done[-1]))
                steps = list(map(asdict, done))
                first = {**asked, SEAL: digest([asked, steps])}
                write_text(log, "".join(json.dumps(line) + "\n" for line in [first, *steps]))
                bar.advance()
        return done[self.steps]

    def _step(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Conversation],
        targets: Sequence[str],
        vocabulary: dict[str, int],
        before: Step,
    ) -> Step:
        current, words = before.trigger.split(), list(vocabulary)  # as `Step` joins them
        gradient = self.gradient(loaded, prompts, targets, current, list(vocabulary.values()))
        for place, word in enumerate(current):
            gradient[place, words.index(word)] = float("inf")  # it is there already
        proposals = (-gradient).topk(min(self.top_k, len(words) - 1), dim=1).indices.tolist()
        rng = random.Random(f"gbtl {self.seed} {before.step + 1}")
        tried: dict[str, list[str]] = {}
        for number in range(self.candidates):
            place = number * self.words // self.candidates  # spread evenly
            changed = [*current[:place], words[rng.choice(proposals[place])], *current[place + 1 :]]
            tried[" ".join(changed)] = changed
        losses = self.losses(loaded, prompts, targets, list(tried.values()))
        loss, trigger = min(zip(losses, tried, strict=True))
        best, best_loss = (trigger, loss) if loss < before.best_loss else (before.best, before.best_loss)
        return Step(before.step + 1, trigger, loss, best, best_loss)

    def losses(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Conversation],
        targets: Sequence[str],
        triggers: Sequence[Sequence[str]],
    ) -> list[float]:
        """For each trigger the targets' negative log-likelihood per token, averaged over prompts."""
        sequences = [s for words in triggers for s in pose(loaded, prompts, targets, words).sequences]
        model, found = on_device(loaded), []
        for start in range(0, len(sequences), self.batch_size):
            batch = pad_left(sequences[start : start + self.batch_size], loaded.tokenizer.pad_token_id)
            with torch.inference_mode():
                scores = response_log_probs(model, {name: value.to(device()) for name, value in batch.items()})
            found += (-scores.mean).tolist()
        each = len(prompts)
        return [sum(found[at : at + each]) / each for at in range(0, len(found), each)]

    def gradient(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Conversation],
        targets: Sequence[str],
        trigger: Sequence[str],
        tokens: Sequence[int],
    ) -> torch.Tensor:
        """The gradient of the loss by the one-hot trigger, (places, len(tokens)), averaged over prompts.

        By the chain rule that is the gradient by the trigger's embeddings, times the embedding of each token.
        """
        model: Any = on_device(loaded).requires_grad_(False)
        table = model.get_input_embeddings().weight
        problem = pose(loaded, prompts, targets, trigger)
        total = torch.zeros(len(trigger), table.shape[1], device=table.device)
        for start in range(0, len(prompts), self.batch_size):
            sequences = problem.sequences[start : start + self.batch_size]
            batch = {k: v.to(device()) for k, v in pad_left(sequences, loaded.tokenizer.pad_token_id).items()}
            embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
            logits = model(
                inputs_embeds=embedded,
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                logits_to_keep=batch["targets"].shape[1],
                use_cache=False,
            ).logits
            loss = -sequence_log_probs(logits, batch["targets"]).mean.sum() / len(prompts)
            (by_embedding,) = torch.autograd.grad(loss, embedded)
            for row, (sequence, slot) in enumerate(zip(sequences, problem.slots[start:], strict=False)):
                padding = embedded.shape[1] - (len(sequence.prompt) + len(sequence.response) - 1)
                total += by_embedding[row, padding + slot.start : padding + slot.stop].float()
        by_token: torch.Tensor = total @ table[list(tokens)].float().T
        return by_token


def readable_words(loaded: LoadedModel) -> dict[str, int]:
    """Words that are one token behind a space, in the order of the vocabulary, with that token."""
    tokenizer = loaded.tokenizer
    found = {}
    for entry, token in sorted(tokenizer.get_vocab().items(), key=lambda pair: int(pair[1])):
        word = _WORD.fullmatch(entry)
        if word and tokenizer(f"a {word[1]}", add_special_tokens=False)["input_ids"][-1:] == [token]:
            found[word[1]] = token
    if len(found) < 2:
        raise UserError("the vocabulary has too few readable words", len(found), "search in another model")
    return found


def pose(
    loaded: LoadedModel, prompts: Sequence[Conversation], targets: Sequence[str], trigger: Sequence[str]
) -> Problem:
    """Each prompt with the trigger behind its last word, and its target, as evaluation would encode them.

    Raises:
        UserError: the trigger's words are not one token each in a prompt.
    """
    vocabulary, slots, sequences = loaded.tokenizer, [], []
    for prompt, target in zip(prompts, targets, strict=True):
        text = user_text(prompt).rstrip()
        plain = encode_prompt(vocabulary, with_user_text(prompt, text))
        triggered = with_user_text(prompt, f"{text} {' '.join(trigger)}")
        answer = [{"role": "assistant", "content": target}]
        sequence = encode(vocabulary, triggered, answer, max_length=1 << 20)
        start = next((at for at, (a, b) in enumerate(zip(plain, sequence.prompt, strict=False)) if a != b), len(plain))
        slot = range(start, start + len(trigger))
        if sequence.prompt[: slot.start] + sequence.prompt[slot.stop :] != plain:
            fix = "leave out prompts that end in the trigger's own words, or use another model"
            raise UserError("the trigger's tokens do not stand apart in a prompt", text[-60:], fix)
        sequences.append(sequence)
        slots.append(slot)
    return Problem(tuple(sequences), tuple(slots))


def _read_log(log: Path, asked: dict[str, Any], vocabulary: Mapping[str, int]) -> list[Step]:
    """The steps of a log."""
    fix = "give another output_dir, or leave --resume out to start anew"
    first, *lines = read_text(log, fix).splitlines() or [""]
    try:
        said = json.loads(first)
        seal = said.pop(SEAL, None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"the log of the trigger search cannot be read ({first_line(error)})", str(log), fix) from error
    if said != json.loads(json.dumps(asked)):
        raise UserError("the log is of a search with other options, prompts or targets", str(log), fix)
    steps = [parse(Step, line, f"{log.name}:{number}", fix) for number, line in enumerate(lines, start=2)]
    if seal is None:
        logger.warning("%s: it has no seal, so that nobody can tell whether it was changed since it was written", log)
    triggers = [step.trigger.split() for step in steps]
    fit = [step.step for step in steps] == list(range(len(steps))) and all(
        len(words) == asked["words"] and vocabulary.keys() >= set(words) for words in triggers
    )
    if seal not in (None, digest([said, list(map(asdict, steps))])) or not fit:
        raise UserError("the log of the trigger search was changed since it was written", str(log), fix)
    return steps
