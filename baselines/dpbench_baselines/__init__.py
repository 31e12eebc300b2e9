"""Clean re-implementations of published visual-token pruning methods, one file each."""
