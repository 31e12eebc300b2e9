"""What long work shows: a bar in a terminal, a line a minute in a batch job's log."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

EVERY = 60.0
"""Seconds between two lines where no bar can be drawn."""
WIDTH = 120
"""Of such a line."""


class Bar(Progress):
    """A progress bar whose columns become a line now and then where there is no terminal to draw it in."""

    told = -EVERY

    def start(self) -> None:
        """Begin to show; the first line comes after `EVERY` seconds."""
        super().start()
        self.told = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change what is shown of a task, and tell it where it is not drawn."""
        super().update(task_id, **changes)
        drawn = self.console.is_terminal and not self.console.is_dumb_terminal
        if drawn or self.disable or time.monotonic() - self.told < EVERY:
            return
        self.told = time.monotonic()
        Console(file=self.console.file, width=WIDTH).print(self.make_tasks_table(self.tasks))
