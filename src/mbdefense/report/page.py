"""The page: one HTML file that needs nothing else, and in which no text of a file can become markup or script.

Three walls, each of which would do alone: the template escapes every value and takes its control characters; data for
the script is JSON whose characters cannot end the element, and the script writes text only; and the page's security
policy allows no network and no style or script but those whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mbdefense.analysis.chart import require
from mbdefense.core.text import printable, printable_lines, script_safe
from mbdefense.evaluation.landing import share
from mbdefense.evaluation.telling import FOUND_HEADER, found_in_words, found_lines
from mbdefense.records._standards import AS_OF, evidence_lines
from mbdefense.records.results import RATES
from mbdefense.report import charts, heads, training
from mbdefense.report._by_source import source_tables
from mbdefense.report._federated import client_curves, left_out_tables
from mbdefense.report._pictures import galleries
from mbdefense.report._traces import relearning_tables, trace_tables
from mbdefense.report.browser import browser_data
from mbdefense.report.changes import Differences
from mbdefense.report.files import pretty
from mbdefense.report.sources import Sources
from mbdefense.report.summary import between, summarize
from mbdefense.report.tables import blocks, difference, model_name


@dataclass(frozen=True)
class Origin:
    """Where some of the files come from: what they have in common.

    Attributes:
        facts: name and value.
        files: that say so.
        config: of the first of them.
    """

    facts: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    config: str


def render(sources: Sources, compared: Differences | None = None) -> str:
    """The whole page; equal inputs give equal text.

    Raises:
        UserError: matplotlib is missing.
    """
    require()
    tables = blocks(sources)
    found = {
        "tradeoff": charts.scatter([block for block in tables if block.origin == "attack"]),
        "triggers": charts.trigger_curves(sources.triggers),
        "heads": heads.head_maps(sources.heads),
        "training": training.training_curves(sources.logs),
        "losses": training.loss_curves(sources.losses),
        "clients": client_curves(sources.federated),
    }
    present = {
        "results": bool(tables),
        "found": bool(sources.found),
        "sources": any(row.cacc_by_source for row in sources.rows),
        "tradeoff": bool(found["tradeoff"]),
        "cost": bool(sources.rows),
        "comparison": compared is not None,
        "matrix": bool(sources.matrices),
        "heads": bool(found["heads"]),
        "triggers": bool(found["triggers"]),
        "traces": bool(sources.traces),
        "relearning": bool(sources.relearning),
        "training": bool(found["training"]),
        "pictures": bool(sources.pictures),
        "losses": bool(found["losses"]),
        "clients": bool(found["clients"]),
        "left-out": bool(sources.federated),
        "responses": bool(sources.answers),
    }
    names = {
        "results": "Results", "found": "Found", "sources": "By source", "tradeoff": "Trade-off", "cost": "Cost",
        "comparison": "Comparison", "matrix": "Heat map", "heads": "Heads", "triggers": "Triggers", "traces": "Traces",
        "relearning": "Relearning", "training": "Training", "pictures": "Pictures", "losses": "Losses",
        "clients": "Clients", "left-out": "Left out", "responses": "Responses",
    }  # fmt: skip
    data = browser_data(sources.answers) if sources.answers else None
    values = {
        "data": data_for_script(data),
        "counts": {name: len(data[name]) for name in ("prompts", "arms")} if data else {},
        "sections": [(key, names[key]) for key, there in present.items() if there],
        "absent": [_ABSENT[key] for key, there in present.items() if not there],
        "summary": summarize(sources),
        "blocks": tables,
        "charts": found,
        "traces": trace_tables(sources.traces),
        "relearning": relearning_tables(sources.relearning),
        "left_out": left_out_tables(sources.federated),
        "galleries": galleries(sources.pictures),
        "found": [(name, found_in_words(one), found_lines(one)) for name, one in sources.found],
        "found_header": FOUND_HEADER,
        "by_source": source_tables(sources.rows),
        "compared": compared,
        "sources": sources,
        "origins": _origins(sources.provenance),
        "standards_as_of": AS_OF,
        "standards_header": ("Figure", "Says", "Bears on"),
        "standards": evidence_lines(RATES),
    }
    return filled("page.html", values)


_ABSENT = {
    "results": "result rows",
    "found": "triggers found in the data (defend)",
    "sources": "accuracy on each skill or file of the test prompts (bench)",
    "tradeoff": "ASR and CACC of one arm",
    "cost": "cost",
    "comparison": "a comparison of two runs (--compare)",
    "matrix": "trigger by behavior heat map (analyze matrix)",
    "heads": "poisoned heads (analyze heads)",
    "triggers": "number of triggers (analyze triggers)",
    "traces": "what is left inside models (analyze traces)",
    "relearning": "how soon a backdoor comes back (analyze relearning)",
    "training": "training logs",
    "pictures": "pictures (vision, pairs)",
    "losses": "losses of image models (vision, pairs)",
    "clients": "clients who train together (federated)",
    "left-out": "clients who were left out (federated)",
    "responses": "judged responses",
}


def filled(template: str, values: Mapping[str, object], script: str = "page.js") -> str:
    """A page from a template that extends ``frame.html``, in the package's look, with a script of it and its walls."""
    style, theme = template_part("page.css"), template_part("theme.js")
    code = template_part("base.js") + template_part(script)
    return _environment().get_template(template).render(
        values,
        policy=_policy(style, (theme, code), pictures=bool(values.get("galleries"))),
        style=Markup(style),  # noqa: S704 - the package's own file
        script=Markup(code),  # noqa: S704
        theme=Markup(theme),  # noqa: S704
    )  # fmt: skip


