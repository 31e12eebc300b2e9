"""Makers of records, profiles, answers and run folders, for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpbench.storage import record
from dpbench.storage.journal import Answer, Journal
from dpbench.storage.record import Profile, Record

CELL: Mapping[str, Any] = {
    "backbone": "toy-llava", "weights": None, "revision": None, "quantize": None, "method": "none", "params": {},
    "keep": None, "prune_rate": None, "budget_kind": "mean", "task": "pope", "prompt": "template", "ocr": False,
    "wording": "lmms-eval", "reading": "first-word", "image_aspect": "pad", "grids": None, "dtype": "float32",
    "attention": "sdpa", "anyres": "per-view", "newline": "drop", "min_pixels": None, "max_pixels": None, "seed": 0,
    "limit": 40, "fingerprints": {},
}  # fmt: skip


def make_record(method: str, keep: int | None, task: str, score: float, **cell: Any) -> Record:
    """Return a record of a finished cell."""
    return Record(
        cell_id="-".join([method, str(keep), task, *(f"{name}={value}" for name, value in cell.items())]),
        cell={**CELL, "method": method, "keep": keep, "task": task, **cell},
        metrics={},
        score=score,
        num_samples=40,
        num_failed=0,
        feature_cache={},
        visual_tokens_per_layer=(float(keep or 144),) * 2,
        wall_s=1.0,
        finished="2026-11-24T12:00:00+00:00",
        versions={},
        environment={"device": "cpu", "cpu": "a processor"},
    )


def make_profile(method: str, budget: str, times: Sequence[float], **changes: Any) -> Profile:
    """Return a profile whose stages all take the same times."""
    environment = {"device": "cpu", "cpu": "a processor", "dtype": "float32", "versions": {"torch": "2.14.1"}}
    stages = ("encode", "reduce", "prefill", "ttft") if method != "none" else ("encode", "prefill", "ttft")
    fields: dict[str, Any] = {
        "backbone": "toy-llava",
        "weights": "package",
        "method": method,
        "params": {},
        "budget": budget,
        "configuration": "eager",
        "batch_size": 1,
        "num_images": 1,
        "image_hw": (168, 168),
        "num_visual": 144.0 if method == "none" else 16.0,
        "visual_tokens_per_layer": (144, 144) if method == "none" else (16, 16),
        "num_text": 66,
        "stages_ms": {stage: tuple(times) for stage in stages},
        "warmups": 5,
        "stages_flops": {"encode": 1_000_000_000, "ttft": 2_000_000_000},
        "peak_bytes": {"prefill": 3 * 2**20},
        "weights_bytes": 2**20,
        "kv_bytes_per_layer": (2**19, 2**19),
        "joules": {},
        "bound_ms": {},
        "rates": {},
        "flags": (),
        "monitor": {},
        "environment": environment,
    }
    return Profile(**{**fields, **changes})


def make_answer(task: str, doc_id: int, image: str, scores: Mapping[str, Any], **changes: Any) -> Answer:
    """Return one answer of a journal."""
    fields: dict[str, Any] = {
        "task": task,
        "doc_id": doc_id,
        "image_hash": image,
        "prompt_hash": f"prompt {doc_id}",
        "image_group": image,
        "answer": "",
        "scores": scores,
        "visual_tokens": (16, 16),
        "kept": (None,),
        "failure": None,
        "seed": 0,
        "shard": 0,
        "ms": 1.0,
        "cache_hits": 0,
        "encoded": 1,
    }
    return Answer(**{**fields, **changes})


def write_run(folder: Path, records: Sequence[Record], journals: Mapping[str, Sequence[Answer]] | None = None) -> Path:
    """Write a run folder: records, and journals by cell id."""
    for line in records:
        record.append(folder / "records.jsonl", line)
    for cell_id, answers in (journals or {}).items():
        Journal(folder / "samples" / f"{cell_id}.jsonl").append(answers)
    return folder
