"""Time, memory, energy and FLOPs of each method, stage by stage."""
