"""Independent items over worker processes of one machine, with one progress bar."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

from dp2osr.errors import UserError, end_with_parent

Item = TypeVar("Item")
Made = TypeVar("Made")


def process_map(function: Callable[[Item], Made], items: Sequence[Item], num_workers: int, **bar: Any) -> Iterator[Made]:
    """Results of `function(item)` in the items' order.

    Args:
        function: pickles (a module's function or a `partial` of one), and computes the same in any process.
        items: a list.
        num_workers: processes, of one OpenCV thread each; 1, or a single item: this process does it.
        bar: of tqdm (`unit`, `desc`, `disable`).

    Raises:
        UserError: a worker died. What `function` raises is raised here.
    """
    progress = partial(tqdm, total=len(items), **bar)
    workers = min(num_workers, len(items))
    if workers <= 1:
        yield from progress(map(function, items))
        return
    # "spawn": a fork of a process that has used OpenCV's or torch's threads may hang
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            yield from progress(pool.map(function, items))
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps for want of memory; run the same command again with fewer --num_workers") from None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    parent = multiprocessing.parent_process()
    end_with_parent(parent.pid if parent else None)
    cv2.setNumThreads(1)
