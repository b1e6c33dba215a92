"""Instruction tuning together: clients train LoRA adapters on their own rows, a rule makes the next model."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import claimed, is_as_written, make_folder, sum_file, whole_file, write_sum
from mbdefense.core.progress import stage, stages
from mbdefense.federated.rounds import seed_of
from mbdefense.federated.rules import MARS, Rule
from mbdefense.federated.server import Played, aggregate

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from mbdefense.federated.weights import Weights
    from mbdefense.models.loading import LoadedModel
    from mbdefense.training.options import TrainingOptions

    Sends: TypeAlias = Callable[[Weights, Mapping[str, Tensor]], object]
    """What a client makes of the global weights and those that it has trained, before it sends them."""


@dataclass(frozen=True)
class TunedTogether:
    """A model that clients have tuned together.

    Attributes:
        path: its folder.
        rounds: who was kept, flagged and refused, and what the rule's choice rests on; weights are those of the last.
    """

    path: Path
    rounds: tuple[Played, ...]


def tune_together(
    model: str,
    clients: Sequence[Dataset],
    output_dir: str | Path,
    *,
    rule: Rule | None = None,
    rounds: int = 1,
    options: TrainingOptions | None = None,
    attacks: Mapping[int, Sends] | None = None,
    chat_template: str | None = None,
    trainings: str | Path | None = None,
) -> TunedTogether:
    """Tunes a model on rows that no one holds together.

    In each round every client trains new LoRA adapters from the global weights and sends the weights of the adapted
    layers with them merged in. So the server averages products B A, and not A and B apart, whose means' product is no
    mean of what clients learned; the rank of what it adds can be that of all clients together. A rule that
    scores changes scores products B A, and not the base model's weights, which are many times as large.

    Each table holds every adapted layer whole: with n clients memory is n + 2 times theirs. To hold less, name fewer
    `lora_target_modules`.

    After the last round `mbdefense.purify(path, clean_rows)` repairs the model with rows of the server's own.

    Args:
        model: directory or Hub id.
        clients: rows of each, as `mbdefense.load_rows` gives them.
        output_dir: where the model goes.
        rule: of aggregation; by default MARS on changes and linear layers with epsilon 0, which always flags a
            cluster: calibrate one (`MARS.calibrated`) to flag none where nobody attacks.
        rounds: of training together.
        options: of a client's training in a round, with adapters (``use_peft``).
        attacks: what clients, by number, do with the weights that they have trained; poisoned rows are among `clients`.
        chat_template: file with the prompt template to use in place of the model's own.
        trainings: folder that keeps what each training gave, so that calls which name the same one make none twice: the
            first round is alike whatever the rule. A file of the adapted layers' size each; delete it in the end.

    Raises:
        UserError: no clients, options without adapters, a rule that is not calibrated, an attack by a client that is
            not there, a model that cannot be loaded, no usable weights, or a file in `trainings` that has changed.
    """
    from mbdefense.models.loading import load_model, save_model
    from mbdefense.training.options import TrainingOptions

    at_least(1, rounds=rounds, clients=len(clients))
    settled = TrainingOptions(use_peft=True, save_strategy="no") if options is None else options
    if not settled.use_peft or settled.load_in_4bit:
        raise UserError("clients train LoRA adapters beside whole weights", fix="set use_peft, and not load_in_4bit")
    used = MARS(epsilon=0.0, linear=True, change=True) if rule is None else rule
    if isinstance(used, MARS) and isinstance(used.epsilon, str):
        fix = "give a number, or what MARS.calibrated makes of clean rounds"
        raise UserError("epsilon is not calibrated", used.epsilon, fix)
    if unknown := sorted({*(attacks or {})} - {*range(len(clients))}, key=repr):
        raise UserError("attacks by clients that are not there", unknown, f"number them from 0 to {len(clients) - 1}")
    played: list[Played] = []
    with claimed(Path(output_dir), for_model=True), _folder(Path(output_dir)) as folder, stages(rounds):
        loaded = load_model(model, chat_template=chat_template)
        names = _adapted(loaded, settled)
        weights: Weights = _table(loaded, names)
        counts = [len(rows) for rows in clients]
        for number in range(rounds):
            with stage(f"{len(clients)} clients tune", kind="round", size=sum(counts)):
                sent = []
                for at, rows in enumerate(clients):
                    _put(loaded, weights)
                    own = replace(settled, seed=seed_of(settled.seed, number, at) % 2**31)
                    made = partial(_trained, loaded, rows, own, names, folder)
                    trained = made() if trainings is None else _kept(Path(trainings), loaded, rows, own, made)
                    sent.append((attacks or {}).get(at, _as_it_is)(weights, trained))
                played.append(aggregate(used, weights, sent, counts, seed_of(settled.seed, number)))
                weights = played[-1].weights
        _put(loaded, weights)
        kept = [{"kept": list(one.kept), "flagged": list(one.flagged), "refused": dict(one.refused)} for one in played]
        save_model(loaded, Path(output_dir), {"federated": {"base_model": model, "rule": repr(used), "rounds": kept}})
    return TunedTogether(Path(output_dir), tuple(played))


def _kept(
    folder: Path, loaded: LoadedModel, rows: Dataset, options: TrainingOptions, train: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What a training gives, from its file in a folder, or made now and written there.

    Args:
        folder: of such files.
        loaded: the model with the weights that the training starts from.
        rows: to train on.
        options: how.
        train: makes it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    from mbdefense.models.template import template_hash
    from mbdefense.training.job import hash_of

    told = {"model": _digest(loaded), "rows": rows, "options": options, "template": template_hash(loaded.tokenizer)}
    file = folder / f"{hash_of(told)}.safetensors"
    if file.is_file() and sum_file(file).is_file():
        if not is_as_written(file):
            raise UserError("changed since it was trained", str(file), "delete it; the client trains again")
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read what was trained ({first_line(error)})", str(file), "delete it") from error
    trained = train()
    make_folder(folder)
    with whole_file(file) as stream:
        stream.write(save(trained))
    write_sum(file)
    return trained


def _digest(loaded: LoadedModel) -> str:
    """A hash of all weights."""
    import torch

    digest = hashlib.blake2b()
    for name, value in loaded.model.named_parameters():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _as_it_is(before: Weights, trained: Mapping[str, Tensor]) -> object:
    return trained


@contextmanager
def _folder(directory: Path) -> Iterator[Path]:
    """A folder for what trainings write, gone in the end."""
    from mbdefense.core.files import SAVING

    with tempfile.TemporaryDirectory(prefix=SAVING, dir=directory) as name:
        yield Path(name)


def _adapted(loaded: LoadedModel, options: TrainingOptions) -> list[str]:
    """Names of the weights that adapters are put beside."""
    from peft.tuners.lora import LoraLayer

    from mbdefense.training.trainer import with_lora

    adapted: Any = with_lora(loaded.model, options)
    names = [
        f"{name}.weight" for name, module in adapted.base_model.model.named_modules() if isinstance(module, LoraLayer)
    ]
    adapted.unload()
    return names


def _table(loaded: LoadedModel, names: Sequence[str]) -> dict[str, Tensor]:
    found = dict(loaded.model.named_parameters())
    return {name: found[name].detach().cpu().clone() for name in names}


def _put(loaded: LoadedModel, weights: Weights) -> None:
    """Gives the model the weights, in place."""
    import torch

    found = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            found[name].copy_(value)


def _trained(
    loaded: LoadedModel, rows: Dataset, options: TrainingOptions, names: Sequence[str], folder: Path
) -> dict[str, Tensor]:
    """A client's weights after its training; the model holds them too."""
    from mbdefense.training.sft import instruction_tune

    made = instruction_tune(loaded, rows, options, folder)
    return _table(made.model, names)
