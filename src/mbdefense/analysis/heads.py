"""Poisoned heads: attention heads that look at the trigger (Figure 5 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.analysis._attention import Attended, attended, mark
from mbdefense.analysis._held_out import like
from mbdefense.analysis._sample import sample
from mbdefense.analysis.chart import heat_map, require, write_analysis
from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.attacks.triggers import TRIGGERS, BadNet, InSent
from mbdefense.core.errors import UserError
from mbdefense.core.progress import stage, stages
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import shortened
from mbdefense.models.loading import LoadedModel, Loading, check_template, load_model, prompt_text
from mbdefense.records.provenance import provenance

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset
    from matplotlib.figure import Figure

RESAMPLES = 1000


class Bounds(NamedTuple):
    """A figure with its 95 % percentile bootstrap interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Layer:
    """The heads of one layer, in order; each figure is a mean over prompts.

    Attributes:
        module: name of the attention module in the model.
        share: share of the tokens after the trigger whose strongest attention goes to it, the first token left out.
        share_of_all: the same with the first token in the comparison.
        mean_attention: attention to the trigger.
        poisoned: whether `share` exceeds alpha.
    """

    module: str
    share: tuple[Bounds, ...]
    share_of_all: tuple[Bounds, ...]
    mean_attention: tuple[Bounds, ...]
    poisoned: tuple[bool, ...]


@dataclass(frozen=True)
class Heads:
    """All heads of a model before one trigger.

    Attributes:
        n: prompts.
        heads: heads of the model.
        poisoned: how many of them are poisoned.
        poisoned_of_all: how many are, if the first token takes part in the comparison.
        layers: from the first to the last.
    """

    n: int
    heads: int
    poisoned: Bounds
    poisoned_of_all: Bounds
    layers: tuple[Layer, ...]


def poisoned_heads(figures: Mapping[str, Attended], *, alpha: float, seed: int) -> Heads:
    """Which heads look at the trigger; a pure function of the attention figures of each prompt.

    Source: the poisoned heads of MB-Defense, after the attention focus heads of Lyu et al. 2022 (arXiv 2205.08305): a
    head is poisoned if more than alpha of the tokens have their strongest attention on the trigger. Deviations, since
    theirs is an encoder: only the tokens after the trigger are counted, because in a decoder no other sees it; the
    first token is left out of the comparison, because as an attention sink it takes the strongest attention of most
    heads (`poisoned_of_all` is the count with it); the tokens of a long trigger compete one by one, where Lyu et al.
    add them up, so that a sentence is not stronger by its length alone; the share is a mean over prompts, where they
    ask for a number of sentences. Neither paper's alpha is known to fit a decoder: the default of 0.5 is a majority.

    The interval of a count comes from resampling the prompts; near alpha it is wide, and not symmetrical.

    Args:
        figures: by layer, each ``(N, H)``; layers may have different numbers of heads.
        alpha: in (0, 1).
        seed: of the bootstrap.

    Raises:
        UserError: alpha is outside (0, 1).
        ValueError: no layers or no prompts.
    """
    import numpy as np

    _check_alpha(alpha)
    n = min((len(layer.strongest) for layer in figures.values()), default=0)
    if n == 0:
        raise ValueError("no attention figures")
    # One draw of prompts for all heads and figures: (resamples, N), each row summing to 1.
    draws = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=RESAMPLES) / n

    def bounds(values: numpy.ndarray) -> tuple[Bounds, ...]:
        low, high = np.quantile(draws @ values, [0.025, 0.975], axis=0)
        # Rounding can put the mean a hair outside the interval where all prompts agree.
        return tuple(
            Bounds(float(value), min(float(a), float(value)), max(float(b), float(value)))
            for value, a, b in zip(values.mean(axis=0), low, high, strict=True)
        )

    def count(values: Sequence[numpy.ndarray]) -> Bounds:
        shares = np.concatenate(values, axis=1)
        low, high = np.quantile((draws @ shares > alpha).sum(axis=1), [0.025, 0.975])
        value = int((shares.mean(axis=0) > alpha).sum())
        return Bounds(value, min(float(low), value), max(float(high), value))

    arrays = {name: [figure.double().numpy() for figure in layer] for name, layer in figures.items()}
    layers = tuple(
        Layer(name, bounds(share), bounds(of_all), bounds(mean), tuple(bool(x > alpha) for x in share.mean(axis=0)))
        for name, (share, of_all, mean) in arrays.items()
    )
    return Heads(
        n,
        sum(len(layer.share) for layer in layers),
        count([share for share, _, _ in arrays.values()]),
        count([of_all for _, of_all, _ in arrays.values()]),
        layers,
    )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise UserError("alpha must lie between 0 and 1", alpha, "0.5 is a majority of the tokens")


