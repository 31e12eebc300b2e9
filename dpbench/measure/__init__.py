"""Timing, FLOPs and the environment they were measured in."""
