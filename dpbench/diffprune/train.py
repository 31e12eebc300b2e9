"""Train a scorer: the frozen backbone, one caption loss, a cosine for the learning rate and one for the temperature.

Everything random is a function of (seed, step). So a checkpoint is weights, optimiser state and a step number, and a
resumed training ends in the same bits as one that was never stopped.

`setup.py` builds scorer and denoiser, `step.py` makes one step, `validation.py` decides which scorer is kept and
`resume.py` saves checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from dpbench.diffprune import processes, step, training_folder, validation
from dpbench.diffprune import resume as resume_from
from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import training_batches
from dpbench.diffprune.example import Example
from dpbench.diffprune.interruption import Interruption, LateError, explain_lost_reader, interruptible
from dpbench.diffprune.logbook import Logbook, open_logbook
from dpbench.diffprune.micro_batch import run_within_memory
from dpbench.diffprune.recipe import Recipe
from dpbench.diffprune.resume import STATE, Progress
from dpbench.diffprune.setup import Setup, build_setup
from dpbench.diffprune.spread import measure_spread
from dpbench.errors import ConfigError, DpbenchError
from dpbench.machine.stopping import INTERRUPTED, Stopped
from dpbench.storage import files

BROKEN = "broken.jsonl"


@dataclass(frozen=True, slots=True)
class Ended:
    """The result of a training.

    Attributes:
        folder: where scorer, card and log are.
        step: steps done.
        full: validation loss per caption token of the unpruned backbone.
        best: the lowest validation loss under hard top-k, which is that of the scorer on disk.
        num_broken: examples that could not be read.
        is_main_process: False in all processes of a training but one.
    """

    folder: Path
    step: int
    full: float
    best: float
    num_broken: int
    is_main_process: bool = True


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, device: str = "auto", console: Console | None = None
) -> Ended:
    """Train a scorer and write the best one, by validation under hard top-k, to `out`.

    Args:
        recipe: every constant.
        out: folder for the scorer, its card, the log and the checkpoint to resume from.
        resume: resume the training in `out`.
        device: "auto", "cpu" or "cuda".
        console: shows the progress.

    Raises:
        ConfigError: `out` has a training and `resume` is False, or has another training, or one that is
            running, or cannot be written to; or the data cannot be used.
        MissingError: weights or data are missing.
        StorageError: the disk is full; the last checkpoint stays.
        Stopped: a signal stopped it; says which flags resume it.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    processes.end_with_launcher(accelerator)
    with processes.one_voice(accelerator), explain_lost_reader():
        training_folder.check(recipe, out, is_resumed=resume)
        files.check_writable(out)
        # no process may begin to write before all have looked
        accelerator.wait_for_everyone()
        if device == "cuda" and accelerator.device.type != "cuda":
            raise ConfigError("--device cuda: torch sees no GPU here; remove --device, or give --device cpu")
        setup = build_setup(recipe, accelerator, processes.console_of(accelerator, console))
        return _run(Training(setup, out), resume)


def _run(training: Training, resume: bool) -> Ended:
    out = training.out
    try:
        with files.explain_disk_errors(out), training_folder.exclusive(out, training.setup.accelerator):
            if resume:
                training.restore()
            with interruptible() as interruption:
                training.run(interruption)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = stop.code if isinstance(stop, SystemExit) else INTERRUPTED
        flags = ("--resume",) if (out / STATE).is_file() else ()
        raise Stopped(code, flags, is_told=training.setup.accelerator.is_main_process) from None
    return training.result()


