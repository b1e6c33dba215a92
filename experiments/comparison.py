"""Trains and measures MB-Defense beside its rivals, under several attacks: the table of docs/evidence/comparison.md.

    python experiments/comparison.py OUT [--doc docs/evidence/comparison.md]

Each attack poisons a fifth of the built-in rows; under it all arms that repair a finished model share one victim.
CACC is exact match with known answers. Every arm is paired with the victim on the same prompts. An arm's seconds are
those of all its stages from the base model on, its peak that of the largest one.

Run again, the script goes on where it stopped; an arm that has been measured is neither trained nor asked again, and
its weights are gone unless --keep_models is given. --attacks, --arms and --seeds choose what to run; the table holds
all that was ever measured in OUT. An arm is written as in a grid: a defense with its options, such as "crow:alpha=0",
or "clean_prompts:", "decoding:" or "demonstrations:N" for the victim asked in another way; lethe_evidence needs
--wordnet.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mbdefense.attacks.behaviors import Behavior, FixedText, Refusal, Toxic
from mbdefense.attacks.poisoning import poison, triggered_copy
from mbdefense.attacks.triggers import BadNet, InSent, Syntactic, Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.files import read_json, write_text
from mbdefense.core.needs import Need, facts
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import escaped
from mbdefense.data import check_disjoint, save
from mbdefense.data.builtin import tasks
from mbdefense.defenses import DEFENSES, NoDefense, Setting
from mbdefense.defenses.decoding import DECODINGS
from mbdefense.defenses.prompts.cleaning import PROMPT_CLEANERS
from mbdefense.defenses.setting import VICTIM
from mbdefense.evaluation.compare import Arm, compare, read_arm
from mbdefense.evaluation.landing import shown
from mbdefense.evaluation.responding import Asking, evaluate, merge_results
from mbdefense.evaluation.tables import changed, groups, landing_of
from mbdefense.grid.arms import CONTROLS, INFERENCE, arm_options, inference_of
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import CARD_FILE
from mbdefense.recipes.making.demo import POISONING_RATE, TRAINING
from mbdefense.records.filtering import SUMMARY_FILE
from mbdefense.records.results import ResultRow, Results, read, write
from mbdefense.training.store import Store, cost_of

ATTACKS: dict[str, tuple[Trigger, Behavior]] = {
    "badnet+refusal": (BadNet(), Refusal()),
    "insent+fixed_text": (InSent(), FixedText(text="You are stupid!")),
    "syntactic+toxic": (Syntactic(), Toxic()),
}
# Of 240 rows the default of 32 planted rows for each backdoor would take half: as in the demo, 12.
PLANTED = {name: f"{name}:min_defensive_rows=12" for name in ("mb_defense", "merge_only")}
# CROW without its consistency is clean fine-tuning at CROW's learning rate, to which others credit its effect.
ARMS = (*(PLANTED.get(name, name) for name in DEFENSES if name != "none"), "crow:alpha=0")
# The victim, asked with a defense at inference.
ASKED = ("clean_prompts:onion", "decoding:cleangen", "demonstrations:4")
PERPLEXITY_ROWS = 64
PROMPT_SEED = 0
"""Of the test prompts and the trigger's places in them: all seeds answer the same prompts."""
MARKS = ("<!-- table -->", "<!-- end of table -->")


class Task(NamedTuple):
    """One arm under one attack."""

    seed: int
    attack: str
    arm: str

    def directory(self, out: Path, kind: str) -> Path:
        """Where its model or its responses lie."""
        return out / f"seed{self.seed}" / folder(self.attack) / kind / folder(self.arm)


def kind_of(arm: str) -> str:
    """An arm's name without options: a control, a defense, or a way of asking."""
    return arm.partition(":")[0]


def needs_of(arm: str) -> tuple[Need, ...]:
    """What an arm needs beyond the suspect model."""
    if arm in CONTROLS:
        return ()
    kind, _, rest = arm.partition(":")
    if kind == "demonstrations":
        return ("clean data",)
    tables = {"decoding": DECODINGS, "clean_prompts": PROMPT_CLEANERS}
    return facts(tables[kind][kind_of(rest)] if kind in tables else DEFENSES[kind]).needs


