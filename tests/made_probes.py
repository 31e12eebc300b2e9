"""Records of `dpbench probe`, made up."""

from typing import Any

import numpy as np

from dpbench.probe.statistics import pack
from dpbench.storage.record import Probe

SHARED = {"spread": 0.2, "data": "toy", "batches": 4, "batch_size": 2, "held_out": 2, "points": 5}


def line(probe: str, setting: dict[str, Any], **values: tuple[float, ...]) -> Probe:
    return Probe(
        probe=probe,
        model="toy-llava",
        site="projector",
        checkpoint=None,
        step=0,
        setting=setting,
        shared=SHARED,
        values=values,
        sources="s",
        seconds=1.0,
        finished="2026-01-01T00:00:00+00:00",
        environment={},
    )


def coherence(way: str, rows: list[list[float]], after: tuple[float, ...] = ()) -> Probe:
    gradients = np.array(rows, dtype=np.float64)
    setting = {"way": way, "keep": 16, "tau": 0.15, "sources": "both"}
    values = {"gram": pack(gradients @ gradients.T), "losses": (1.0,) * len(rows)}
    return line("coherence", setting, **values, **({"after_step": after} if after else {}))


def landscape(way: str, number: int, losses: tuple[float, ...]) -> Probe:
    setting = {"way": way, "keep": 16, "tau": 0.15, "range": 1.0, "line": number}
    return line("landscape", setting, losses=losses)


def noise(form: str, top1: tuple[float, ...], keep: float | None = 0.5, tau: float | None = None) -> Probe:
    setting = {"form": form, "scores": None if keep is None else "random", "keep": keep, "tau": tau}
    return line("noise", setting, top1=top1, top5=(1.0, 1.0), losses=(0.5, 0.7))
