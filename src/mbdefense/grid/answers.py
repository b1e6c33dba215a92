"""Responses of a model to one set of prompts, asked once for all cells that need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.cost import measure
from mbdefense.core.errors import UserError
from mbdefense.core.files import sha256_of, write_sealed
from mbdefense.core.forms import OpenForm, read_form
from mbdefense.defenses.prompts.cleaning import Cleaned
from mbdefense.evaluation.responding import (
    Asking,
    Inference,
    answer_of,
    cleaned_prompts,
    perplexity,
    respond,
    sample_references,
)
from mbdefense.grid.arms import INFERENCE, arm_inputs, inference_of
from mbdefense.grid.code import ANSWERING, code_hash, hashed
from mbdefense.grid.workspace import Cell, Workspace
from mbdefense.models.identity import identity
from mbdefense.models.loading import CARD_FILE, check_template, load_model
from mbdefense.records.responses import RESPONSES_FILE, Kind, Response, read_responses, write_responses
from mbdefense.records.results import Perplexity

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.models.loading import LoadedModel

DONE_FILE = "answers.json"
_FIX = "delete the folder; the model is asked again"


@dataclass(frozen=True)
class _Done(OpenForm):
    """What is read of `DONE_FILE`."""

    perplexity: Perplexity | None
    responses_sha256: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Answers:
    """What one model answers to one file of prompts.

    Attributes:
        name: of the folder in ``answers``: a hash of all that the responses depend on.
        kind: whether the prompts carry the trigger.
        prompts: name of the file in ``data``.
    """

    name: str
    kind: Kind
    prompts: str

    def directory(self, workspace: Workspace) -> Path:
        """Where they lie."""
        return workspace.out / "answers" / self.name

    def done(self, workspace: Workspace) -> bool:
        """Whether they are there."""
        return (self.directory(workspace) / DONE_FILE).is_file()

    def read(self, workspace: Workspace) -> tuple[list[Response], Perplexity | None]:
        """The responses, and the references' perplexity where it was asked for.

        Raises:
            UserError: a file is damaged, or the responses are not those that the model gave.
        """
        directory = self.directory(workspace)
        said = read_form(_Done, directory / DONE_FILE, f"{self.name}/{DONE_FILE}", _FIX)
        file = directory / RESPONSES_FILE
        if said.responses_sha256 not in (None, sha256_of(file)):
            raise UserError("the responses are not those that the model gave", str(file), _FIX)
        if said.name not in (None, self.name):
            raise UserError("the responses are another model's, or to other prompts", str(file), _FIX)
        return read_responses(file), said.perplexity


def answers_of(workspace: Workspace, cell: Cell, model: Path) -> tuple[Answers, Answers]:
    """What a cell needs of its model, which need not be there yet: to clean and to triggered prompts."""
    evaluation = workspace.grid.evaluation
    between = arm_inputs(cell.arm) if cell.arm.partition(":")[0] in INFERENCE else None
    made_of = [
        identity(str(model)), workspace.template(), evaluation.max_new_tokens, evaluation.batch_size,
        code_hash(*ANSWERING),
        between and [between, identity(cell.base()), workspace.clean, cell.seed],
    ]  # fmt: skip
    clean, triggered = workspace.test, workspace.triggered(cell)
    fluency = [evaluation.max_length, evaluation.perplexity_rows, workspace.grid.data.seed]
    return (
        Answers(hashed([*made_of, "clean", clean, fluency]), "clean", clean),
        Answers(hashed([*made_of, "triggered", triggered]), "triggered", triggered),
    )


def ask(workspace: Workspace, cell: Cell, model: Path, wanted: Sequence[Answers]) -> None:
    """Lets a cell's model answer what is not answered yet."""
    todo = [answers for answers in wanted if not answers.done(workspace)]
    if not todo:
        return
    grid = workspace.grid
    clean_file = workspace.out / "data" / workspace.clean
    inference = inference_of(cell.arm, cell.base(), workspace.rows(workspace.clean), clean_file, cell.seed)
    cleaned: dict[Kind, Sequence[Cleaned]] = {}
    if inference.cleaner:  # before the model is loaded, as `evaluate` does
        prompts = {answers.kind: workspace.rows(answers.prompts) for answers in wanted}
        cleaned = cleaned_prompts(inference.cleaner, prompts, workspace.directory(cell))
    made = (model / CARD_FILE).is_file()
    # A model made here has its template with it, which a defense may have changed.
    template = None if made else grid.chat_template
    loaded = load_model(str(model), chat_template=template, trust_remote_code=grid.trust_remote_code)
    check_template(str(model), loaded.tokenizer)
    for answers in todo:
        _answer(workspace, cell.arm, loaded, answers, inference, cleaned.get(answers.kind))


def _answer(
    workspace: Workspace,
    arm: str,
    loaded: LoadedModel,
    answers: Answers,
    inference: Inference,
    cleaned: Sequence[Cleaned] | None,
) -> None:
    options = workspace.grid.evaluation
    asking = Asking(options.max_new_tokens, options.batch_size)
    rows = workspace.rows(answers.prompts)
    directory = answers.directory(workspace)
    directory.mkdir(parents=True, exist_ok=True)
    with measure() as cost:
        answer = answer_of(loaded, inference.decoding)
        responses = respond(answer, rows, answers.kind, asking, inference, cleaned, arm=arm)
    write_responses(directory / RESPONSES_FILE, responses)
    # References are scored by the bare model: with other ways to answer that is the undefended one's figure.
    scored = answers.kind == "clean" and options.perplexity_rows and arm.partition(":")[0] not in INFERENCE
    fluency = _fluency(workspace, loaded, rows) if scored else None
    told = asdict(fluency) if fluency else None
    facts = {"name": answers.name, "perplexity": told, "prompts": len(rows), **asdict(cost)}
    write_sealed(directory / DONE_FILE, {**facts, "responses_sha256": sha256_of(directory / RESPONSES_FILE)})


def _fluency(workspace: Workspace, loaded: LoadedModel, rows: Dataset) -> Perplexity | None:
    options = workspace.grid.evaluation
    references = sample_references(rows, options.perplexity_rows, workspace.grid.data.seed)
    return perplexity(loaded, references, max_length=options.max_length)
