"""Golden vectors: stored decisions of the official codes, run through the engine."""
