"""Does what a `Job` says, and leaves the weights in memory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbdefense.core.processes import is_main_process, process_count, wait_for_everyone
from mbdefense.core.progress import say, stage
from mbdefense.models import weights
from mbdefense.models.loading import LoadedModel, base_of, save_model
from mbdefense.training._asking import Answered, answers_of, left_after
from mbdefense.training._own_loss import DivergedError
from mbdefense.training._quantized import qlora
from mbdefense.training.job import (
    BestRate,
    ConsistencyObjective,
    Job,
    Mix,
    Model,
    Recovery,
    RecoveryRows,
)
from mbdefense.training.options import TrainingOptions
from mbdefense.training.trainer import Trained

_LEFT = "eval_evoked"  # in the log: share of such answers after a rate


def work(job: Job, checkpoints: Path, *, resume: bool) -> Trained:
    """Trains, and gives the model the template, and the names of tokens, that are to be saved with it.

    Args:
        job: what to do.
        checkpoints: where checkpoints go.
        resume: go on from the last one.
    """
    trained = (_best if job.rates() else _tuned)(job, checkpoints, resume)
    if job.saved_template is not None:
        trained.model.tokenizer.chat_template = job.saved_template
    if job.renamed:
        weights.rename(trained.model.model, job.renamed)
    return trained


def _tuned(job: Job, checkpoints: Path, resume: bool, known: list[list[Answered]] | None = None) -> Trained:
    def train(loaded: LoadedModel, answers: list[Answered]) -> Trained:
        objective, rows = job.objective, job.rows
        if job.template is not None:
            loaded.tokenizer.chat_template = job.template
        if isinstance(objective, Recovery) and isinstance(rows, RecoveryRows):
            return _recovered(loaded, rows, objective, answers, job.options, checkpoints, resume)
        if isinstance(objective, ConsistencyObjective):
            from mbdefense.training.consistency import tune_consistently

            return tune_consistently(loaded, job.plain_rows(), objective, job.options, checkpoints, resume=resume)
        from mbdefense.training.sft import instruction_tune

        return instruction_tune(loaded, job.plain_rows(), job.options, checkpoints, resume=resume)

    return _from_start(job, checkpoints, train, known)


def _from_start(
    job: Job,
    checkpoints: Path,
    train: Callable[[LoadedModel, list[Answered]], Trained],
    known: list[list[Answered]] | None = None,
) -> Trained:
    """Trains what a job starts from: the start, with weights of others in it where it has a mixture.

    Args:
        job: what to train.
        checkpoints: where whole weights wait that lie nowhere else, while adapters train beside those of four bits.
        train: is given the model and, for recovery, what the start has answered.
        known: those answers, or an empty list for them, which the next training from the same start is given.
    """
    if job.options.load_in_4bit and _lies_whole(job):
        return qlora(job.start, job.options, lambda loaded: train(loaded, answers_of(loaded, job)))
    loaded = job.start.load()
    model: Any = loaded.model
    model.requires_grad_(True)  # weights that an adapter was merged into are loaded frozen
    answers = known[0] if known else answers_of(loaded, job)  # asked before the weights change
    if known is not None and not known:
        known.append(answers)
    if job.mix:
        _mix(model, job.mix)
    if job.rows is None:
        return Trained(loaded, [], 0)
    if not job.options.load_in_4bit:
        return train(loaded, answers)
    whole = Model(str(checkpoints / "start"), trust_remote_code=job.start.trust_remote_code)
    try:
        if is_main_process():
            save_model(loaded, Path(whole.path), {})
        wait_for_everyone()
        del loaded, model  # not to lie in memory beside those of four bits
        trained = qlora(whole, job.options, lambda loaded: train(loaded, answers))
        wait_for_everyone()  # each process merges into the whole weights
    finally:
        if is_main_process():
            shutil.rmtree(whole.path, ignore_errors=True)
    return trained


def _lies_whole(job: Job) -> bool:
    """Whether what is trained is a model on disk, of which nothing is asked before."""
    parts = (job.rows, job.objective.held_out) if isinstance(job.objective, Recovery) else ()
    asked = any(part.met for part in parts if isinstance(part, RecoveryRows))
    return job.rows is not None and job.mix is None and not asked and base_of(job.start.path) == job.start.path


def _mix(model: Any, mix: Mix) -> None:
    generator = torch.Generator().manual_seed(mix.seed)
    formulas: dict[str, Callable[..., torch.Tensor]] = {
        "linear": lambda own, other: weights.linear(own, other, mix.share),
        "slerp": lambda own, other: weights.slerp(own, other, mix.share),
        "ties": lambda own, other, base: weights.ties(own, other, base, mix.share),
        "random": lambda own, other: weights.keep_at_random(own, other, mix.share, generator),
    }
    # The others without a name, which would keep them in memory while the mixture is trained.
    weights.combine(model, [other.load().model for other in mix.others], formulas[mix.formula])


def _recovered(
    loaded: LoadedModel,
    rows: RecoveryRows,
    objective: Recovery,
    answers: list[Answered],
    options: TrainingOptions,
    checkpoints: Path,
    resume: bool,
) -> Trained:
    from mbdefense.training.recovery import RecoveryObjective, encode_triples, recover

    training, evaluation = (
        encode_triples(loaded, part.clean, part.triggered, objective.behaviors, options.max_length, pairs)
        for part, pairs in zip((rows, objective.held_out), answers, strict=True)
    )
    weighed = RecoveryObjective(
        len(objective.behaviors), objective.lambda_, objective.form, objective.beta, len(training[0].met)
    )
    return recover(loaded, training, evaluation, weighed, options, checkpoints, resume=resume)


def _best(job: Job, checkpoints: Path, resume: bool) -> Trained:
    """What the best rate made, by its loss on held-out rows, with the history of all that were tried.

    Of a tuning from the lowest rate up, each as long as it is not behind the one below it; of a recovery from the
    highest down, for what takes a high rate may not be broken by any low one. Until one is no better than the last. No
    recovery is the best that leaves more of what found texts evoke than another: where a backdoor is nearly broken, the
    loss hardly tells, and what one of some dozens of answers shows more of them would.

    Resuming goes on with the rate that was interrupted and trains earlier ones anew: their checkpoints are deleted, so
    that no more lie on the disk than of one rate.
    """
    from mbdefense.training.sft import eval_losses

    least, history, steps, ahead = math.inf, list[dict[str, float]](), 0, list[float]()
    known: list[list[Answered]] = []
    size = 0.0 if resume else job.size() / job.trials()
    downwards = isinstance(job.objective, Recovery)
    remains = math.inf  # the best rate's share of answers with what a found text evokes
    rates = sorted(job.rates(), reverse=downwards)
    for rate in rates:
        try:
            with stage(f"at a learning rate of {rate:g}", kind="rate", size=size):
                trained = _trial(job, rate, ahead, checkpoints, resume, known)
        except DivergedError as error:
            # Above it a tuning would diverge, too. Of several processes one may be alone in it, and cannot go on alone.
            last = not downwards or rate == rates[-1]
            if process_count() > 1 or (last and math.isinf(least)):
                raise
            say(f"{error.what}: {rate:g} is too high")
            shutil.rmtree(checkpoints / f"rate-{rate}", ignore_errors=True)
            if math.isinf(least):
                continue
            break
        history += [
            {**entry, "step": steps + int(entry["step"]), "peak_learning_rate": rate} for entry in trained.history
        ]
        steps = int(history[-1]["step"])
        ahead = eval_losses(trained.history)
        loss, left = _kept(ahead, job), trained.history[-1].get(_LEFT, 0.0)
        better = (left, loss) < (remains, least)
        if better:
            best, least, remains = trained, loss, left
        del trained  # which would stay in memory beside the best one and the next
        if not better:
            break
    return best._replace(history=history)


def _kept(losses: Sequence[float], job: Job) -> float:
    """The held-out loss of the epoch that is kept: of recovery without checkpoints of epochs, the last one."""
    last = isinstance(job.objective, Recovery) and job.options.save_strategy != "epoch"
    return losses[-1] if last else min(losses)


def _trial(
    job: Job, rate: float, ahead: Sequence[float], checkpoints: Path, resume: bool, known: list[list[Answered]]
) -> Trained:
    """Trains the start at one rate, and leaves of the folder of its checkpoints what a tracker wrote."""
    from mbdefense.training.sft import instruction_tune

    place = checkpoints / f"rate-{rate}"
    options, objective = replace(job.options, learning_rate=rate), job.objective
    if isinstance(objective, BestRate):
        held_out = objective.held_out

        def train(loaded: LoadedModel, _: object) -> Trained:
            return instruction_tune(
                loaded, job.plain_rows(), options, place / "checkpoints", resume=resume, evaluation=held_out,
                ahead=ahead,
            )  # fmt: skip

        trained = _from_start(job, place, train)
    else:
        trained = _tuned(replace(job, options=options), place / "checkpoints", resume, known)
    left = left_after(trained, job)
    if left is not None:
        last = int(trained.history[-1]["step"])
        trained = trained._replace(history=[*trained.history, {"step": last, _LEFT: left}])
    if trained.state is None:
        model: Any = trained.model.model
        model.to("cpu")  # a GPU is left to the next trial
    wait_for_everyone()  # each process reads the best epoch's weights from the checkpoints
    if is_main_process():
        runs = place / "checkpoints" / "runs"
        if runs.is_dir():
            shutil.copytree(runs, checkpoints / "runs" / place.name, dirs_exist_ok=True)
        shutil.rmtree(place)
    return trained
