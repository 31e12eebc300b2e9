"""Reports on a terminal: tables that fit its width, and a short form that says what a run found."""
