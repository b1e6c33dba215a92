"""The command line. torch is imported only inside a command, so that --help answers at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from mbdefense import __version__
from mbdefense.cli.benching import bench
from mbdefense.cli.classifying import federated, pairs, vision
from mbdefense.cli.evaluating import analyze, card, check, compare, evaluate, judge, preflight
from mbdefense.cli.filtering import filter_rows
from mbdefense.cli.finding import find_triggers
from mbdefense.cli.listing import list_methods, method_tables
from mbdefense.cli.reading import Usage
from mbdefense.cli.reporting import report
from mbdefense.cli.scanning import pick_clean, scan_data, scan_model, try_model
from mbdefense.cli.training import defend, demo, poison, purify, search
from mbdefense.core.errors import UserError, did_you_mean, first_line
from mbdefense.core.processes import process_count
from mbdefense.core.progress import quiet_libraries, say, to_stderr

__all__ = ["COMMANDS", "USAGE", "main", "method_tables"]

USAGE = """usage: mbdefense COMMAND [OPTION ...]

  poison IN OUT     write a poisoned copy of a data set, to test a defense with
  search MODEL      search for words that make a model show a behavior
  preflight MODEL   check data and template; show a row as the model sees it
  defend            turn untrusted data into a model whose backdoors are broken
  purify MODEL      repair a finished model, with or without its training data
  find-triggers DATA ...
                    find an attacker's triggers in suspect data
  scan-data DATA ...
                    look for signs of poison in data; exits 3 if any
  scan-model MODEL  look for signs of a backdoor in a model; exits 3 if any
  pick-clean DATA   propose rows to check by eye, with a page to review them
  filter DATA       drop suspicious rows from training data
  try MODEL         chat with a model in a local web page
  evaluate MODEL    measure accuracy and attack success of a model
  judge RESPONSES   judge the responses of an earlier evaluation again
  judge calibrate RESPONSES
                    compare a judge with labels
  compare DIR ...   compare evaluated models prompt by prompt
  report DIR ...    one page of figures, charts and responses
  card MODEL RESULTS ...
                    put measured figures into a defended model's card
  check RESULTS     check figures against limits; exits 1 if one fails
  analyze WHAT      matrix, heads, triggers, traces or relearning: look inside
  bench GRID        run models by attacks by defenses by seeds
  federated [GRID]  federated clients: aggregation rules against attacks
  vision poison|train|defend|evaluate|demo
                    train image classifiers on untrusted images
  pairs poison|train|defend|evaluate|demo
                    train CLIP models on untrusted image-caption pairs
  demo              attack, defend and evaluate the embedded model
  list [WHAT]       every method: what it does, needs, and comes from

`mbdefense COMMAND --help` shows the options; each can also stand in a YAML
file given with --config. Exit codes: 0 done, 1 user error or failed check,
2 usage, 3 suspects, 130 interrupted, 141 the reader of the output is gone.
"""


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "poison": poison,
    "search": search,
    "preflight": preflight,
    "defend": defend,
    "purify": purify,
    "find-triggers": find_triggers,
    "scan-data": scan_data,
    "scan-model": scan_model,
    "pick-clean": pick_clean,
    "filter": filter_rows,
    "try": try_model,
    "evaluate": evaluate,
    "judge": judge,
    "compare": compare,
    "report": report,
    "card": card,
    "check": check,
    "analyze": analyze,
    "bench": bench,
    "federated": federated,
    "vision": vision,
    "pairs": pairs,
    "demo": demo,
    "list": list_methods,
}


class _ToStderr(logging.Handler):
    """Shows what the package warns of, without the logger's name and time; of several processes only the main one's.

    A warning may name what a hostile file says, such as where one of its rows is from.
    """

    def emit(self, record: logging.LogRecord) -> None:
        say(f"warning: {record.getMessage()}")


_RESUMING = ("defend", "demo", "purify", "search", "vision demo", "pairs demo")
"""Commands with --resume."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)  # noqa: T201
        return 0
    quiet_libraries()
    own = logging.getLogger("mbdefense")
    if not own.handlers:
        own.addHandler(_ToStderr(logging.WARNING))
    try:
        if words[0] not in COMMANDS:
            raise Usage(f"unknown command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}")
        if process_count() > 1 and words[0] != "defend":
            raise UserError("only defend runs on several processes", words[0], "run it without accelerate launch")
        code = COMMANDS[words[0]](words[1:]) or 0
        sys.stdout.flush()  # what is left in the buffer would fail at exit, where nobody catches it
        return code
    except Usage as error:
        return _fail(f"mbdefense: {error}", 2)
    except UserError as error:
        return _fail(f"mbdefense: {error}", 1)
    except BrokenPipeError:  # as in `mbdefense list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # such as a name that is too long to be one
        return _fail(f"mbdefense: {UserError(error.strerror or first_line(error), error.filename)}", 1)
    except KeyboardInterrupt:
        resumes = words[0] in _RESUMING or " ".join(words[:2]) in _RESUMING
        again = "; run the same command with --resume to go on" if resumes else ""
        return _fail(f"mbdefense: interrupted{again}", 130)


def _fail(line: str, code: int) -> int:
    to_stderr(line)
    return code
