"""Examples that cannot be read: skipped, counted over all processes and listed; too many of them end a training."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import gather_object

from dpbench.errors import ConfigError
from dpbench.storage import files

BROKEN_RATIO = 0.01
BROKEN_AFTER = 100


@dataclass(slots=True)
class Broken:
    """Examples that were skipped because they cannot be read.

    Attributes:
        num_read: examples read, the broken ones included.
        times: how often each broken example was read (once per epoch), by its error text.
    """

    num_read: int = 0
    times: dict[str, int] = field(default_factory=dict)

    @property
    def num_broken(self) -> int:
        """Return how many of the examples read were broken."""
        return sum(self.times.values())

    @property
    def texts(self) -> list[str]:
        """Return the error text of every broken example once, in the order of their first reading."""
        return list(self.times)

    def add(self, num_read: int, texts: Iterable[str]) -> None:
        """Count examples that were read, and by error text the broken ones among them."""
        self.num_read += num_read
        for text in texts:
            self.times[text] = self.times.get(text, 0) + 1

    def share(self, total: "Broken") -> None:
        """Add to `total` what every process counted since the last call; `total` is then the same in all of them."""
        parts: list[Broken] = gather_object([self])
        for part in parts:
            total.add(part.num_read, [text for text, times in part.times.items() for _ in range(times)])
        self.num_read, self.times = 0, {}

    def check(self, *, final: bool = False) -> None:
        """Stop the training if more than 1 % is broken, once 100 were read; with `final`, after any number.

        Raises:
            ConfigError: more are broken; the message has their number, the share and the first three texts.
        """
        if self.num_broken <= BROKEN_RATIO * self.num_read or (self.num_read < BROKEN_AFTER and not final):
            return
        raise ConfigError(
            f"--data: {self.num_broken} of {self.num_read} examples read are broken, "
            f"{self.num_broken / self.num_read:.1%} where {BROKEN_RATIO:.0%} is allowed; repair or remove them: "
            f"{'; '.join(self.texts[:3])}"
        )

    def write(self, path: Path) -> None:
        """Write the broken examples as JSON lines, over what the file had.

        Raises:
            StorageError: the disk has an error; the file is as it was.
        """
        lines = [json.dumps({"broken": text, "times": times}) + "\n" for text, times in self.times.items()]
        files.replace(path, "".join(lines).encode())

    @classmethod
    def read(cls, path: Path, num_read: int) -> "Broken":
        """Return what `write` left after `num_read` examples; without a file none were broken."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = map(json.loads, lines)
        return cls(num_read, {row["broken"]: row["times"] for row in rows})
