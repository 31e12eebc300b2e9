"""The embedded backbone: synthetic scenes, benchmarks about them, and the recipe that trains toy-llava."""
