"""The figures of a report. No torch."""
