"""Open a site, run a probe on it and show its table: what `dpbench probe` does."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dpbench.diffprune.recipe import Recipe
from dpbench.machine.device import pick_device
from dpbench.probe.coherence import COHERENCE
from dpbench.probe.landscape import LANDSCAPE
from dpbench.probe.noise import NOISE
from dpbench.probe.projector_site import open_projector_site
from dpbench.probe.runner import probe
from dpbench.probe.settings import ProbeSettings
from dpbench.report.tables import probes
from dpbench.report.tables.render import render_all
from dpbench.storage import files

KINDS = {kind.name: kind for kind in (COHERENCE, LANDSCAPE, NOISE)}


def launch(name: str, recipe: Recipe, settings: ProbeSettings, folder: Path, *, device: str) -> str:
    """Measure what has no record yet and return the table as Markdown.

    Args:
        name: of the probe.
        recipe: backbone, data and sizes of the scorer, as of a training.
        settings: what is measured.
        folder: gets the records.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: a setting cannot be used, or the folder cannot be written to.
        MissingError: weights or data are missing.
        StorageError: the disk is full; all finished records stay.
    """
    files.check_writable(folder)
    console, chosen = Console(stderr=True), pick_device(device)
    site = open_projector_site(recipe, device=chosen, console=console)
    lines = probe(KINDS[name], site, settings, folder, device=chosen, console=console)
    return render_all(probes.sections(lines), "markdown")
