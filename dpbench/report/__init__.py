"""From records to tables. No torch."""
