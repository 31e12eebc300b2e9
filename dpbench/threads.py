"""How many CPU threads torch computes with: a number that stays, as the last bits of a matrix product follow it."""

from __future__ import annotations

from threading import Thread

import torch


def settle() -> None:
    """Have matrix products use the threads torch has, and no fewer.

    As long as nobody has set that number MKL may take fewer from one product to the next, and the same program gives
    other last bits once anything in the process has set it.
    """
    torch.set_num_threads(torch.get_num_threads())


def alone(others: int) -> None:
    """Let this thread compute by itself.

    Args:
        others: of how many threads the later ones dispose; torch would give them this one's.
    """
    torch.get_num_threads()  # what a new thread is given is given when it first asks
    torch.set_num_threads(1)
    restoring = Thread(target=torch.set_num_threads, args=(others,))
    restoring.start()
    restoring.join()
