"""Shell commands as a terminal shows them."""

from __future__ import annotations

import re


def wrap_command(command: str, width: int) -> str:
    """Return a shell command, continued with a backslash where a line would be longer than the terminal."""
    words = re.findall(r"(?:'[^']*'|\S)+", command)
    lines, line = [], " "
    for word in words:
        if len(line) + 1 + len(word) + 2 > width and line.strip():
            lines.append(f"{line} \\")
            line = "     "
        line += f" {word}"
    return "\n".join([*lines, line])