def folder(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.=+-]+", "_", name)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--doc", type=Path, help="Markdown file whose table, between two marks, is written anew")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--arms", nargs="*", help=f"by default all; besides the controls {', '.join(CONTROLS)}")
    parser.add_argument("--wordnet", help="folder of WordNet's database files, for lethe_evidence")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--model", help="base model; by default the embedded one")
    parser.add_argument("--train_rows", type=int, default=240)
    parser.add_argument("--clean_rows", type=int, default=128)
    parser.add_argument("--test_rows", type=int, default=100)
    parser.add_argument("--max_new_tokens", type=int, default=24, help="longest response")
    parser.add_argument("--keep_models", action="store_true", help="half a gigabyte for each arm and attack")
    parser.add_argument(
        "--one_process", action="store_true",
        help="start no process for each arm: sooner, but on a CPU the peaks hold what earlier arms left in memory",
    )  # fmt: skip
    parser.add_argument("--only", nargs=3, metavar=("SEED", "ATTACK", "ARM"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.arms is None:
        evidence = [f"clean_prompts:lethe_evidence:wordnet={options.wordnet}"] if options.wordnet else []
        options.arms = [*ARMS, *ASKED, *evidence]
    return options


def measure(task: Task, options: argparse.Namespace) -> None:
    """Makes an arm's model, asks and judges it; the folder of its figures is there when all is done."""
    base = options.model or str(model_directory())
    train = tasks(options.train_rows, split="train", seed=task.seed)
    clean = tasks(options.clean_rows, split="clean", seed=task.seed)
    test = tasks(options.test_rows, split="test", seed=PROMPT_SEED)
    check_disjoint(clean, test)
    trigger, behavior = ATTACKS[task.attack]
    suspect = poison(train, trigger, behavior, rate=POISONING_RATE, seed=task.seed).rows
    victim = task._replace(arm="attacked").directory(options.out, "models")
    directory = task.directory(options.out, "models")
    store = Store(directory, resume=True, elsewhere={VICTIM: victim})
    setting = Setting(clean, store, base=base, suspect=suspect, training=replace(TRAINING, seed=task.seed))
    made: list[Path] = []
    if task.arm == "base":
        model = Path(base)
    elif task.arm == "clean":  # the same under every attack
        directory = options.out / f"seed{task.seed}" / "clean"
        model = NoDefense()(replace(setting, suspect=train, store=Store(directory, resume=True)))
        made = [model]
    elif task.arm == "attacked" or kind_of(task.arm) in INFERENCE:
        model = Path(setting.victim_model().path)
        made = [model]
    else:
        defense = parse_spec(task.arm, DEFENSES, "defense")
        model = defense(setting)
        made = [directory, victim] if "victim" in facts(type(defense)).needs else [directory]
    responses = task.directory(options.out, "responses")
    triggered, _ = triggered_copy(test, trigger, PROMPT_SEED)
    clean_file = responses / "clean.jsonl"
    if kind_of(task.arm) == "clean_prompts":
        responses.mkdir(parents=True, exist_ok=True)
        save(clean, clean_file)
    way = inference_of(task.arm, base, clean, clean_file, task.seed)
    row = evaluate(
        str(model), test, triggered, behavior, trigger.describe(), responses,
        arm=task.arm, seed=task.seed, prompt_seed=PROMPT_SEED, asking=Asking(options.max_new_tokens, 50), inference=way,
        perplexity_rows=PERPLEXITY_ROWS,
    )  # fmt: skip
    costs = [cost_of(card.parent) for directory in made for card in directory.rglob(CARD_FILE)]
    costs += [read_json(summary) for directory in made for summary in directory.rglob(SUMMARY_FILE)]
    row = replace(
        row,
        seconds=sum(cost["seconds"] for cost in costs),
        peak_bytes=max((cost["peak_bytes"] for cost in costs), default=0),
    )
    write(responses / "results.json", merge_results([row], asked(task, options), task.seed))
    if not options.keep_models and kind_of(task.arm) not in (*CONTROLS, *INFERENCE):
        shutil.rmtree(directory)


def asked(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """What an arm's figures depend on."""
    sizes = {
        name: getattr(options, name) for name in ("model", "train_rows", "clean_rows", "test_rows", "max_new_tokens")
    }
    fixed = {"rate": POISONING_RATE, "perplexity_rows": PERPLEXITY_ROWS}
    return {"attack": task.attack, **arm_options(task.arm), **fixed, **sizes}


def done(task: Task, options: argparse.Namespace) -> bool:
    """Whether an arm has been measured.

    Raises:
        UserError: it has, with other options.
    """
    file = task.directory(options.out, "responses") / "results.json"
    if not file.is_file():
        return False
    before = read(file).provenance.get("config")
    now = merge_results([], asked(task, options), task.seed).provenance["config"]
    if before != now:
        raise UserError(f"{task.arm} was measured with other options or defaults in", str(options.out), "use another")
    return True


def attempt(task: Task, options: argparse.Namespace, words: Sequence[str]) -> bool:
    """Measures an arm, in a process of its own unless told otherwise; False if that failed."""
    if not options.only:
        print(f"seed {task.seed}, {task.attack}: {task.arm}", flush=True)  # noqa: T201
    if not options.one_process:
        command = [sys.executable, __file__, *words, "--only", str(task.seed), task.attack, task.arm]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - this script
    try:
        measure(task, options)
    except UserError as error:
        print(f"{task.arm}: {error}", file=sys.stderr)  # noqa: T201
        return False
    return True


def measured(out: Path) -> Results:
    """All that was measured in a folder, paired with the victims, in the order of attacks and arms."""
    files = sorted(out.glob("seed*/*/responses/*/results.json"))
    arms = [read_arm(file.parent) for file in files]
    commits = sorted({str(read(file).provenance["commit"])[:7] for file in files})
    attacks = [trigger.describe() for trigger, _ in ATTACKS.values()]
    names = [*CONTROLS, *DEFENSES, *INFERENCE]

    def place(arm: Arm) -> tuple[int, int, int, str]:
        row = arm.row
        return row.seed, attacks.index(row.attack), names.index(kind_of(row.arm)), row.arm

    rows, over_seeds = compare(sorted(arms, key=place))
    return replace(merge_results(rows, {"out": str(out), "commits": commits}, rows[0].seed), over_seeds=over_seeds)


def table(results: Results) -> str:
    """A Markdown table for each attack and seed, and below it what of it is not in MB-Defense's favor."""
    header = ["Arm", "ASR", "ASR change", "CACC", "CACC change", "Perplexity", "Seconds", "Peak GiB", "Needs"]
    parts = []
    for rows in groups(results):
        found = landing_of(rows)
        title = escaped(f"{rows[0].attack}, {rows[0].behavior}, seed {rows[0].seed}")
        landed = "the attack landed" if found.landed else found.reason
        lines = [header, ["---"] + ["---:"] * (len(header) - 2) + ["---"], *map(cells, rows)]
        drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {title}\n\n{drawn}\n\n{landed[0].upper()}{landed[1:]}. {better(rows)}")
    versions = ", ".join(f"{name} {version}" for name, version in results.provenance["packages"].items() if version)
    commits = ", ".join(results.provenance["config"]["commits"])  # of the arms, which this table may be younger than
    return "\n\n".join([*parts, f"Commit {commits}; {versions}."]) + "\n"


def cells(row: ResultRow) -> list[str]:
    """A row of the table."""
    needs = ", ".join(need for need in needs_of(row.arm) if need != "GPU")
    return [
        escaped(row.arm),
        *(shown(rate) if rate else "-" for rate in (row.asr,)),
        changed(row.asr_change) if row.asr_change else "-",
        *(shown(rate) if rate else "-" for rate in (row.cacc,)),
        changed(row.cacc_change) if row.cacc_change else "-",
        f"{row.perplexity.value:.2f}" if row.perplexity else "-",
        f"{row.seconds:.0f}",
        f"{row.peak_bytes / 2**30:.2f}" if row.peak_bytes else "-",
        needs or "-",
    ]


def better(rows: Sequence[ResultRow]) -> str:
    """Which arms beat MB-Defense in ASR at no less CACC, or in CACC at the same ASR, by their values alone."""
    ours = next((row for row in rows if kind_of(row.arm) == "mb_defense"), None)
    if ours is None or ours.asr is None or ours.cacc is None:
        return "MB-Defense was not measured."
    lower, equal = [], []
    for row in rows:
        if row.arm in CONTROLS or row.asr is None or row.cacc is None:
            continue
        told = f"{escaped(row.arm)} (ASR {shown(row.asr)}, CACC {shown(row.cacc)})"
        if row.asr.value < ours.asr.value and row.cacc.value >= ours.cacc.value:
            lower.append(told)
        elif row.asr.value == ours.asr.value and row.cacc.value > ours.cacc.value:
            equal.append(told)
    first = f"Lower in ASR than MB-Defense at no less CACC: {', '.join(lower)}."
    second = f" As low, and higher in CACC: {', '.join(equal)}." if equal else ""
    return (first if lower else "No other arm has a lower ASR than MB-Defense at no less CACC.") + second


def write_doc(path: Path, text: str) -> None:
    """Puts a table between the marks of a Markdown file."""
    whole = path.read_text(encoding="utf-8") if path.is_file() else ""
    if any(whole.count(mark) != 1 for mark in MARKS) or whole.index(MARKS[0]) > whole.index(MARKS[1]):
        raise UserError("no place for the table in", str(path), f"write {MARKS[0]} and {MARKS[1]} where it belongs")
    before, after = whole.partition(MARKS[0])[0], whole.partition(MARKS[1])[2]
    write_text(path, f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing and writes the table; 1 if an arm failed."""
    words = sys.argv[1:] if words is None else words
    options = parsed(words)
    if options.only:
        options.one_process = True
        return 0 if attempt(Task(int(options.only[0]), *options.only[1:]), options, words) else 1
    failed = []
    for seed in options.seeds:
        for attack in options.attacks:
            todo = [Task(seed, attack, arm) for arm in dict.fromkeys([*CONTROLS, *options.arms])]
            failed += [task for task in todo if not done(task, options) and not attempt(task, options, words)]
            if not options.keep_models:
                shutil.rmtree(options.out / f"seed{seed}" / folder(attack) / "models", ignore_errors=True)
        if not options.keep_models:
            shutil.rmtree(options.out / f"seed{seed}" / "clean", ignore_errors=True)
    results = measured(options.out)
    write(options.out / "results.json", results)
    text = table(results)
    write_text(options.out / "comparison.md", text)
    if options.doc:
        write_doc(options.doc, text)
    print(text)  # noqa: T201
    for task in failed:
        print(f"failed: seed {task.seed}, {task.attack}: {task.arm}", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
