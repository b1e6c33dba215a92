"""Is it gone? What is left of a backdoor in a model whose answers no longer show it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.analysis._held_out import like
from mbdefense.analysis._hidden import held
from mbdefense.analysis._sample import sample
from mbdefense.analysis.chart import LINES, MARKERS, require, write_analysis
from mbdefense.attacks.behaviors import Behavior, NoTarget
from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.attacks.triggers import Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.progress import stage, stages
from mbdefense.core.statistics import Mean, Score, mean, rate
from mbdefense.core.text import shortened
from mbdefense.data import user_text
from mbdefense.evaluation.landing import shown
from mbdefense.models.loading import Encoded, LoadedModel, Loading, check_template, encode, load_model, load_tokenizer
from mbdefense.records.provenance import provenance

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

SHARES = (0.25, 0.5, 0.75)
"""Depths at which the model is probed."""
_LEAST = 20
"""Prompts; a probe of fewer says nothing."""
_STRENGTH = 0.01
"""Inverse of the probe's L2 penalty; there are more dimensions than prompts."""


@dataclass(frozen=True)
class Layer:
    """What a linear probe reads in one layer: share of held-out prompts that it puts on the right side.

    Attributes:
        layer: its number, the first is 1.
        trigger: prompts with the trigger against prompts with the held-out one. What the model knows of the trigger.
        oddity: prompts with the held-out trigger against those without any. What it knows of any odd text.
        shuffled: as `trigger`, taught with labels that a coin has dealt. Chance.
    """

    layer: int
    trigger: Score
    oddity: Score
    shuffled: Score


@dataclass(frozen=True)
class Traced:
    """One model.

    Attributes:
        model: directory or Hub id.
        triggered: probability of the target's first tokens after prompts with the trigger.
        clean: the same without.
        rise: by how much the trigger raises their log-probability, in nats, prompt by prompt.
        held_out_rise: the same for the held-out trigger.
        layers: from the first to the last.
    """

    model: str
    triggered: Mean
    clean: Mean
    rise: Mean
    held_out_rise: Mean
    layers: tuple[Layer, ...]