@cache
def template_part(name: str) -> str:
    """A file of the template folder."""
    return files("mbdefense.report").joinpath("template", name).read_text(encoding="utf-8")


def data_for_script(data: object) -> Markup:
    """Data as JSON for a page's script, which cannot end its element."""
    return Markup(script_safe(json.dumps(data, ensure_ascii=False, separators=(",", ":"))))  # noqa: S704 - escaped for its place


def _policy(style: str, scripts: Sequence[str], *, pictures: bool) -> str:
    """The content security policy: nothing from anywhere, and of what stands in the page only what it was made with.

    Pictures stand in the page itself, as ``data:`` addresses.
    """
    hashes = " ".join(_hash(script) for script in scripts)
    images = "img-src data:; " if pictures else ""
    ours = f"style-src {_hash(style)}; script-src {hashes}; {images}"
    return f"default-src 'none'; {ours}base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    """What fills templates: every value is escaped, and of a text that is no markup only what prints is left."""
    made = Environment(
        loader=PackageLoader("mbdefense.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        # Markup, which is a string too, is the package's own.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    made.filters |= {
        "share": share,
        "between": between,
        "difference": difference,
        "duration": duration,
        "memory": memory,
        "model": model_name,
        "block": lambda text: Markup(escape(printable_lines(text))),  # noqa: S704 - escaped
        "svg": Markup,
    }
    return made


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def memory(size: int) -> str:
    """An amount of memory for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _origins(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Origin]:
    """Files of one origin told once."""
    grouped: dict[tuple[tuple[str, str], ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, origin in found:
        packages = origin.get("packages")
        listed = ", ".join(f"{key} {value}" for key, value in packages.items()) if isinstance(packages, dict) else "?"
        hardware = [origin.get("machine"), origin.get("processor"), *_list(origin.get("gpus"))]
        named = ", ".join(str(part) for part in hardware if part)
        machine = f"{named}, {origin.get('cpu_count')} CPU cores, Python {origin.get('python')}"
        facts: tuple[tuple[str, str], ...] = (
            ("Commit", str(origin.get("commit"))),
            ("Packages", listed),
            ("Machine", machine),
        )
        grouped.setdefault(facts, []).append((name, origin))
    made = []
    for facts, members in grouped.items():
        created = sorted(str(origin.get("created")) for _, origin in members)
        seeds = sorted({str(seed) for _, origin in members for seed in _list(origin.get("seeds"))})
        when = created[0] if created[0] == created[-1] else f"{created[0]} to {created[-1]}"
        more = (("Created", when), ("Seeds", ", ".join(seeds) or "none"))
        made.append(Origin((*more, *facts), tuple(name for name, _ in members), pretty(members[0][1].get("config"))))
    return made


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
