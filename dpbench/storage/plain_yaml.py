"""YAML as plain data: no objects, no repeated keys, no aliases that expand to gigabytes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

MOST_CHARACTERS = 1 << 20
MOST_NODES = 100_000
"""Values and keys, with every alias counted as the nodes that it stands for."""


class YamlError(ValueError):
    """A text is not plain YAML.

    Attributes:
        line: 1-based; None if the error is about the whole text.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the data in a text and its root node, which knows line numbers; None and None for an empty text.

    Raises:
        YamlError: it is not YAML, too large, too deep or refers to itself, or a mapping has a key twice.
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
        raise YamlError("not readable YAML: it is nested too deeply") from None
    except YamlError:
        raise
    except (ValueError, OverflowError) as error:  # such as the date 2024-99-99
        raise YamlError(f"not YAML: {str(error)[:200]}") from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of nodes with every alias expanded; raise if there are too many or a key is repeated."""
    if id(node) not in counts:
        counts[id(node)] = MOST_NODES + 1  # while it is being counted, so that a node inside itself is too large
        counts[id(node)] = 1 + sum(_count(child, counts) for child in _children(node))
    if counts[id(node)] > MOST_NODES:
        raise YamlError(f"aliases and values make more than {MOST_NODES:,} nodes", node.start_mark.line + 1)
    return counts[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    if isinstance(node, yaml.MappingNode):
        keys: set[Any] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise YamlError(f"{key.value}: this key is there twice; remove one", key.start_mark.line + 1)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            yield key
            yield value
