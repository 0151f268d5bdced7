"""The check in processes of its own: where a line loses the device, a fresh process goes on with the next one."""

import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path

from dp2osr.checkup.findings import DeviceLost, is_lost, lines_in
from dp2osr.checkup.machine import TimeLimit
from dp2osr.checkup.settings import CheckupSettings
from dp2osr.errors import PARENT, run


def check_in_processes(settings: CheckupSettings) -> None:
    """`check_machine`, whatever becomes of the process that does it. This one leaves the device alone: it would keep memory there."""
    Path(settings.output_dir, "check_gpu.json").unlink(missing_ok=True)  # an earlier check's
    limit, lost = TimeLimit(60 * settings.minutes), 0
    code = in_fresh_process(settings, limit, anew=True)
    while code:
        before, lost = lost, sum(map(is_lost, sum(lines_in(settings.output_dir).values(), [])))
        if lost <= before:  # no line is to blame; the process has said what is
            sys.exit(code)
        code = in_fresh_process(settings, limit, anew=False)


def in_fresh_process(settings: CheckupSettings, limit: TimeLimit, anew: bool) -> int:
    """The exit code of a process that does `check_machine`; 0: all is done."""
    process = multiprocessing.get_context("spawn").Process(target=check_as_child, args=(settings, limit, anew, os.getpid()))
    process.start()
    try:
        process.join()
    finally:
        process.kill()
    return process.exitcode or 0


def check_as_child(settings: CheckupSettings, limit: TimeLimit, anew: bool, parent: int) -> None:
    """What the process does."""
    os.environ[PARENT] = str(parent)
    from dp2osr.checkup.check import check_machine

    try:
        run(partial(check_machine, settings, limit, anew))
    except DeviceLost:
        os._exit(1)  # an orderly end would ask the device once more
