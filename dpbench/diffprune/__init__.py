"""DiffPrune: a scorer trained through a fully differentiable path, deployed as a hard top-k."""
