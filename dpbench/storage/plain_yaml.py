"""YAML as plain data: no objects, no repeated keys, no aliases that expand to gigabytes. No torch.

Scalars are read as people write them. That is YAML 1.2 but for octal and hexadecimal numbers; PyYAML reads YAML 1.1.
Numbers are decimal: 016 is sixteen and 1e-4 a number. Only true and false are truth values. Everything else is text,
as yes, no, 0o17, 0x10, 1_000, 12:30 and 2024-01-01.
"""

from __future__ import annotations

import re
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


class _Loader(yaml.SafeLoader):
    """Reads the scalars of the module's docstring, and objects of no kind."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 of its own, without those of YAML 1.1


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that this module or a reader of YAML 1.1 would take for something else."""


_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""By tag, how a scalar without quotes looks, and what it begins with; the first that fits counts."""
for _tag, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", loader.construct_scalar(node).lower()))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def dump(data: Any, *, one_line: bool = False) -> str:
    """Return data as YAML that `load` reads as the same data, and every other reader too."""
    width = 10**6 if one_line else None
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=one_line, width=width
    )


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """Return the data in a text and its root node, which knows line numbers; None and None for an empty text.

    Raises:
        YamlError: it is not YAML, too large, too deep or refers to itself, or a mapping has a key twice.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    try:
        node = _Loader(text).get_single_node()
        if node is not None:
            _count(node, {})
        return _Loader(text).get_single_data(), node
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
