"""Train a scorer: frozen backbone, one loss, a cosine for the learning rate and one for the temperature.

Everything random is a function of (seed, step), so a checkpoint is weights, optimiser state and a step number, and a
resumed training is the same training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

from dpbench import backbones
from dpbench.backbones.base import Backbone
from dpbench.diffprune import checkpoint
from dpbench.diffprune import resume as resume_from
from dpbench.diffprune.checkpoint import Card
from dpbench.diffprune.data import Broken, Split, batches, split
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.example import Example
from dpbench.diffprune.interruption import Interruption, LateError, interruptible
from dpbench.diffprune.logbook import Logbook, logbook
from dpbench.diffprune.objective import KeepRule, Objective, generator_of, hardness
from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.resume import STATE, Progressed
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.diffprune.sources import open_source
from dpbench.errors import ConfigError, DpbenchError
from dpbench.machine.stopping import INTERRUPTED, Stopped
from dpbench.manifest import fingerprint
from dpbench.storage import files, locks

BROKEN = "broken.jsonl"
FREE = ("micro_batch", "num_workers", "save_minutes")
"""Settings a resumed training may have otherwise: they are about the machine."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a training came to.

    Attributes:
        folder: where scorer, card and log are.
        step: steps done.
        full: validation loss per caption token of the unpruned backbone.
        best: the lowest under hard top-k, that of the scorer on disk.
        num_broken: examples that could not be read.
    """

    folder: Path
    step: int
    full: float
    best: float
    num_broken: int


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, device: str = "auto", console: Console | None = None
) -> Ended:
    """Train a scorer and write the best one, by validation under hard top-k, to `out`.

    Args:
        recipe: every constant.
        out: folder of the scorer, its card, the log and what `resume` needs.
        resume: go on with the training that `out` holds.
        device: "auto", "cpu" or "cuda".
        console: where progress goes.

    Raises:
        ConfigError: `out` holds a training and `resume` was not given, or another one, or one that is running, or
            cannot be written to; or the data cannot be used.
        MissingError: weights or data are not there.
        StorageError: the disk is full; the last checkpoint stays.
    """
    _check_folder(recipe, out, resume)
    files.check_writable(out)
    accelerator = Accelerator(cpu=device == "cpu")
    if device == "cuda" and accelerator.device.type != "cuda":
        raise ConfigError("--device cuda: torch sees no GPU here; leave --device out, or say cpu")
    training = Training(recipe, out, accelerator, console or Console(stderr=True))
    try:
        with files.writing(out), _alone(out, accelerator):
            if resume and (out / STATE).is_file():
                training.restore()
            with interruptible() as asked:
                training.run(asked)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) else INTERRUPTED
        raise Stopped(code, ("--resume",) if (out / STATE).is_file() else ()) from None
    return training.ended()


@contextmanager
def _alone(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """Refuse a folder in which another training runs; of several processes of one training, the main one holds it."""
    if not accelerator.is_main_process:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    lock = locks.take(out / "train.lock", seconds=1)
    try:
        yield
    finally:
        lock.release()


def _check_folder(recipe: Recipe, out: Path, resume: bool) -> None:
    """Refuse to overwrite a training, or to go on with one of another recipe."""
    if not (out / STATE).is_file():
        if resume:
            raise ConfigError(f"--resume: {out} holds no training ({STATE}); leave --resume out to begin one")
        if (out / checkpoint.CARD).is_file():
            raise ConfigError(f"--out {out}: there is a scorer already; choose another folder or move it away")
        return
    if not resume:
        raise ConfigError(f"--out {out}: there is a training already; go on with --resume, or choose another folder")
    stored = resume_from.read_recipe(out)
    asked = recipe.model_dump(mode="json")
    changed = [name for name in asked if name not in FREE and stored.get(name) != asked[name]]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"--resume: {out} was begun with {name} = {stored.get(name)}, now it is {asked[name]}; "
            "give the same settings, or another --out"
        )


def cosine(start: float, end: float, done: float) -> float:
    """Return the value a share `done` of the way along half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Training:
    """One training: what is trained, on what, and how far it is."""

    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator, console: Console) -> None:
        self.recipe, self.out, self.accelerator, self.console = recipe, out, accelerator, console
        self.source = open_source(recipe.data, seed=recipe.seed)
        self.indices: Split = split(
            len(self.source), fraction=recipe.fraction, num_validation=recipe.num_validation, seed=recipe.seed
        )
        self.num_steps = recipe.steps or max(1, len(self.indices.training) // recipe.batch_size)
        self.keep = KeepRule.parse(recipe.keep).within(backbones.find(recipe.backbone).num_visual, recipe.backbone)
        self.broken = Broken()
        self.backbone = _frozen(recipe, accelerator.device)
        self.objective = _objective(recipe, self.backbone)
        self.parameters = [*self.objective.scorer.parameters(), *self.objective.denoiser.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.state = Progressed(0, recipe.micro_batch or -(-recipe.batch_size // accelerator.num_processes))
        self.saved_at = 0.0
        self.asked = Interruption()

    def run(self, asked: Interruption) -> None:
        """Train to the last step, until validation has not improved for long, or until asked to stop.

        Raises:
            KeyboardInterrupt: it was asked to stop, and has saved a checkpoint.
            SystemExit: likewise, by SIGTERM.
        """
        if self.state.finished:
            self.console.print(f"{self.out}: this training is finished, there is nothing to go on with")
            return
        self.asked = asked
        if not (self.out / STATE).is_file():
            self.save()  # before the first scorer is there, which no training would write over
        title, shown = self.recipe.variant, self.accelerator.is_main_process
        sizes = {"num_steps": self.num_steps, "step": self.state.step if self.state.full is not None else -1}
        with logbook(self.out, self.console, title=title, shown=shown, **sizes) as book:
            try:
                self._go_on(book)
            except LateError:
                self.console.print("the step takes too long to wait for; it is left out")
        if asked.asked is not None and not self.state.finished:
            self.save()
            self.console.print(f"stopped after step {self.state.step}; --resume goes on from there")
            asked.leave()
        self.broken.check(final=True)

    def _go_on(self, book: Logbook) -> None:
        """Do what is left: the validation that is due, then step by step."""
        if self.state.full is None or (self._due and self.state.validated < self.state.step):
            book.validated(self.validate())
            self.save()
        for examples in self._steps() if not self.state.finished else ():
            self._advance(examples, book)
            if self.state.finished or self.asked.asked is not None:
                break

    @property
    def _due(self) -> bool:
        """Tell whether the scorer is to be validated after this step."""
        return self.state.step % self.recipe.validate_every == 0 or self.state.step == self.num_steps

    def _advance(self, examples: list[Example], book: Logbook) -> None:
        """Make a step and what is due after it: validation, checkpoint, a look at what was broken."""
        began = time.perf_counter()
        book.stepped(self._step(examples), self.recipe.batch_size)
        if self._due:
            book.validated(self.validate())
        self.state.seconds += time.perf_counter() - began
        if self._due or self.state.seconds - self.saved_at > 60 * self.recipe.save_minutes:
            self.save()
            self.saved_at = self.state.seconds
        self.broken.check()

    def _steps(self) -> Iterator[list[Example]]:
        return batches(
            self.source,
            self.indices.training,
            seed=self.recipe.seed,
            batch_size=self.recipe.batch_size,
            first_step=self.state.step,
            num_steps=self.num_steps - self.state.step,
            num_workers=self.recipe.num_workers,
            broken=self.broken,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _step(self, examples: list[Example]) -> dict[str, float]:
        """Make one optimiser step, in as large parts as memory allows, and return what the log says of it."""
        done = self.state.step / self.num_steps
        warm = min(1.0, (self.state.step + 1) / max(1.0, self.recipe.warmup * self.num_steps))
        lr, tau = self.recipe.lr * warm * cosine(1, 0, done), cosine(*self.recipe.tau, done)
        self.optimizer.param_groups[0]["lr"] = lr
        loss, hard = self._accumulated(examples, tau)
        if not math.isfinite(loss):
            raise DpbenchError(
                f"the loss is {loss} at step {self.state.step + 1}; lower --param lr, or --dtype float32"
            )
        with self.asked.whole():
            self.optimizer.step()
            self.state.step += 1
        return {"step": self.state.step, "loss": loss, "tau": tau, "lr": lr, "mass_on_top_k": hard}

    def _accumulated(self, examples: list[Example], tau: float) -> tuple[float, float]:
        """Leave the clipped gradient of the mean loss per caption token, and return that loss and the hardness."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                sums = self._summed(examples, tau)
                break
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._halve()
        total, count, hard = self.accelerator.reduce(sums, "sum").tolist()
        for parameter in self.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.accelerator.reduce(gradient, "sum") / max(count, 1)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        return total / max(count, 1), hard / self.accelerator.num_processes

    def _summed(self, examples: list[Example], tau: float) -> Tensor:
        """Add up the gradient of this process's examples; return their loss, their caption tokens and the hardness."""
        step, seed, device = self.state.step, self.recipe.seed, self.accelerator.device
        budget = self.keep.drawn(np.random.default_rng([seed, step]))
        sums, size = torch.zeros(3, dtype=torch.float64), self.state.micro_batch
        for at in range(0, len(examples), size):
            part = examples[at : at + size]
            places = range(at, at + len(part))
            noise = [generator_of(device, seed, step, self.accelerator.process_index, place) for place in places]
            with self._autocast():
                batch = self.objective.read(part)
                logits = self.objective.logits(batch)
                gate = self.objective.gate(batch, budget, tau, noise)
                losses = self.objective.soft_losses(logits, batch, gate)
            losses.sum().backward()
            hard = hardness(logits, gate) * len(part) / len(examples)
            sums += torch.tensor([float(losses.detach().sum()), len(losses), hard], dtype=torch.float64)
        return sums.to(device)

    def _autocast(self) -> torch.autocast:
        """Run scorer and denoiser, whose weights are float32, in the backbone's type."""
        mixed = self.recipe.dtype == "bfloat16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=mixed)

    def _halve(self) -> None:
        if self.state.micro_batch == 1:
            raise DpbenchError(
                "the GPU's memory does not hold one image; add --param gradient_checkpointing=true, choose a smaller "
                "backbone or free memory"
            )
        self.state.micro_batch //= 2
        self.console.print(f"out of memory; going on with {self.state.micro_batch} images at once")
        torch.cuda.empty_cache()

    def validate(self) -> dict[str, float]:
        """Measure the loss as deployed, keep the scorer if it is the best so far, and tell whether to stop."""
        losses = self._validation_losses()
        with self.asked.whole():
            self.state.full, self.state.validated = losses["full"], self.state.step
            if self.state.best is None or losses["hard"] < self.state.best:
                self.state.best, self.state.waited = losses["hard"], 0
                self._keep_scorer(losses)
            else:
                self.state.waited += 1
            self.state.finished = self.state.waited >= self.recipe.patience or self.state.step == self.num_steps
        return {"step": self.state.step, **losses}

    def _keep_scorer(self, losses: dict[str, float]) -> None:
        """Write the scorer as it is now; safetensors has an error of its own for a disk that is full."""
        if not self.accelerator.is_main_process:
            return
        try:
            checkpoint.save(self.out, self.objective.scorer, self._card(losses))
        except SafetensorError as error:
            raise files.refused(self.out / checkpoint.WEIGHTS, str(error)) from error

    @torch.no_grad()
    def _validation_losses(self) -> dict[str, float]:
        """Return the mean loss per caption token: unpruned, at each budget, and over the budgets ("hard")."""
        budgets = self.keep.validated()
        sums = torch.zeros(len(budgets) + 2, dtype=torch.float64)
        for examples in self._validation_batches():
            if not examples:
                continue
            with self._autocast():
                batch = self.objective.read(examples)
                found = [self.objective.hard_losses(batch, budget) for budget in budgets]
                if self.state.full is None:
                    sums[-2] += float(self.objective.full_losses(batch).sum())
            sums[: len(budgets)] += torch.tensor([float(each.sum()) for each in found])
            sums[-1] += len(found[0])
        *hard, full, count = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").tolist()
        hard = [each / count for each in hard]
        each = {f"hard@{budget}": loss for budget, loss in zip(budgets, hard, strict=True)}
        full = full / count if self.state.full is None else self.state.full
        return {"full": full, "hard": sum(hard) / len(hard), **each}

    def _validation_batches(self) -> Iterator[list[Example]]:
        indices, world = self.indices.validation, self.accelerator.num_processes
        size = min(self.state.micro_batch * world, len(indices))
        return batches(
            self.source,
            indices,
            seed=self.recipe.seed,
            batch_size=size,
            first_step=0,
            num_steps=len(indices) // size,
            num_workers=self.recipe.num_workers,
            broken=Broken(),
            rank=self.accelerator.process_index,
            world=world,
        )

    def _card(self, losses: dict[str, float]) -> Card:
        recipe, weights = self.recipe, backbones.RANDOM
        if recipe.weights != backbones.RANDOM:
            weights = fingerprint.weights_hash(recipe.backbone, recipe.weights, recipe.revision)
        return Card(
            backbone=recipe.backbone,
            backbone_weights=weights,
            size=self.objective.scorer.size,
            variant=recipe.variant,
            keep=recipe.keep,
            tau=recipe.tau,
            data=recipe.data,
            seed=recipe.seed,
            step=self.state.step,
            losses={name: round(loss, 6) for name, loss in losses.items()},
            hours=round(self.state.seconds / 3600, 4),
            versions={name: version(name) for name in ("torch", "transformers")},
        )

    def save(self) -> None:
        """Write what a resumed training needs, and the list of broken examples."""
        if not self.accelerator.is_main_process:
            return
        self.state.num_broken = max(self.state.num_broken, self.broken.num_broken)
        resume_from.write(self.out, self._modules, self.optimizer, self.state, self.recipe.model_dump(mode="json"))
        if self.broken.num_broken:
            self.broken.write(self.out / BROKEN)

    def restore(self) -> None:
        """Take up the training that `out` holds."""
        self.state = resume_from.read(self.out, self._modules, self.optimizer)

    @property
    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"scorer": self.objective.scorer, "denoiser": self.objective.denoiser}

    def ended(self) -> Ended:
        """Return what it came to."""
        assert self.state.full is not None
        assert self.state.best is not None
        return Ended(self.out, self.state.step, self.state.full, self.state.best, self.state.num_broken)


def _frozen(recipe: Recipe, device: torch.device) -> Backbone:
    """Load the backbone without gradients of its own; checkpointed layers want training mode, which has no dropout."""
    backbone = backbones.load(
        recipe.backbone, weights=recipe.weights, revision=recipe.revision, device=str(device), dtype=recipe.dtype
    )
    backbone.model.requires_grad_(False)
    if recipe.gradient_checkpointing:
        enable = getattr(backbone.decoder, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
        (enable or backbone.decoder.gradient_checkpointing_enable)({"use_reentrant": False})
        backbone.decoder.train()
    return backbone


def _objective(recipe: Recipe, backbone: Backbone) -> Objective:
    width = backbone.decoder.config.hidden_size
    size = ScorerSize(width=width, hidden=recipe.hidden, heads=recipe.heads, layers=recipe.layers, ffn=recipe.ffn)
    torch.manual_seed(recipe.seed)
    scorer = Scorer(size).to(backbone.device)
    denoiser = Denoiser(size, "global" if recipe.variant == "global-denoiser" else "identity").to(backbone.device)
    return Objective(backbone, scorer, denoiser, recipe.variant, recipe.instruction)
