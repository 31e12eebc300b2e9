"""dpbench: train, compare and time visual-token pruning methods for vision-language models."""

__version__ = "0.1.0"
