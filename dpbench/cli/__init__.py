"""The command line: `commands` lists the commands; the other modules parse flags and format messages."""
