"""Run everything that `dpbench check` runs: the suite, and golden vectors if a folder is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpbench import registry
from dpbench.conformance import suite
from dpbench.conformance.suite import Finding
from dpbench.conformance.vectors import run as vectors
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
    settings = registry.parse_params(list(params))
    method, paths = registry.load(name, settings), vectors.find(name, goldens) if goldens else []
    findings = tuple(suite.check(name, settings, tuple(backbones) or None))
    return Report(findings, tuple(vectors.check(method, path) for path in paths))