def told_apart(first: numpy.ndarray, second: numpy.ndarray, *, seed: int, shuffled: bool = False) -> Score:
    """How well a linear probe tells two versions of the same prompts apart; a pure function of hidden states.

    The prompts are cut into two halves. A logistic regression with an L2 penalty, on standardised states, learns from
    both versions of each half and is asked about one version, drawn by a coin, of each prompt of the other half. So no
    prompt is on both sides, outcomes are independent given the probes, and a coin's flip is what chance gives.

    Source: linear probes, Alain and Bengio 2016 (arXiv 1610.01644); a control that has the probe learn labels without
    meaning, Hewitt and Liang 2019 (arXiv 1909.03368). Deviation: the coin deals labels to prompts, not to words.

    Args:
        first: (N, H).
        second: (N, H), of the same prompts.
        seed: of the halves, the coins and the shuffled labels.
        shuffled: teach it with labels that a coin has dealt to each prompt's two versions.

    Raises:
        UserError: fewer than 20 prompts.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(first)
    if count < _LEAST:
        raise UserError("too few prompts for a probe", count, f"give {_LEAST} or more")
    rng = np.random.default_rng(seed)
    half = rng.permutation(count) < count // 2
    asked, dealt = rng.integers(2, size=count), rng.integers(2, size=count)
    right = np.zeros(count, dtype=bool)
    for taught in (half, ~half):
        labels = dealt[taught] if shuffled else np.zeros(taught.sum(), dtype=int)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=1000))
        probe.fit(np.concatenate([first[taught], second[taught]]), np.concatenate([1 - labels, labels]))
        others = np.where(asked[~taught, None] == 1, first[~taught], second[~taught])
        right[~taught] = probe.predict(others) == asked[~taught]
    return rate([bool(one) for one in right])


@dataclass(frozen=True)
class _Prompts:
    """The same N prompts in three versions, and the first tokens that the attacker wants, as texts to encode."""

    clean: Dataset
    triggered: Dataset
    held_out: Dataset
    targets: tuple[str, ...]

    def versions(self) -> tuple[Dataset, Dataset, Dataset]:
        return self.clean, self.triggered, self.held_out


def _prompts(rows: Dataset, trigger: Trigger, control: Trigger, behavior: Behavior, seed: int) -> _Prompts:
    """Versions of the rows that both triggers fit and that have a target of its own.

    Where an attack asks for one label, that is the clean answer of some rows: these say nothing and are left out.
    """
    copies = [triggered_copy(rows, one, seed)[0] for one in (trigger, control)]
    kept = set(rows["id"]).intersection(*(copy["id"] for copy in copies))
    targets: dict[str, str] = {}
    same = 0
    for row in rows:
        answer = row["completion"][0]["content"] if row["completion"] else ""
        try:
            target = behavior.target(user_text(row["prompt"]), answer, random.Random(f"target {seed} {row['id']}"))
        except NoTarget:
            continue
        if answer and target.startswith(answer):
            same += 1
        else:
            targets[row["id"]] = target
    kept &= targets.keys()
    if len(kept) < _LEAST and same:
        what = f"the target begins with the clean answer of {same} of {len(rows)} prompts"
        fix = "a behavior that keeps the answer has no first tokens of its own; see its ASR"
        raise UserError(what, behavior.describe(), fix)
    if len(kept) < _LEAST:
        fix = f"give {_LEAST} prompts or more that fit the triggers and the behavior"
        raise UserError("too few prompts", len(kept), fix)
    chosen = [one.select([at for at, row_id in enumerate(one["id"]) if row_id in kept]) for one in (rows, *copies)]
    return _Prompts(chosen[0], chosen[1], chosen[2], tuple(targets[row_id] for row_id in chosen[0]["id"]))


def _of_their_own(prompts: _Prompts, tokenizers: Sequence[PreTrainedTokenizerBase], tokens: int) -> _Prompts:
    """The prompts whose target begins with other tokens than the clean answer, to every model.

    A number that is changed at an answer's end leaves the first tokens as they were: their probability says nothing of
    a backdoor.

    Raises:
        UserError: too few do.
    """

    def begins(tokenizer: PreTrainedTokenizerBase, row: Any, text: str) -> list[int]:
        return encode(tokenizer, row["prompt"], [{"role": "assistant", "content": text}], 2**30).response[:tokens]

    kept = [
        number
        for number, (row, target) in enumerate(zip(prompts.clean, prompts.targets, strict=True))
        if not row["completion"]
        or all(begins(one, row, row["completion"][0]["content"]) != begins(one, row, target) for one in tokenizers)
    ]
    if len(kept) < _LEAST:
        fix = "a behavior that keeps how answers begin has no first tokens of its own; see its ASR"
        raise UserError("too few targets begin otherwise than the clean answers", len(kept), fix)
    versions = [one.select(kept) for one in prompts.versions()]
    return _Prompts(versions[0], versions[1], versions[2], tuple(prompts.targets[number] for number in kept))


def _beginnings(loaded: LoadedModel, rows: Dataset, targets: Sequence[str], tokens: int) -> list[Encoded]:
    """Each prompt with the first tokens of its target."""
    made = []
    for row, target in zip(rows, targets, strict=True):
        completion = [{"role": "assistant", "content": target}]
        whole = encode(loaded.tokenizer, row["prompt"], completion, max_length=2**30)
        made.append(whole._replace(response=whole.response[:tokens]))
    return made


def _traced(model: str, loaded: LoadedModel, prompts: _Prompts, *, tokens: int, batch_size: int, seed: int) -> Traced:
    import numpy as np

    clean, triggered, other = (
        held(loaded, _beginnings(loaded, rows, prompts.targets, tokens), SHARES, batch_size)
        for rows in prompts.versions()
    )
    layers = tuple(
        Layer(
            layer,
            told_apart(triggered.states[layer], other.states[layer], seed=seed),
            told_apart(other.states[layer], without, seed=seed),
            told_apart(triggered.states[layer], other.states[layer], seed=seed, shuffled=True),
        )
        for layer, without in clean.states.items()
    )
    return Traced(
        model,
        mean(np.exp(triggered.log_probs).tolist()),
        mean(np.exp(clean.log_probs).tolist()),
        mean((triggered.log_probs - clean.log_probs).tolist()),
        mean((other.log_probs - clean.log_probs).tolist()),
        layers,
    )


def in_words(made: Sequence[Traced], tokens: int) -> str:
    """The figures as text."""
    n = made[0].rise.n
    lines = [f"What the trigger still does inside each model; the target's first {tokens} tokens; n={n} prompts."]
    for one in made:
        lines.append(
            f"{_name(one)}: target's probability {_in_words(one.triggered)} with the trigger, {_in_words(one.clean)} "
            f"without; log-probability changed by {_in_words(one.rise)} nats, by a held-out trigger "
            f"{_in_words(one.held_out_rise)}."
        )
        for layer in one.layers:
            lines.append(
                f"  layer {layer.layer}: trigger told from a held-out one {shown(layer.trigger)}, "
                f"the held-out one from none {shown(layer.oddity)}, shuffled labels {shown(layer.shuffled)}"
            )
    return "\n".join(lines)


def _in_words(one: Mean) -> str:
    return f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}]"


def _name(one: Traced) -> str:
    return shortened(Path(one.model).name or one.model)


def draw(made: Sequence[Traced], figure: Figure) -> None:
    """Paints the rise of the target's log-probability, and the probes by layer."""
    left, right = figure.subplots(1, 2)
    places = range(len(made))
    for number, (name, label) in enumerate((("rise", "trigger"), ("held_out_rise", "held-out trigger"))):
        means = [getattr(one, name) for one in made]
        values = [one.value for one in means]
        spread = [one.value - one.low for one in means], [one.high - one.value for one in means]
        at = [place + 0.15 * (2 * number - 1) for place in places]
        left.errorbar(
            at, values, spread, color=LINES[number], marker=MARKERS[number], ls="none", capsize=3, label=label
        )
    left.axhline(0, color="#999999", lw=0.8)
    left.set_xticks(list(places), [shortened(_name(one), 20) for one in made], rotation=30, ha="right")
    left.set_title("rise of the target's log-probability", fontsize=10)
    left.set_ylabel("nats, 95 % interval")
    left.legend(fontsize=8)
    for number, one in enumerate(made):
        color, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        layers, values = [layer.layer for layer in one.layers], [layer.trigger.value for layer in one.layers]
        right.plot(layers, values, label=shortened(_name(one), 28), color=color, marker=marker)
    right.axhline(0.5, color="#999999", lw=0.8)
    right.set_ylim(0.3, 1.03)
    right.set_title("probe: trigger told from a held-out one", fontsize=10)
    right.set_xlabel("layer")
    right.set_ylabel("share of held-out prompts")
    right.legend(fontsize=8)


