"""Options of `dpbench profile` alone: what is measured, how often, and what is only counted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dpbench.cli.options import OUTPUT, Sweep

MEASUREMENT = "Measurement"


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=MEASUREMENT, **settings)


BatchSizes = Annotated[list[str] | None, _option(help="Prompts at once; several with commas. [default: 1]")]
ImageSize = Annotated[str | None, _option(help="Pixels: 336 or HEIGHTxWIDTH.")]
TextTokens = Annotated[int, _option(min=1, help="Positions of the prompt outside its images.")]
Repetitions = Annotated[int | None, _option(min=1, help="Repetitions kept, at least. [default: 50; 5 in a sweep]")]
Seconds = Annotated[float | None, _option(min=0, help="Spent in each method, at least. [default: 10; 2 for toy-llava]")]
Warmups = Annotated[int, _option(min=0, help="Repetitions before, at least, until times are stable.")]
Answers = Annotated[int, _option(min=0, help="Whole answers decoded by each method.")]
Compiled = Annotated[bool, _option("--compile", help="Also with torch.compile, as a table of its own.")]
CudaGraph = Annotated[bool, _option("--cuda-graph", help="Also with CUDA graphs, likewise.")]
VisualSweep = Annotated[Sweep | None, _option(help="Vary the number of images in a prompt.")]
FlopsOnly = Annotated[bool, _option("--flops-only", help="Count FLOPs from shapes; no weights, no times.")]
Verify = Annotated[bool, _option("--verify", help="With --flops-only: count by torch and by fvcore as well.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for results; with --flops-only also for its tables. [default: results]", rich_help_panel=OUTPUT
    ),
]
