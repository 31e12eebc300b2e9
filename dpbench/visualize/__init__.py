"""`dpbench visualize`: what methods keep of one image."""
