"""The backbones by name, and how to load one. Listing them imports no torch."""

from dpbench.backbones.families import FAMILIES, LMMS_EVAL_PIXELS, RANDOM, VICUNA_V1, Family, find
from dpbench.backbones.loading import load
from dpbench.backbones.weights import locate

__all__ = ["FAMILIES", "LMMS_EVAL_PIXELS", "RANDOM", "VICUNA_V1", "Family", "find", "load", "locate"]
