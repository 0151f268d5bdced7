"""Run a script of this repository in several processes of one machine: `python -m dp2osr.launch SCRIPT [FLAGS...]`.

One process a GPU; without a GPU two that halve the threads of `OMP_NUM_THREADS`, because convolutions as small as tiny-sd2's
use two single threads better than one pair. This is `torchrun` without its report when a
process fails: a user's mistake stays one line and exit code 2.

The processes are sent the launcher's first SIGINT (Ctrl-C) or SIGTERM, and have ten minutes to end what they do, as a training its step.
A second SIGINT ends the launcher at once, and with it the processes.
"""

import logging
import os
import signal
import sys
import uuid
from types import FrameType

from dp2osr.errors import PARENT, end_with_parent


def count_processes(threads: int) -> int:
    import torch

    return torch.accelerator.device_count() or (2 if threads > 1 else 1)


SECONDS_TO_END = 600  # after a signal, before processes are killed; TORCH_ELASTIC_SHUTDOWN_TIMEOUT names others


class Interrupts:
    """The handler of SIGINT: the first is passed on to the processes, as torch's launcher does with SIGTERM; the second ends all."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        self.count += 1
        if self.count > 1:
            os.write(2, b"\nstopped at once; what is whole is kept, the same command does what is left\n")
            os._exit(128 + number)  # the processes see that their launcher is gone: `errors.end_with_parent`
        raise SignalException("interrupted", signal.Signals(number))


def main(argv: list[str]) -> int:
    if not argv or not argv[0].endswith(".py"):
        print("usage: python -m dp2osr.launch SCRIPT.py [FLAGS...]", file=sys.stderr)
        return 2
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    processes = count_processes(threads)
    if processes == 1:
        os.execv(sys.executable, [sys.executable, *argv])
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # of torch's launcher, whose loggers have levels of their own
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // processes))
    os.environ[PARENT] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, monitor_interval=0.1, signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or SECONDS_TO_END),
    )  # fmt: skip
    signal.signal(signal.SIGINT, Interrupts())
    try:
        elastic_launch(config, sys.executable)(*argv)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
