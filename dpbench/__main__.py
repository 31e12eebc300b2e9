"""`python -m dpbench`, and with it `accelerate launch -m dpbench train ...`."""

from dpbench.cli.commands import main

main()
