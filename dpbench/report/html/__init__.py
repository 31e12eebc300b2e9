"""The report as one HTML page. No torch."""
