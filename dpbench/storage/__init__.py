"""Files that survive a crash: journals, records, locks. No torch."""