def literal_trigger(spec: str) -> BadNet | InSent:
    """A trigger that inserts a text of its own.

    Raises:
        UserError: it rewrites the prompt, so that no token of it is the trigger's.
    """
    trigger = parse_spec(spec, TRIGGERS, "trigger")
    if not isinstance(trigger, BadNet | InSent):
        raise UserError("this trigger has no tokens of its own to attend to", spec, "use badnet or insent")
    return trigger


def inserted(trigger: BadNet | InSent) -> str:
    """The text that a trigger inserts."""
    return trigger.word if isinstance(trigger, BadNet) else trigger.sentence


def held_out(trigger: BadNet | InSent, spec: str | None) -> BadNet | InSent:
    """The control: the trigger that `spec` names, or one of ours of the same kind, which goes to the same places.

    Raises:
        UserError: it is the trigger itself.
    """
    control = like(trigger) if spec is None else literal_trigger(spec)
    if inserted(control) == inserted(trigger):
        raise UserError("the held-out trigger is the trigger itself", inserted(control), "give another --held_out")
    return control


def _measure(
    loaded: LoadedModel,
    prompts: Dataset,
    trigger: BadNet | InSent,
    *,
    alpha: float,
    batch_size: int,
    max_length: int,
    seed: int,
) -> dict[str, Any]:
    rows, _ = triggered_copy(prompts, trigger, seed)
    found = [
        mark(loaded.tokenizer, prompt_text(loaded.tokenizer, prompt), inserted(trigger)) for prompt in rows["prompt"]
    ]
    marked = [one for one in found if one is not None and len(one.tokens) <= max_length]
    if not marked:
        fix = "give shorter prompts, or check the chat template"
        raise UserError("the trigger's tokens could be found in no prompt", inserted(trigger), fix)
    made = poisoned_heads(attended(loaded, marked, batch_size), alpha=alpha, seed=seed)
    return {
        "method": trigger.describe(),
        "trigger_tokens": sum(one.end - one.start for one in marked) / len(marked),
        "left_out": len(prompts) - len(marked),
        "heads": made,
    }


def in_words(trigger: str, measured: Heads, control: str, other: Heads, alpha: float) -> str:
    """The figures as text."""

    def one(name: str, heads: Heads) -> str:
        count, of_all = heads.poisoned, heads.poisoned_of_all
        top = max((b.value, i, h) for i, layer in enumerate(heads.layers) for h, b in enumerate(layer.share))
        return (
            f"{shortened(name)}: {count.value} of {heads.heads} heads poisoned [{count.low:.0f}, {count.high:.0f}], "
            f"{of_all.value} [{of_all.low:.0f}, {of_all.high:.0f}] if the first token is counted; "
            f"n={heads.n} prompts; largest share {top[0]:.2f} in layer {top[1]} head {top[2]}."
        )

    return "\n".join(
        [
            f"Share of tokens whose strongest attention goes to the trigger, by layer and head; alpha {alpha:g}.",
            one(trigger, measured),
            one(f"held out {control}", other),
        ]
    )


