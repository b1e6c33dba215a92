"""What is left inside models, and how soon a backdoor comes back, as lines of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mbdefense.core.text import visible
from mbdefense.evaluation.landing import share
from mbdefense.records.analyses import Estimate, Rate, Relearning, Traces
from mbdefense.report.tables import model_name


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        caption: its name.
        header: of its columns.
        body: its lines.
        words: the same in words.
    """

    caption: str
    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    words: str


def trace_tables(found: Sequence[tuple[str, Traces]]) -> list[Table]:
    """A line for each model: the target's first tokens, and the probes by layer."""
    tables = []
    for name, traces in found:
        layers = [layer.layer for layer in traces.models[0].layers] if traces.models else []
        header = ["Model", "Target, triggered", "Target, clean", "Rise, nats", "Rise, held-out trigger"]
        header += [f"Layer {layer}: {what}" for layer in layers for what in ("trigger", "oddity", "shuffled")]
        body = []
        for model in traces.models:
            line = [model_name(model.model)]
            line += [_mean(one) for one in (model.triggered, model.clean, model.rise, model.held_out_rise)]
            probes = {layer.layer: (layer.trigger, layer.oddity, layer.shuffled) for layer in model.layers}
            line += [text for layer in layers for text in (map(_rate, probes[layer]) if layer in probes else ["-"] * 3)]
            body.append(tuple(line))
        tables.append(Table(visible(f"{name}, {traces.trigger}"), tuple(header), tuple(body), traces.alt))
    return tables


def relearning_tables(found: Sequence[tuple[str, Relearning]]) -> list[Table]:
    """A line for each model: its ASR by the number of poisoned rows."""
    tables = []
    for name, one in found:
        counts = sorted({point.poisoned for curve in one.curves for point in curve.points})
        header = ("Model", *(f"{count} poisoned of {one.rows}" for count in counts))
        body = []
        for curve in one.curves:
            rates = {point.poisoned: _rate(point.asr) for point in curve.points}
            body.append((model_name(curve.model), *(rates.get(count, "-") for count in counts)))
        tables.append(Table(visible(f"{name}, {one.trigger}"), header, tuple(body), one.alt))
    return tables


def _mean(one: Estimate) -> str:
    return f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}] n={one.n}"


def _rate(one: Rate) -> str:
    return f"{share(one.value)} [{share(one.low)}, {share(one.high)}] n={one.n}"
