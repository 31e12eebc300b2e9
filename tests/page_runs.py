"""A run and a data root made by hand for the tests of the page: five questions, some of them hostile."""

import io
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from made_records import make_answer, make_profile, make_record, write_run
from PIL import Image

from dpbench.storage import record
from dpbench.storage.journal import Answer, pack_indices
from dpbench.tasks import aggregators

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
QUESTIONS = ("Is there a circle?", HOSTILE, "Is there a square?", "Is there a cross?", "Is there a star?")
TRUTHS = ("yes", "no", "yes", "yes", "no")
SAID = {
    "none": TRUTHS,
    "grid": ("yes", "yes", "no", "yes", HOSTILE + "</script>"),
    "holov": ("no", "no", "no", "yes", "no"),
}


def image_of(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (96, 96), (40 * number, 200 - 40 * number, 90)).save(stream, "PNG")
    return stream.getvalue()


def data_root(folder: Path) -> Path:
    """Write POPE's parquet file."""
    rows = [
        {"question_id": str(n), "question": q, "answer": a, "image": {"bytes": image_of(n), "path": None}}
        for n, (q, a) in enumerate(zip(QUESTIONS, TRUTHS, strict=True))
    ]
    place = folder / "POPE" / "data"
    place.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), place / "test-00000-of-00001.parquet", row_group_size=2)
    return folder


def journal(method: str) -> list[Answer]:
    """Return a method's answers; four of holov's rows are zeros, as where a quota is larger than its crop."""
    indices = {"none": range(144), "grid": range(0, 32, 2), "holov": [*range(0, 24, 2), -1, -1, -1, -1]}[method]
    lines = []
    for number, (said, truth) in enumerate(zip(SAID[method], TRUTHS, strict=True)):
        found: dict[str, Any] = {"question_id": str(number), "score": 0, "prediction": said, "ground_truth": truth}
        line = make_answer("pope", number, sha256(image_of(number)).hexdigest()[:16], {"pope_f1_score": found})
        fields = {name: getattr(line, name) for name in Answer.__dataclass_fields__}
        read = (len(indices),) * 2
        lines.append(Answer(**{**fields, "answer": said, "kept": (pack_indices(indices, 144),), "visual_tokens": read}))
    return lines


def f1(method: str) -> float:
    """Return POPE's score of a method: all questions are of one split."""
    return 100 * aggregators.metrics("pope", [answer.scores for answer in journal(method)])["pope_f1_score"]


def run(folder: Path) -> Path:
    """Write a run of three methods with journals, and a profile."""
    rows = {name: make_record(name, None if name == "none" else 16, "pope", f1(name)) for name in SAID}
    rows = {name: replace(row, num_samples=len(QUESTIONS)) for name, row in rows.items()}
    # Five questions are too few to count for retention: eighty of a benchmark without journals do.
    scores = {"none": 80.0, "grid": 40.0, "holov": 60.0}
    counting = [replace(make_record(n, rows[n].cell["keep"], "vqav2", scores[n]), num_samples=80) for n in SAID]
    write_run(folder, [*rows.values(), *counting], {rows[name].cell_id: journal(name) for name in SAID})
    for each in (make_profile("none", "all", (8,)), make_profile("grid", "16", (3,))):
        record.append(folder / "profile.jsonl", each)
    return folder