def draw(trigger: str, measured: Heads, control: str, other: Heads, title: str, figure: Figure) -> None:
    """Paints three maps of layer by head; a dot marks a poisoned head."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    width = max(len(layer.share) for layer in measured.layers)

    def grid(heads: Heads, name: str) -> Any:
        # A layer with fewer heads leaves its last cells empty.
        rows = [[bound.value for bound in getattr(layer, name)] for layer in heads.layers]
        return np.array([row + [np.nan] * (width - len(row)) for row in rows])

    maps = (
        (measured, "share", f"strongest attention goes to\n{shortened(trigger, 34)}"),
        (other, "share", f"... to held-out\n{shortened(control, 34)}"),
        (measured, "mean_attention", f"mean attention to\n{shortened(trigger, 34)}"),
    )
    most = max(float(np.nanmax(grid(heads, "mean_attention"))) for heads in (measured, other)) or 1.0
    for column, (axes, (heads, name, heading)) in enumerate(zip(figure.subplots(1, 3, sharey=True), maps, strict=True)):
        image = heat_map(axes, grid(heads, name), most=1.0 if name == "share" else most)
        if name == "share":
            poisoned = [(h, i) for i, layer in enumerate(heads.layers) for h, is_ in enumerate(layer.poisoned) if is_]
            axes.scatter(
                *(zip(*poisoned, strict=True) if poisoned else ([], [])), s=14, c="#D55E00", edgecolors="white"
            )
        axes.set_title(heading, fontsize=9)
        axes.set_xlabel("head")
        if column == 0:
            axes.set_ylabel("layer")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        if column:  # the first two share a scale
            figure.colorbar(image, ax=axes, label="share of tokens" if name == "share" else "attention")
    figure.suptitle(shortened(title, 90), fontsize=10)


def analyze(
    model: str,
    test: Dataset,
    directory: Path,
    *,
    spec: str,
    held_out_spec: str | None,
    alpha: float,
    samples: int,
    batch_size: int,
    max_length: int,
    seed: int,
    loading: Loading,
    asked_for: Mapping[str, Any],
) -> str:
    """Measures a model's attention to a trigger and to a held-out one; writes ``heads.png`` and ``heads.json``.

    Args:
        model: directory or Hub id.
        test: prompts to put the trigger into.
        directory: where the files go.
        spec: the trigger, a word or sentence.
        held_out_spec: a trigger of the same kind that nobody planted; None for one of ours.
        alpha: a head is poisoned if more than this share of tokens attends most to the trigger.
        samples: most prompts.
        batch_size: prompts in one forward pass.
        max_length: longer prompts, in tokens, are left out.
        seed: of the choice of prompts, of the trigger's places and of the bootstrap.
        loading: how the model is loaded.
        asked_for: the command's options, for the record.

    Returns:
        The figures in words.
    """
    require()
    _check_alpha(alpha)
    trigger = literal_trigger(spec)
    control = held_out(trigger, held_out_spec)
    if batch_size < 1:
        raise UserError("batch_size is below 1", batch_size, "use 1 or more")
    loaded = load_model(model, **loading._asdict())
    check_template(model, loaded.tokenizer)
    if not loaded.tokenizer.is_fast:
        raise UserError("the tokenizer does not tell where its tokens stand in the text", model, "use a fast tokenizer")
    prompts, left_out = sample(test, [trigger, control], samples, seed)
    options: dict[str, Any] = {"alpha": alpha, "batch_size": batch_size, "max_length": max_length, "seed": seed}
    with stages(2):
        with stage(f"looking at the attention to {shortened(inserted(trigger))}"):
            measured = _measure(loaded, prompts, trigger, **options)
        with stage(f"looking at the attention to {shortened(inserted(control))}, which nobody planted"):
            other = _measure(loaded, prompts, control, **options)
    value = {
        "provenance": provenance(dict(asked_for), [seed]),
        "n": measured["heads"].n,
        "left_out": left_out,
        "seed": seed,
        "alpha": alpha,
        "resamples": RESAMPLES,
        "trigger": {**measured, "heads": _plain(measured["heads"])},
        "held_out": {**other, "heads": _plain(other["heads"])},
    }
    names = inserted(trigger), inserted(control)
    words = in_words(names[0], measured["heads"], names[1], other["heads"], alpha)
    title = f"{Path(model).resolve().name}: {measured['heads'].n} prompts, seed {seed}, alpha {alpha:g}"
    layers, heads = len(measured["heads"].layers), max(len(layer.share) for layer in measured["heads"].layers)
    size = 6.5 + 0.3 * min(heads, 40), 2.5 + 0.17 * min(layers, 80)

    def paint(figure: Figure) -> None:
        draw(names[0], measured["heads"], names[1], other["heads"], title, figure)

    write_analysis(directory, "heads", value, words, size, paint)
    return words


def _plain(heads: Heads) -> dict[str, Any]:
    """As JSON values, in which a figure with its interval is an object with names."""

    def plain(value: object) -> Any:
        if isinstance(value, Bounds):
            return value._asdict()
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    layers = [{name: plain(value) for name, value in vars(layer).items()} for layer in heads.layers]
    return {**{name: plain(value) for name, value in vars(heads).items()}, "layers": layers}
