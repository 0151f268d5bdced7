"""How a CPU's threads wait for each other."""

import os
import sys

SPINS = "5000"  # of a waiting thread before it sleeps, some tens of microseconds; libgomp's own 300,000 are milliseconds
OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def sleep_soon() -> None:
    """Let a thread that waits for another one spin briefly, before PyTorch is imported; settings of the user's own stay.

    Where other work shares the cores, the thread that is waited for may not be running: spinning then takes the time that it needs.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in OF_THE_USER):
        os.environ["GOMP_SPINCOUNT"] = SPINS