class Training:
    """The loop of one training: steps, validations and checkpoints, all in the folder `out`."""

    def __init__(self, setup: Setup, out: Path) -> None:
        self.setup, self.out = setup, out
        self.progress = Progress(0, setup.micro_batch, num_held_out=len(setup.split.validation))
        self.interruption = Interruption()
        self.broken, self.own_broken = setup.broken, Broken()
        self.saved_at = 0.0

    def run(self, interruption: Interruption) -> None:
        """Train to the last step, until validation stops improving, or until a signal stops it.

        Raises:
            KeyboardInterrupt: SIGINT stopped it, and a checkpoint is saved.
            SystemExit: SIGTERM stopped it, likewise.
        """
        if self.progress.finished:
            self._print(f"{self.out}: this training is finished, there is nothing to resume")
            return
        self.interruption = interruption
        if not (self.out / STATE).is_file():
            # before the first scorer: a folder with a scorer but no checkpoint can be neither begun nor resumed
            self.save()
        logged_until = self.progress.step if self.progress.full is not None else -1
        with open_logbook(
            self.out,
            self.setup.console,
            title=self.setup.recipe.variant,
            num_steps=self.setup.num_steps,
            step=logged_until,
            enabled=self.setup.accelerator.is_main_process,
        ) as book:
            try:
                self._train(book)
            except LateError:
                self._print("the step takes too long to wait for and is dropped")
        if self.interruption.is_requested and not self.progress.finished:
            self.save()
            self._print(f"stopped after step {self.progress.step}; --resume goes on from there")
            self.interruption.exit()
        self.broken.check(final=True)

    def _train(self, book: Logbook) -> None:
        """Run the validation that is due, then the remaining steps."""
        is_due = validation.is_due(self.setup, self.progress)
        if self.progress.full is None:
            self._measure_spread()
        if self.progress.full is None or (is_due and self.progress.validated < self.progress.step):
            self._validate(book)
            self.save()
        if self.progress.finished:
            return
        for examples in self._batches():
            self._advance(examples, book)
            if self.progress.finished or self.interruption.is_requested:
                break

    def _advance(self, examples: list[Example], book: Logbook) -> None:
        """Make a step, then validate, save and check the broken examples if they are due."""
        start = time.perf_counter()
        row = step.optimizer_step(self.setup, self.progress, examples, self.interruption)
        self.own_broken.share(self.broken)
        book.log_step(row, self.setup.recipe.batch_size)
        is_due = validation.is_due(self.setup, self.progress)
        if is_due:
            self._validate(book)
        self.progress.seconds += time.perf_counter() - start
        if is_due or self.progress.seconds - self.saved_at > 60 * self.setup.recipe.save_minutes:
            self.save()
            self.saved_at = self.progress.seconds
        self.broken.check()

    def _validate(self, book: Logbook) -> None:
        book.log_validation(validation.validate(self.setup, self.progress, self.out, self.interruption))

    def _measure_spread(self) -> None:
        setup, progress = self.setup, self.progress
        progress.spread = run_within_memory(
            lambda: measure_spread(setup, progress.micro_batch), progress, setup.console
        )

    def _batches(self) -> Iterator[list[Example]]:
        return training_batches(
            self.setup.source,
            self.setup.split.training,
            seed=self.setup.recipe.seed,
            batch_size=self.setup.recipe.batch_size,
            first_step=self.progress.step,
            num_steps=self.setup.num_steps - self.progress.step,
            num_workers=self.setup.recipe.num_workers,
            broken=self.own_broken,
            check=self.setup.objective.backbone.check_image,
            caption=self.setup.recipe.caption,
            rank=self.setup.accelerator.process_index,
            world=self.setup.accelerator.num_processes,
        )

    def save(self) -> None:
        """Write the checkpoint to resume from, and the list of broken examples, from the main process."""
        if not self.setup.accelerator.is_main_process:
            return
        self.progress.num_broken = max(self.progress.num_broken, self.broken.num_broken)
        recipe = self.setup.recipe.model_dump(mode="json")
        resume_from.write(self.out, self.setup.modules, self.setup.optimizer, self.progress, recipe)
        if self.broken.num_broken:
            self.broken.write(self.out / BROKEN)

    def restore(self) -> None:
        """Load the checkpoint in `out`.

        Raises:
            ConfigError: it is damaged, or its validation losses are over other images.
        """
        num_held_out = self.progress.num_held_out
        self.progress = resume_from.read(self.out, self.setup.modules, self.setup.optimizer)
        if self.progress.num_held_out not in (0, num_held_out):
            raise ConfigError(
                f"--resume: {self.out} was begun with {self.progress.num_held_out} held-out images that could be "
                f"read, now there are {num_held_out}; restore the data, or begin again with another --out"
            )
        recipe = self.setup.recipe
        if resume_from.read_recipe(self.out)["micro_batch"] != recipe.micro_batch:
            self.progress.micro_batch = self.setup.micro_batch
        num_read = self.broken.num_read + self.progress.step * recipe.batch_size
        self.broken = Broken.read(self.out / BROKEN, num_read)

    def result(self) -> Ended:
        """Return the result of a training that has ended.

        Raises:
            DpbenchError: it has none, because no validation loss was finite.
        """
        progress = self.progress
        assert progress.full is not None
        if progress.best is None:
            raise DpbenchError(
                f"{self.out}: no validation loss was finite, so no scorer was kept; lower --param lr, or give --dtype "
                "float32"
            )
        is_main = self.setup.accelerator.is_main_process
        return Ended(self.out, progress.step, progress.full, progress.best, progress.num_broken, is_main)

    def _print(self, line: str) -> None:
        """Print a line, once however many processes there are."""
        if self.setup.accelerator.is_main_process:
            self.setup.console.print(line)
