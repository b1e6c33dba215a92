"""What recipes are given: in Python paths or objects, on the command line words.

The types stand here twice: for a reader and a type checker with all that Python may give, and at run time as the
words that the command line, which reads the recipes' signatures, can give in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from os import PathLike, fspath
from os.path import realpath
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from mbdefense.attacks.behaviors import BEHAVIORS, Behavior
from mbdefense.attacks.triggers import TRIGGERS, Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.files import claimed, read_json
from mbdefense.core.specs import parse_spec
from mbdefense.data.loading import paths_of

if TYPE_CHECKING:
    from mbdefense.data import Source
    from mbdefense.defenses import Defense
    from mbdefense.defenses.decoding import Decoding
    from mbdefense.defenses.filters import Filter
    from mbdefense.defenses.prompts.cleaning import PromptCleaner
    from mbdefense.judges import Judge
    from mbdefense.models.loading import LoadedModel
    from mbdefense.recipes.measuring.evaluate import Evaluation
    from mbdefense.records.responses import Response
    from mbdefense.records.results import Results
    from mbdefense.training.options import TrainingOptions


class HasResults(Protocol):
    """What `evaluate`, `compare` and `defend` return."""

    @property
    def results(self) -> Results:
        """The figures."""


OnBadRow = Literal["error", "skip"]
if TYPE_CHECKING:
    Folder: TypeAlias = "str | PathLike[str]"
    Folders: TypeAlias = "Folder | Sequence[Folder]"
    Evaluations: TypeAlias = "Folder | Evaluation | Sequence[Folder | Evaluation]"
    Model: TypeAlias = "str | PathLike[str]"
    Data: TypeAlias = "Source"
    Measured: TypeAlias = "str | PathLike[str] | HasResults | Results"
    Answered: TypeAlias = "str | PathLike[str] | Evaluation | list[Response]"
    TriggerSpec: TypeAlias = "str | Trigger"
    BehaviorSpec: TypeAlias = "str | Behavior"
    Triggers: TypeAlias = "TriggerSpec | Sequence[TriggerSpec]"
    Behaviors: TypeAlias = "BehaviorSpec | Sequence[BehaviorSpec]"
    Rates: TypeAlias = "float | Sequence[float]"
    FilterSpec: TypeAlias = "str | Filter"
    ManyData: TypeAlias = "Source"
    DefenseSpec: TypeAlias = "str | Defense"
    JudgeSpec: TypeAlias = "str | Judge"
    DecodingSpec: TypeAlias = "str | Decoding"
    CleanerSpec: TypeAlias = "str | PromptCleaner"
else:
    Folder = Model = Data = Measured = Answered = str
    Folders = Evaluations = Sequence[str]
    Triggers, Behaviors, Rates = list[str], list[str], list[float]
    ManyData = list[str]
    DefenseSpec = TriggerSpec = BehaviorSpec = FilterSpec = JudgeSpec = DecodingSpec = CleanerSpec = str


def name_of(model: Model) -> str:
    """The last part of a model's path or id; where that says only where one stands, the folder's own name."""
    path = Path(model)
    return path.resolve().name if path.name in ("", "..") else path.name


def results_of(measured: Measured) -> Results:
    """Figures from their file or its folder, or as a recipe returned them."""
    from mbdefense.records.results import Results, read

    if isinstance(measured, Results):
        return measured
    # First: what `defend` returns is a path, too, that of the model.
    if not isinstance(measured, str) and hasattr(measured, "results"):
        return measured.results
    if not isinstance(measured, str | PathLike):
        fix = "give the path of results.json or of its folder, or what defend, evaluate or compare returned"
        raise UserError("no figures", type(measured).__name__, fix)
    return read(results_file(measured))


def results_file(measured: str | PathLike[str]) -> Path:
    """The result file that is named, or that lies in the folder that is."""
    from mbdefense.records.results import RESULT_FILE

    path = Path(measured)
    file = path / RESULT_FILE if path.is_dir() else path
    if not file.exists():
        fix = f"give the {RESULT_FILE} that mbdefense evaluate, compare, defend or purify wrote, or its folder"
        raise UserError("no such result file", str(file), fix)
    return file


def trigger_of(given: TriggerSpec) -> Trigger:
    """A trigger from its spec, or as it is."""
    _check_made(given, "trigger")
    made: Trigger = parse_spec(given, TRIGGERS, "trigger") if isinstance(given, str) else given
    return made


def behavior_of(given: BehaviorSpec, target: str | None = None) -> Behavior:
    """A behavior from its spec, or as it is; `target` is its text, whatever the behavior calls that option."""
    _check_made(given, "behavior")
    if not isinstance(given, str):
        if target is not None:
            raise UserError("a behavior that is an object has its text", target, "leave target out")
        return given
    name = given.partition(":")[0]
    option = {"refusal": "target_text", "fixed_text": "text"}.get(name)
    if target is not None and option is None and name in BEHAVIORS:
        raise UserError(f"behavior {name} takes no target text", target, "leave --target out")
    made: Behavior = parse_spec(given, BEHAVIORS, "behavior", {option: target} if option else {})
    return made


def _check_made(given: object, what: str) -> None:
    if isinstance(given, type):
        raise UserError(f"a class is no {what}", given.__name__, f"call it: {given.__name__}()")


def options_of(args: TrainingOptions | None) -> TrainingOptions:
    """The options of training, or the defaults.

    Raises:
        UserError: it is something else, such as a dictionary.
    """
    from mbdefense.training.options import TrainingOptions

    if args is not None and not isinstance(args, TrainingOptions):
        raise UserError("args is no TrainingOptions", type(args).__name__, "give TrainingOptions(learning_rate=...)")
    return args or TrainingOptions()


def loaded(model: Model, chat_template: str | None, trust_remote_code: bool) -> LoadedModel:
    """A model with its tokenizer, under a template that is given for models without their own."""
    from mbdefense.models.loading import load_model

    return load_model(str(model), chat_template=template_of(model, chat_template), trust_remote_code=trust_remote_code)


def template_of(model: Model, given: str | None) -> str | None:
    """The file of a model's prompt template; a model made by `defend` has its own with it."""
    from mbdefense.models.loading import CARD_FILE

    return None if (Path(model) / CARD_FILE).is_file() else given


