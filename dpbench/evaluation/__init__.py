"""Run a manifest: answer its cells, journal, score, record; split over processes and merge."""
