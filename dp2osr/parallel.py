"""Independent items over worker processes of one machine, with one progress bar."""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from tqdm import tqdm

from dp2osr.errors import UserError


def process_map(function, items, num_workers, **bar):
    """Results of `function(item)` in the items' order.

    Args:
        function: pickles (a module's function or a `partial` of one), and computes the same in any process.
        items: a list.
        num_workers: processes; one or none beyond the items: this process does it. Each has its share of the threads
            that `OMP_NUM_THREADS`, or else the number of cores, allows.
        bar: of tqdm (`unit`, `desc`, `disable`).

    Raises:
        UserError: a worker died. What `function` raises is raised here.
    """
    progress = partial(tqdm, total=len(items), **bar)
    workers = min(num_workers, len(items))
    if workers <= 1:
        yield from progress(map(function, items))
        return
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()) // workers)
    # "spawn": a fork of a process that has used OpenCV's or torch's threads may hang
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
            yield from progress(pool.map(function, items))
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps for want of memory; run the same command again with fewer --num_workers") from None


def _start_worker(threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for a torch that is yet to be imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _end_with_parent():
    """A parent that was killed cannot end its workers, and an idle worker would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
