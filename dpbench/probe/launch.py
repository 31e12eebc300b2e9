"""Open a site, run a probe on it and show its table: what `dpbench probe` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dpbench.diffprune.recipe import Recipe
from dpbench.machine.device import pick_device
from dpbench.probe import pictures
from dpbench.probe.coherence import COHERENCE
from dpbench.probe.landscape import LANDSCAPE
from dpbench.probe.noise import NOISE
from dpbench.probe.patch_site import open_patch_site
from dpbench.probe.projector_site import open_projector_site
from dpbench.probe.runner import probe
from dpbench.probe.settings import NoiseSettings, ProbeSettings
from dpbench.probe.site import Site
from dpbench.report.tables import probes
from dpbench.report.tables.table import Section
from dpbench.storage import files

OpenSite = Callable[[str, Console], Site]
KINDS = {kind.name: kind for kind in (COHERENCE, LANDSCAPE, NOISE)}


def launch(name: str, open_site: OpenSite, settings: ProbeSettings, folder: Path, *, device: str) -> list[Section]:
    """Measure what has no record yet and return the tables; noise also draws pictures beside the records.

    Args:
        name: of the probe.
        open_site: loads model, data and scorer.
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
    site = open_site(chosen, console)
    lines = probe(KINDS[name], site, settings, folder, device=chosen, console=console)
    if isinstance(settings, NoiseSettings):
        with console.status("drawing the noised patches"):
            pictures.write(site, settings, folder)
    return probes.sections(lines)


def at_projector(recipe: Recipe) -> OpenSite:
    """Return how to open the site behind a backbone's projector, for the scorer of a recipe."""
    return lambda device, console: open_projector_site(recipe, device=device, console=console)


def at_patches(classifier: str, data: str, seed: int) -> OpenSite:
    """Return how to open the site behind a classifier's patch embedding."""
    return lambda device, _: open_patch_site(classifier, data, seed=seed, device=device)
