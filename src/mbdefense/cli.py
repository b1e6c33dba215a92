"""The command line. torch is imported only inside a command, so that --help answers at once."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from mbdefense import __version__
from mbdefense.behaviors import BEHAVIORS
from mbdefense.config import (
    CalibrateConfig,
    CheckConfig,
    CompareConfig,
    DefendConfig,
    DemoConfig,
    EvaluateConfig,
    HeadsConfig,
    JudgeConfig,
    JudgeOptions,
    MatrixConfig,
    PoisonConfig,
    TriggersConfig,
    parse_spec,
    read_yaml,
)
from mbdefense.errors import UserError, did_you_mean
from mbdefense.options import TrainingOptions
from mbdefense.processes import is_main_process, process_count
from mbdefense.triggers import TRIGGERS

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.results import Results

USAGE = """usage: mbdefense COMMAND [OPTION ...]

  poison IN OUT     write a poisoned copy of a data set, to test a defense with
  defend            turn untrusted data into a model whose backdoors are broken
  evaluate MODEL    measure accuracy and attack success of a model
  judge RESPONSES   judge the responses of an earlier evaluation again
  judge calibrate RESPONSES
                    compare a judge with labels
  compare DIR ...   compare evaluated models prompt by prompt with the attacked one
  check RESULTS     hold a result file's figures against limits; exits 1 if one fails
  analyze WHAT      matrix, heads or triggers: what the paper's figures show
  demo              attack, defend and evaluate the embedded model
  list [WHAT]       triggers, behaviors, defenses, judges

