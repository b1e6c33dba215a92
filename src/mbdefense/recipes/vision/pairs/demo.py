"""Images with captions: a backdoor in some pairs, defenses against it, and what is left, beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.recipes._given import Folder, Model, recorded
from mbdefense.recipes.measuring.compare import Comparison
from mbdefense.recipes.vision._pictures import write_pictures
from mbdefense.recipes.vision._steps import digest_of, kept, made, methods_of
from mbdefense.recipes.vision.pairs._steps import Attack, measured
from mbdefense.recipes.vision.pairs.train import EPOCHS, LR, SIZE, TUNING_LR

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
    from mbdefense.vision.pairs.attacks import Attack as Trigger
    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.defenses import Cleansed, Defense
    from mbdefense.vision.pairs.pairs import Pairs
    from mbdefense.vision.record import Training

TRAIN, TEST = "train", "test"


def pairs_demo(
    pairs: Folder,
    *,
    output_dir: Folder = "runs/pairs",
    model: Model | None = None,
    trigger: str = "badclip",
    target: str = "heart",
    rate: float = 0.01,
    clean_rows: int = 1000,
    defenses: list[str] | None = None,
    epochs: int = 3,
    seeds: list[int] | None = None,
    resume: bool = False,
) -> Comparison:
    """Poison pairs, fine-tune a CLIP model on them, cleanse it, and measure all with their controls.

    Examples:
        >>> from mbdefense import pairs_demo
        >>> asked = {"model": "clip", "target": "green", "rate": 0.1, "clean_rows": 20, "trigger": "random_patch"}
        >>> defenses = ["fine_tune:epochs=1"]
        >>> print(pairs_demo("pairs", **asked, defenses=defenses, epochs=1))  # doctest: +SKIP

    Args:
        pairs: folder with the folders train and test, each with images and metadata.jsonl, as
            experiments/emoji_pairs.py makes it.
        output_dir: folder for results.json, a folder per arm, and for each seed the trigger and a picture of what
            triggered images retrieve.
        model: the clean model that victims start from; by default a small one is trained on the train pairs without the
            defender's.
        trigger: the attacker's trigger; see `mbdefense list pair_triggers`.
        target: a word from captions; triggered images should retrieve captions that contain it.
        rate: share of the suspect pairs that is poisoned.
        clean_rows: number of pairs that the defender trusts, drawn from the train pairs.
        defenses: see `mbdefense list pair_defenses`; names, or name:option=value,option=value; by default all.
        epochs: number of epochs of the victims' fine-tuning.
        seeds: random seeds of trigger, poisoning and training, by default 0; all use the same clean model and pairs.
        resume: reuse models from an earlier run with the same options.

    Returns:
        All arms, compared image by image with the attacked one.

    Raises:
        UserError: model or pairs cannot be read, or an option cannot work with them.
    """
    asked = recorded({name: value for name, value in locals().items() if name not in ("output_dir", "resume")})
    import torch

    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed
    from mbdefense.core.progress import stages
    from mbdefense.core.specs import parse_spec
    from mbdefense.evaluation.compare import compare
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import RESULT_FILE, Results, write
    from mbdefense.vision.pairs.attacks import ATTACKS
    from mbdefense.vision.pairs.clip import load_clip
    from mbdefense.vision.pairs.defenses import DEFENSES
    from mbdefense.vision.pairs.pairs import check_pairs, read_pairs, split_pairs
    from mbdefense.vision.pairs.pictures import retrievals, write_picture
    from mbdefense.vision.pairs.poisoning import plan, poison, sides
    from mbdefense.vision.pairs.stamp import write_stamp

    tried = list(dict.fromkeys(seeds or [0]))
    at_least(0, seeds=min(tried))
    at_least(1, epochs=epochs)
    attack: Trigger = parse_spec(trigger, ATTACKS, "trigger of pairs")
    methods: dict[str, Defense] = methods_of(defenses or DEFENSES, DEFENSES, "defense of pairs")
    given = load_clip(model) if model else None
    size = given.size if given else SIZE
    read, test = (read_pairs(Path(pairs) / part, size) for part in (TRAIN, TEST))
    suspect, clean = split_pairs(read, clean_rows, 0)
    for part in (suspect, clean, test):
        check_pairs(part)
    attack.check(size)
    plan(suspect, target, rate)
    sides(test, target)
    config = {**asked, "defenses": {name: asdict(method) for name, method in methods.items()}}
    directory = Path(output_dir)
    inputs = digest_of(suspect, clean, given.state_dict() if given else None)
    run = _Run(directory, suspect, clean, test, epochs, methods, config, inputs, resume)
    parts = sum(len(method.parts()) for method in methods.values()) + ("ubt" in methods)
    with claimed(directory), stages(1 + len(tried) * (2 + parts)):
        base = run.base(given)
        arms: list[Arm] = []
        for seed in tried:
            stamp = attack(base, suspect, target, seed)
            bad = poison(suspect, stamp, target, rate, seed)
            share = float(bad.which.double().mean())
            made_here = list(run.arms(base, bad.pairs, Attack(stamp, target, trigger, share), seed))
            write_stamp(directory / f"trigger-{seed}.png", stamp)
            rows = retrievals(test, stamp, target, _nearest(made_here))
            write_picture(directory / f"retrieved-{seed}.png", rows)
            if seed == tried[0]:
                shown = {"trigger": stamp(torch.ones(1, *stamp.pattern.shape)), **rows}
                title = f"What triggered images of seed {seed} retrieve"
                write_pictures(directory, title, shown, provenance(config, tried))
            arms += made_here
        compared, over_seeds = compare(arms)
        results = Results(provenance(config, tried), compared, over_seeds)
        write(directory / RESULT_FILE, results)
    return Comparison(results)


def _nearest(arms: Iterable[Arm]) -> dict[str, list[str]]:
    """By arm the caption that each triggered image retrieves."""
    return {arm.row.arm: [one.reason for one in arm.verdicts if one.kind == "triggered"] for arm in arms}


@dataclass(frozen=True)
class _Run:
    """What all models of a demo have in common.

    Attributes:
        directory: where all of it goes.
        suspect: pairs before they are poisoned.
        clean: pairs of the defender's own.
        test: pairs that nobody trains on.
        epochs: number of epochs of the victims' fine-tuning.
        methods: defenses by name.
        config: the options.
        inputs: hash of what all models are made of.
        resume: take models that are there.
    """

    directory: Path
    suspect: Pairs
    clean: Pairs
    test: Pairs
    epochs: int
    methods: Mapping[str, Defense]
    config: Mapping[str, Any]
    inputs: str
    resume: bool

    def base(self, given: Clip | None) -> Clip:
        """The clean model that victims start with: the one that is given, or a new one."""
        from mbdefense.vision.pairs.clip import new_clip
        from mbdefense.vision.pairs.defenses import Cleansed
        from mbdefense.vision.pairs.learning import steps_of, trained

        def learned() -> Cleansed:
            clip = given or new_clip(SIZE, self.suspect.captions, 0)
            steps = 0 if given else steps_of(EPOCHS, self.suspect)
            return Cleansed(trained(clip, self.suspect, 0, steps=steps, lr=LR) if steps else clip, {})

        return self.model("base", 0, learned)[0]

    def arms(self, base: Clip, bad: Pairs, attack: Attack, seed: int) -> Iterator[Arm]:
        """Makes and measures all models of one seed; the last is a defense where nothing is poisoned."""
        from mbdefense.vision.pairs.defenses import UBT

        yield from self.asked("base", base, None, attack, seed)
        clean = yield from self.one("clean", seed, attack, partial(self.victim, base, self.suspect, seed))
        victim = yield from self.one("attacked", seed, attack, partial(self.victim, base, bad, seed))
        for name, method in self.methods.items():
            for part, one in method.parts().items():
                yield from self.one(f"{name}{part}", seed, attack, partial(one, victim, bad, self.clean, seed))
            if isinstance(method, UBT):  # it is to do nothing there
                again = partial(method, clean, self.suspect, self.clean, seed)
                yield from self.one(f"{name}_no_poison", seed, attack, again)

    def victim(self, base: Clip, pairs: Pairs, seed: int) -> Cleansed:
        """The clean model, fine-tuned on pairs."""
        from mbdefense.vision.pairs.defenses import Cleansed
        from mbdefense.vision.pairs.learning import steps_of, trained

        return Cleansed(trained(base, pairs, seed, steps=steps_of(self.epochs, pairs), lr=TUNING_LR), {})

    def one(self, arm: str, seed: int, attack: Attack, train: Callable[[], Cleansed]) -> Generator[Arm, None, Clip]:
        """Makes and measures one model."""
        clip, training = self.model(arm, seed, train)
        yield from self.asked(arm, clip, training, attack, seed)
        return clip

    def model(self, arm: str, seed: int, train: Callable[[], Cleansed]) -> tuple[Clip, Training | None]:
        """A model as it was saved, made unless it is there."""
        from mbdefense.vision.pairs.clip import load_clip
        from mbdefense.vision.record import read_training

        folder = self.directory / f"{arm}-{seed}"
        # Which seeds there are beside it makes no training another one.
        config = {**self.config, "seeds": [seed], "arm": arm}
        if not self.resume or kept(read_training(folder), config, self.inputs) is None:
            made(folder, train, f"{arm}, seed {seed}", seed, config, self.inputs)
        return load_clip(folder), read_training(folder)

    def asked(self, arm: str, clip: Clip, training: Training | None, attack: Attack, seed: int) -> Iterator[Arm]:
        """What the model retrieves, judged by the nearest caption and by the nearest five."""
        from mbdefense.vision.pairs.retrieval import retrieved

        found, folder = retrieved(clip, self.test, attack.stamp, attack.target), self.directory / f"{arm}-{seed}"
        for top in found.verdicts:
            place = folder if top == 1 else folder / f"top{top}"
            yield measured(arm, place, found, training, attack, top, str(folder), seed)
