"""YAML as plain data, by the safe loader: no objects, no key twice, no aliases that swell to gigabytes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

MOST_CHARACTERS = 1 << 20
MOST_NODES = 100_000
"""Values and keys, every alias counted as what it stands for."""


class YamlError(ValueError):
    """A text is not plain YAML.

    Attributes:
        line: where, from 1; None where it is the text as a whole.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """Return what a text holds, and its nodes, which know their lines; None for an empty text.

    Raises:
        YamlError: it is not YAML, is too large, too deep or refers to itself, or a mapping has a key twice.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, {})
        return yaml.safe_load(text), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(f"not YAML: {error.problem}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise YamlError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise YamlError("not YAML that can be read: it is nested too deep") from None
    except YamlError:
        raise
    except (ValueError, OverflowError) as error:  # a date or number that is none
        raise YamlError(f"not YAML: {str(error)[:200]}") from None


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes there are with every alias written out; on the way refuse what is no plain data."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # until it is counted: a node inside itself has no end
        known[id(node)] = 1 + sum(_count(each, known) for each in _inside(node))
    if known[id(node)] > MOST_NODES:
        raise YamlError(f"aliases and values make more than {MOST_NODES:,} together", node.start_mark.line + 1)
    return known[id(node)]


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    if isinstance(node, yaml.MappingNode):
        keys: set[Any] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise YamlError(f"{key.value}: the key is there twice; leave one out", key.start_mark.line + 1)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            yield key
            yield value
