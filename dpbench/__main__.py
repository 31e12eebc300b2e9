"""`python -m dpbench`, and with it `accelerate launch -m dpbench train ...`."""

from dpbench.cli import main

main()