def check_apart(dataset: ManyData | None, clean_dataset: Data | None) -> None:
    """Refuses the suspect rows as the clean ones, where both are given: beside themselves nothing stands out.

    Raises:
        UserError: a file, or what is in memory, is given as both.
    """
    fix = "give rows that were checked by eye (mbdefense pick-clean)"
    if dataset is clean_dataset is not None and paths_of(dataset) is None:
        raise UserError("the same rows are given as untrusted and as clean", named(dataset), fix)
    known = {realpath(path) for path in paths_of(clean_dataset) or ()}
    for path in paths_of(dataset) or ():
        if realpath(path) in known:
            raise UserError("the same rows are given as untrusted and as clean", path, fix)


def check_not_itself(model: Model, base_model: Model | None) -> None:
    """Refuses a suspect model as its own base model: beside itself it has no backdoor.

    Raises:
        UserError: both are the same directory or Hub id.
    """
    if base_model is not None and Path(model).resolve() == Path(base_model).resolve():  # of Hub ids, too
        fix = "give what it was tuned from, or leave it out"
        raise UserError("the base model is the suspect model itself", fspath(model), fix)


def refuse_figures_of_others(directory: Path, mark: str, same: Mapping[str, object] = MappingProxyType({})) -> None:
    """Refuses to write figures over those of another command: of a defense they may have taken hours.

    Args:
        directory: that ``results.json`` is to be written into.
        mark: an argument that the records of this command, and of no other, name.
        same: arguments of which other figures of this command must have the same to be written over, too.

    Raises:
        UserError: another command's ``results.json`` lies there, or one of something else.
    """
    from mbdefense.records.results import RESULT_FILE

    path = directory / RESULT_FILE
    try:
        origin = read_json(path).get("provenance") if path.is_file() else None
    except UserError:  # damaged: it is mended by being made anew
        return
    config = origin.get("config") if isinstance(origin, dict) else None
    if not isinstance(config, dict):
        return
    fix = "use another --output_dir"
    if mark not in config:
        raise UserError("figures of another command would be written over", str(path), fix)
    for name, value in same.items():
        if _place(config.get(name)) != _place(value):
            raise UserError(f"figures with another {name} would be written over: {str(path)!r}", config.get(name), fix)


def _place(value: object) -> object:
    """A text as the path that it may be, so that two ways to write one are the same."""
    return Path(value).resolve() if isinstance(value, str) else value


def named(given: object) -> str:
    """What was given, in words for a message or a table."""
    if isinstance(given, str | PathLike):
        return fspath(given)
    if callable(getattr(given, "describe", None)):
        return str(given.describe())  # type: ignore[attr-defined]
    return f"{len(given)} rows" if hasattr(given, "__len__") else type(given).__name__


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's arguments as its record keeps them: objects by their options, rows in memory by their number."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float | PathLike) for one in value):
        return [_plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {"method": type(value).__name__, **asdict(value)}
    return named(value)


@contextmanager
def kept_in(output_dir: Folder | None) -> Iterator[Path]:
    """The folder to write into, which is this run's own meanwhile; without a name one that is gone in the end."""
    if output_dir is not None:
        with claimed(Path(output_dir)):
            yield Path(output_dir)
        return
    with TemporaryDirectory(prefix="mbdefense-") as folder:
        yield Path(folder)
