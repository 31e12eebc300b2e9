"""Run everything that `dpbench check` runs: the suite, and golden vectors if a folder is named.

Names are looked up before torch is imported, so that a misspelt one is told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpbench import registry
from dpbench.conformance import BACKBONES
from dpbench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from dpbench.conformance.suite import Finding
    from dpbench.conformance.vectors.run import VectorResult


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of all checks of a method.

    Attributes:
        findings: of the suite, one per check and backbone.
        vectors: one per golden vector.
    """

    findings: tuple[Finding, ...]
    vectors: tuple[VectorResult, ...]

    @property
    def passed(self) -> bool:
        """Return True if every check and every vector passed."""
        return all(finding.passed for finding in self.findings) and all(vector.passed for vector in self.vectors)


def run_checks(name: str, params: Sequence[str], backbones: Sequence[str], goldens: Path | None) -> Report:
    """Run the suite on a method, and its golden vectors.

    Args:
        name: a registered method.
        params: its hyper-parameters, as name=value.
        backbones: miniature backbones to run the suite on; empty for all.
        goldens: folder with the method's vectors, or None for none.

    Raises:
        ConfigError: unknown method, parameter or backbone.
        MissingError: the folder has no vectors of this method.
    """
    registry.find(name)
    settings = registry.parse_params(list(params))
    for backbone in backbones:
        if backbone not in BACKBONES:
            raise ConfigError(f"--backbone: there is no {backbone!r} to check on; {did_you_mean(backbone, BACKBONES)}")
    from dpbench.conformance import suite
    from dpbench.conformance.vectors import run as vectors

    method, paths = registry.load(name, settings), vectors.find(name, goldens) if goldens else []
    findings = tuple(suite.check(name, settings, tuple(backbones) or None))
    return Report(findings, tuple(vectors.check(method, path) for path in paths))