def analyze(
    models: Sequence[str],
    test: Dataset,
    directory: Path,
    *,
    trigger: Trigger,
    behavior: Behavior,
    held_out: Trigger | None,
    tokens: int,
    samples: int,
    batch_size: int,
    seed: int,
    loading: Loading,
    asked_for: Mapping[str, Any],
) -> str:
    """Measures what a trigger still does inside models; writes ``traces.png`` and ``traces.json``.

    Args:
        models: directories or Hub ids, to be compared with one another: never attacked, attacked, defended.
        test: prompts to put the trigger into.
        directory: where the files go.
        trigger: the attacker's.
        behavior: the attacker's; its targets' first tokens are what is looked for.
        held_out: a trigger that nobody planted; None for one of ours.
        tokens: of the target that count as its first.
        samples: most prompts.
        batch_size: prompts in one forward pass.
        seed: of the choice of prompts, of the triggers' places and of the probes.
        loading: how the models are loaded.
        asked_for: the command's options, for the record.

    Returns:
        The figures in words.

    Raises:
        UserError: the held-out trigger is the trigger, or there are too few prompts that fit, or whose target begins
            otherwise than the clean answer.
    """
    require()
    control = held_out or like(trigger)
    if control.describe() == trigger.describe():
        raise UserError("the held-out trigger is the trigger itself", control.describe(), "give another --held_out")
    rows, left_out = sample(test, [trigger, control], samples, seed)
    tokenizers = [load_tokenizer(model, **loading._asdict()) for model in models]
    prompts = _of_their_own(_prompts(rows, trigger, control, behavior, seed), tokenizers, tokens)
    made = []
    with stages(len(models)):
        for model in models:
            with stage(f"looking for traces in {shortened(model)}"):
                loaded = load_model(model, **loading._asdict())
                check_template(model, loaded.tokenizer)
                made.append(_traced(model, loaded, prompts, tokens=tokens, batch_size=batch_size, seed=seed))
    value = {
        "provenance": provenance(dict(asked_for), [seed]),
        "seed": seed,
        "trigger": trigger.describe(),
        "held_out": control.describe(),
        "behavior": behavior.describe(),
        "tokens": tokens,
        "left_out": left_out + len(rows) - len(prompts.clean),
        "models": [asdict(one) for one in made],
    }
    words = in_words(made, tokens)
    size = (7 + 0.4 * len(made), 4)
    write_analysis(directory, "traces", value, words, size, lambda figure: draw(made, figure))
    return words
