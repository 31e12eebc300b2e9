"""The machine that runs: device, memory, clocks, interruptions. Nothing here knows a method or a model."""
