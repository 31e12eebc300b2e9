"""Show progress: a bar in a terminal, one line a minute in a log file."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

EVERY = 60.0
"""Seconds between two lines of a log."""
WIDTH = 120
"""Characters of such a line."""


class Bar(Progress):
    """A progress bar that prints its columns as a line now and then if the output is not a terminal."""

    last_line_s = -EVERY

    def start(self) -> None:
        """Start the display; the first line comes after `EVERY` seconds."""
        super().start()
        self.last_line_s = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Update a task, and print a line if no bar is drawn and `EVERY` seconds have passed."""
        super().update(task_id, **changes)
        is_drawn = self.console.is_terminal and not self.console.is_dumb_terminal
        if is_drawn or self.disable or time.monotonic() - self.last_line_s < EVERY:
            return
        self.last_line_s = time.monotonic()
        Console(file=self.console.file, width=WIDTH).print(self.make_tasks_table(self.tasks))