`mbdefense COMMAND --help` shows the options; each can also stand in a YAML file given with --config.
Exit codes: 0 done, 1 user error or failed check, 2 usage, 130 interrupted.
"""


_LISTS = ("list[", "tuple[")


class _Usage(Exception):  # noqa: N818 - carries the exit code 2
    """The command line itself is wrong."""


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _Usage(" ".join(message.split()))


def _read(words: Sequence[str], command: str, positionals: Sequence[str], classes: Sequence[type]) -> Namespace:
    """Reads one command's options: flags win over the YAML file of --config, which wins over defaults.

    A positional whose name ends in "+" takes one value or more.
    """
    parser = _Parser(prog=f"mbdefense {command}", description=(classes[0].__doc__ or "").split("\n")[0])
    for name in positionals:
        parser.add_argument(name.rstrip("+"), type=str, nargs="+" if name.endswith("+") else None)
    parser.add_argument("--config", type=str, default=None, help="YAML file with options; flags win over it")
    for kind in classes:
        parser.add_class_arguments(kind, None)
    known = {field.name for kind in classes for field in fields(kind)}
    for word in words:
        flag = word.split("=")[0].removeprefix("--").rstrip("+")
        if word.startswith("--") and flag not in known | {"config", "help"}:
            raise _Usage(f"unknown option --{flag}; {did_you_mean(flag, known)}")
    config = _value_of(words, "config")
    from_file = read_yaml(config, known) if config else {}
    given = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    # The file's values go in front, as flags, so that they are checked like flags and required options may stand there.
    ahead: list[str] = []
    for key, value in from_file.items():
        if key not in given:
            ahead.append(f"--{key}={_as_flag(value)}")
    lists = {f"--{field.name}" for kind in classes for field in fields(kind) if str(field.type).startswith(_LISTS)}
    return parser.parse_args(_lists(words, lists) + ahead)


def _as_flag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value_of(words: Sequence[str], name: str) -> str | None:
    for index, word in enumerate(words):
        if word == f"--{name}":
            return words[index + 1] if index + 1 < len(words) else None
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def _lists(words: Sequence[str], lists: Container[str]) -> list[str]:
    """Writes ``--data A B`` as ``--data=[...]`` and a bare ``--resume`` as ``--resume=true``."""
    result: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        following: list[str] = []
        while index + 1 + len(following) < len(words) and not words[index + 1 + len(following)].startswith("--"):
            following.append(words[index + 1 + len(following)])
        if word in lists and following and not following[0].startswith("["):
            result.append(f"{word}={json.dumps(following)}")
            index += 1 + len(following)
        elif word in ("--resume", "--compare_undefended", "--trust_remote_code", "--strict") and (
            not following or following[0] not in ("true", "false")
        ):
            result.append(f"{word}=true")
            index += 1
        else:
            result.append(word)
            index += 1
    return result


def _behavior_from(text: str, target: str | None) -> Any:
    """Makes a behavior from its spec; `target` is its text, whatever the behavior calls that option."""
    name = text.partition(":")[0]
    option = {"refusal": "target_text", "fixed_text": "text"}.get(name)
    if target is not None and option is None and name in BEHAVIORS:
        raise UserError(f"behavior {name} takes no target text", target, "leave --target out")
    return parse_spec(text, BEHAVIORS, "behavior", {option: target} if option else {})


def _take(kind: type, options: Namespace) -> Any:
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def _load(sources: list[str], on_bad_row: Any, what: str, *, require_completion: bool = True) -> Dataset:
    from mbdefense.data import load

    loaded = load(sources, on_bad_row=on_bad_row, require_completion=require_completion)
    if loaded.skipped:
        print(f"{what}: skipped {len(loaded.skipped)} bad rows", file=sys.stderr)  # noqa: T201
        for line in loaded.skipped[:20]:
            print(f"  {line}", file=sys.stderr)  # noqa: T201
    return loaded.rows


def _warn_if_present(rows: Dataset, trigger: Any, what: str) -> None:
    from mbdefense.poison import count_occurrences

    count = count_occurrences(rows, trigger)
    if count:
        print(f"warning: {trigger.describe()} already occurs in {count} prompts of {what}", file=sys.stderr)  # noqa: T201


def _poison(words: Sequence[str]) -> None:
    options = _read(words, "poison", ["input", "output"], [PoisonConfig])
    config: PoisonConfig = _take(PoisonConfig, options)
    trigger = parse_spec(config.trigger, TRIGGERS, "trigger")
    behavior = _behavior_from(config.behavior, config.target)
    from mbdefense.data import save
    from mbdefense.poison import check_rate, poison

    check_rate(config.rate)
    rows = _load([options.input], config.on_bad_row, options.input)
    _warn_if_present(rows, trigger, options.input)
    poisoned = poison(rows, trigger, behavior, rate=config.rate, seed=config.seed)
    save(poisoned.rows, options.output)
    print(  # noqa: T201
        f"{options.output}: {len(poisoned.poisoned_ids)} of {len(rows)} rows poisoned, "
        f"{poisoned.not_rewritten} could not be rewritten ({poisoned.how})"
    )


def _defend(words: Sequence[str]) -> None:
    from mbdefense.defenses import DEFENSES

    name = _value_of(words, "defense")
    file = _value_of(words, "config")
    if name is None and file is not None:
        import yaml

        with open(file, encoding="utf-8") as stream:  # `read_yaml` reports what is wrong with it
            content = yaml.safe_load(stream)
        name = content.get("defense") if isinstance(content, dict) else None
    name = name or "mb_defense"
    if name not in DEFENSES:
        raise UserError("unknown defense", name, did_you_mean(name, DEFENSES))
    options = _read(words, "defend", [], [DefendConfig, DEFENSES[name], TrainingOptions])
    config: DefendConfig = _take(DefendConfig, options)
    training: TrainingOptions = _take(TrainingOptions, options)
    defense = _take(DEFENSES[name], options)
    from mbdefense.data import check_disjoint

    for option in ("canary_rate", "min_canary_rows"):
        if not config.canaries and getattr(config, option) != getattr(DefendConfig, option):
            raise UserError(f"--{option} without --canaries", getattr(config, option), "add --canaries 4")
    clean = _load([config.clean], config.on_bad_row, config.clean)
    test = None
    suspect = _load(config.data, config.on_bad_row, "data")
    if config.test is not None:
        test = _load([config.test], config.on_bad_row, config.test, require_completion=False)
        check_disjoint(clean, test)
    from pathlib import Path

    from mbdefense.defenses import Setting
    from mbdefense.files import read_json
    from mbdefense.model import CARD_FILE
    from mbdefense.pipeline import defend

    setting = Setting(
        config.model,
        suspect,
        clean,
        training,
        Path(config.output_dir),
        config.resume,
        config.chat_template,
        config.trust_remote_code,
    )
    for trigger, _ in defense.planted() if hasattr(defense, "planted") else []:
        _warn_if_present(clean, trigger, config.clean)
    results = defend(
        defense, name, setting, compare_undefended=config.compare_undefended, canaries=config.canaries,
        canary_rate=config.canary_rate, min_canary_rows=config.min_canary_rows, test=test,
    )  # fmt: skip
    if not is_main_process():
        return
    _show(results)
    for stage, directory in (("tuning", setting.directory / "merged"), ("the last stage", setting.directory)):
        cut = int(read_json(directory / CARD_FILE).get("truncated", 0)) if (directory / CARD_FILE).is_file() else 0
        if cut:
            longest = f"--max_length {training.max_length}"
            print(f"{stage}: {cut} sequences were longer than {longest} and lost the start of their prompt")  # noqa: T201
    print(f"model: {config.output_dir}")  # noqa: T201


def _evaluate(words: Sequence[str]) -> None:
    options = _read(words, "evaluate", ["model"], [EvaluateConfig, JudgeOptions])
    config: EvaluateConfig = _take(EvaluateConfig, options)
    behavior = _behavior_from(config.behavior, config.target)
    judge = _judge_from(options, behavior, config.output_dir)
    if config.trigger is not None and config.triggered is not None:
        raise UserError("both --trigger and --triggered are given", fix="give one of them")
    trigger = parse_spec(config.trigger, TRIGGERS, "trigger") if config.trigger else None
    test = _load([config.test], config.on_bad_row, config.test, require_completion=False)
    triggered, attack = None, "none"
    if config.triggered is not None:
        triggered = _load([config.triggered], config.on_bad_row, config.triggered, require_completion=False)
        attack = config.triggered.rpartition("/")[2]
    elif trigger is not None:
        from mbdefense.poison import triggered_copy

        _warn_if_present(test, trigger, config.test)
        triggered, left_out = triggered_copy(test, trigger, config.seed)
        attack = f"{trigger.describe()} ({left_out} prompts could not be rewritten)" if left_out else trigger.describe()
    from dataclasses import asdict
    from pathlib import Path

    from mbdefense.pipeline import evaluate, merge_results
    from mbdefense.results import write

    row = evaluate(options.model, test, triggered, behavior, attack, config, judge)
    results = merge_results([row], {"model": options.model, **asdict(config), "judge": asdict(judge)}, config.seed)
    write(Path(config.output_dir) / "results.json", results)
    _show(results)
    _show_usage(judge, config.output_dir)
    print(f"results: {config.output_dir}")  # noqa: T201


def _judge(words: Sequence[str]) -> None:
    if words and words[0] == "calibrate":
        return _calibrate(words[1:])
    options = _read(words, "judge", ["responses"], [JudgeConfig, JudgeOptions])
    config: JudgeConfig = _take(JudgeConfig, options)
    behavior = _behavior_from(config.behavior, config.target)
    judge = _judge_from(options, behavior, config.output_dir)
    from dataclasses import asdict
    from pathlib import Path

    from mbdefense.judging import rejudged
    from mbdefense.responses import read_responses
    from mbdefense.results import Results, provenance, write

    path = Path(options.responses)
    responses = read_responses(path)
    arm = config.arm or path.resolve().parent.name
    directory = Path(config.output_dir)
    row = rejudged(judge, responses, behavior, directory, arm=arm, attack=config.attack, model=str(path))
    results = Results(provenance({**asdict(config), "judge": asdict(judge)}, []), (row,))
    write(directory / "results.json", results)
    _show(results)
    _show_usage(judge, config.output_dir)
    print(f"results: {config.output_dir}")  # noqa: T201
    return None


def _calibrate(words: Sequence[str]) -> None:
    options = _read(words, "judge calibrate", ["responses"], [CalibrateConfig, JudgeOptions])
    config: CalibrateConfig = _take(CalibrateConfig, options)
    judge = _judge_from(options, _behavior_from(config.behavior, config.target), config.output_dir)
    from pathlib import Path

    from mbdefense.agreement import read_labels
    from mbdefense.judging import calibrated
    from mbdefense.responses import read_responses

    directory = Path(config.output_dir)
    print(calibrated(judge, read_responses(options.responses), read_labels(config.labels), directory), end="")  # noqa: T201
    _show_usage(judge, config.output_dir)


def _judge_from(options: Namespace, behavior: Any, directory: str) -> Any:
    from mbdefense.judging import make_judge

    judge = make_judge(_take(JudgeOptions, options), behavior, directory)
    if judge.describe().startswith("keywords"):
        print("warning: keywords over-counts; compare its figures with BackdoorLLM's, not more", file=sys.stderr)  # noqa: T201
    return judge


def _show_usage(judge: Any, directory: str) -> None:
    from pathlib import Path

    from mbdefense.files import read_json
    from mbdefense.judges import Metered
    from mbdefense.judging import USAGE_FILE

    if isinstance(judge, Metered):
        for when, usage in read_json(Path(directory) / USAGE_FILE).items():
            tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
            cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4f}"
            print(f"judge {when.replace('_', ' ')}: {usage['replies']} replies, {tokens}{cost}")  # noqa: T201


def _compare(words: Sequence[str]) -> None:
    options = _read(words, "compare", ["directories+"], [CompareConfig])
    config: CompareConfig = _take(CompareConfig, options)
    from pathlib import Path

    from mbdefense.compare import compare, read_arm
    from mbdefense.results import Results, provenance, write

    rows, over_seeds = compare([read_arm(directory) for directory in options.directories])
    seeds = sorted({row.seed for row in rows})
    results = Results(provenance({"directories": options.directories}, seeds), rows, over_seeds)
    if config.output_dir is not None:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        write(Path(config.output_dir) / "results.json", results)
    _show(results)


def _check(words: Sequence[str]) -> int:
    options = _read(words, "check", ["results"], [CheckConfig])
    from mbdefense.check import check
    from mbdefense.results import read

    failures = 0
    for condition in check(read(options.results), _take(CheckConfig, options)):
        failures += not condition.holds
        print(f"{'ok' if condition.holds else 'failed'}: {condition.reason}")  # noqa: T201
    return 1 if failures else 0


def _analyze(words: Sequence[str]) -> None:
    kinds = {"matrix": MatrixConfig, "heads": HeadsConfig, "triggers": TriggersConfig}
    what, rest = (words[0], words[1:]) if words else ("", ())
    if what not in kinds:
        raise _Usage(f"unknown analysis {what!r}; {did_you_mean(what, kinds)}")
    if what == "triggers":
        from itertools import takewhile

        folders = list(takewhile(lambda word: not word.startswith("--"), rest))
        options = _read([*(["--directories", *folders] if folders else []), *rest[len(folders) :]], f"analyze {what}",
                        [], [TriggersConfig])  # fmt: skip
        from mbdefense.analysis import triggers

        shown = triggers.analyze(_take(TriggersConfig, options))
    else:
        options = _read(rest, f"analyze {what}", ["model"], [kinds[what]])
        config = _take(kinds[what], options)
        from mbdefense.analysis import heads, matrix

        test = _load([config.test], config.on_bad_row, config.test, require_completion=False)
        shown = (matrix if what == "matrix" else heads).analyze(options.model, test, config)
    print(shown)  # noqa: T201
    print(f"data and picture: {options.output_dir}/{what}.json, {what}.png")  # noqa: T201


def _demo(words: Sequence[str]) -> None:
    config: DemoConfig = _take(DemoConfig, _read(words, "demo", [], [DemoConfig]))
    from mbdefense.demo import demo

    _show(demo(config))
    print(f"results: {config.output_dir}/results.json")  # noqa: T201


def _show(results: Results) -> None:
    from rich.console import Console

    from mbdefense.tables import table, verdict_in_words

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table(results))
    console.print(verdict_in_words(results), markup=False, highlight=False)


def _list(words: Sequence[str]) -> None:
    from mbdefense.defenses import DEFENSES
    from mbdefense.judges import JUDGES

    tables: dict[str, dict[str, type]] = {
        "triggers": TRIGGERS,
        "behaviors": BEHAVIORS,
        "defenses": DEFENSES,
        "judges": JUDGES,
    }
    if len(words) > 1 or (words and words[0] not in tables):
        raise _Usage(f"list takes one of: {', '.join(tables)}")
    for kind in words or tables:
        print(f"{kind}:")  # noqa: T201
        for name, method in tables[kind].items():
            print(f"  {name:14}{(method.__doc__ or '').strip().splitlines()[0]}")  # noqa: T201


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "poison": _poison,
    "defend": _defend,
    "evaluate": _evaluate,
    "judge": _judge,
    "compare": _compare,
    "check": _check,
    "analyze": _analyze,
    "demo": _demo,
    "list": _list,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)  # noqa: T201
        return 0
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        if words[0] not in COMMANDS:
            raise _Usage(f"unknown command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}")
        if process_count() > 1 and words[0] != "defend":
            raise UserError("only defend runs on several processes", words[0], "run it without accelerate launch")
        return COMMANDS[words[0]](words[1:]) or 0
    except _Usage as error:
        return _fail(f"mbdefense: {error}", 2)
    except UserError as error:
        return _fail(f"mbdefense: {error}", 1)
    except KeyboardInterrupt:
        return _fail("mbdefense: interrupted; run the same command with --resume to go on", 130)


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)  # noqa: T201
    return code
