"""A cell: what runs, resumes and is recorded as one. No torch.

A cell's JSON is flat: the fields of its backbone entry, budget and protocol stand side by side, as in every record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

from dpbench import registry
from dpbench.budget import BudgetRequest
from dpbench.manifest.schema import BackboneEntry, Manifest, MethodEntry, Protocol

WEIGHTS_FIELDS = tuple(name for name in BackboneEntry.model_fields if name not in ("name", "device_map"))
"""Fields of a backbone entry that identify a cell; where layers are placed does not."""
PROTOCOL_FIELDS = tuple(name for name in Protocol.model_fields if name not in ("preset", "batch_size", "seeds"))
"""Fields of a protocol that identify a cell; a cell has one seed, and any batch size gives the same answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One (backbone, method, budget, task) under one protocol: the unit that runs, resumes and is recorded.

    Attributes:
        entry: the backbone and its weights.
        method: its name.
        params: its hyper-parameters.
        budget: as requested.
        budget_kind: what the budget counts for methods that cut inside the LLM.
        task: its name.
        protocol: resolved, with a value in every field that applies to the backbone.
        seed: of the method's randomness.
        fingerprints: hashes and versions of everything else that can change the answers.
    """

    entry: BackboneEntry
    method: str
    params: Mapping[str, Any]
    budget: BudgetRequest
    budget_kind: Literal["mean", "final"]
    task: str
    protocol: Protocol
    seed: int
    fingerprints: Mapping[str, str]

    @property
    def backbone(self) -> str:
        """Return the backbone's name."""
        return self.entry.name

    def to_json(self) -> dict[str, Any]:
        """Return the flat mapping that a record holds."""
        return {
            "backbone": self.entry.name,
            **{name: getattr(self.entry, name) for name in WEIGHTS_FIELDS},
            "method": self.method,
            "params": dict(self.params),
            "keep": self.budget.keep,
            "prune_rate": self.budget.prune_rate,
            "budget_kind": self.budget_kind,
            "task": self.task,
            **{name: getattr(self.protocol, name) for name in PROTOCOL_FIELDS},
            "seed": self.seed,
            "fingerprints": dict(self.fingerprints),
        }

    @property
    def id(self) -> str:
        """Return the cell's identity: sixteen hex digits over `to_json`."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False)
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Return a short name for progress bars and messages."""
        return label_of(self.to_json())


def label_of(cell: Mapping[str, Any]) -> str:
    """Return a short name of a cell as records hold it: method[params] @ budget on benchmark."""
    params = ",".join(f"{name}={value}" for name, value in cell["params"].items())
    budget = BudgetRequest(keep=cell["keep"], prune_rate=cell["prune_rate"])
    return f"{cell['method']}{f'[{params}]' if params else ''} @ {budget.label} on {cell['task']}"


def cells(manifest: Manifest) -> Iterator[Cell]:
    """Expand a manifest into cells without fingerprints, one backbone after the other.

    The unpruned backbone has one cell per task and seed.

    Raises:
        ConfigError: a method's parameters are wrong.
    """
    for part in manifest.parts():
        protocol = part.resolved_protocol()
        for seed in _all_seeds(part):
            for method in part.methods:
                if seed in (method.seeds or protocol.seeds):
                    yield from _cells_of(part, method, protocol, seed)


def _all_seeds(manifest: Manifest) -> list[int]:
    lists = [method.seeds or manifest.protocol.seeds for method in manifest.methods]
    return list(dict.fromkeys(seed for seeds in (manifest.protocol.seeds, *lists) for seed in seeds))


def _cells_of(part: Manifest, method: MethodEntry, protocol: Protocol, seed: int) -> Iterator[Cell]:
    params = method.params_on(part.backbone.name)
    registry.load(method.name, params)
    for budget in part.budget_requests(method.name):
        for task in part.tasks:
            yield Cell(
                entry=part.backbone,
                method=method.name,
                params=params,
                budget=budget,
                budget_kind=part.budgets.kind if part.budgets else "mean",
                task=task,
                protocol=protocol,
                seed=seed,
                fingerprints={},
            )


def with_fingerprints(cell: Cell, fingerprints: Mapping[str, str]) -> Cell:
    """Return the cell with the hashes and versions that it runs under."""
    return replace(cell, fingerprints=dict(fingerprints))
