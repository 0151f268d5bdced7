"""A user's mistake: one clear line on stderr and exit code 2, never a traceback."""

import contextlib
import errno
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from dp2osr.threads import sleep_soon

PARENT = "DP2OSR_PARENT"  # process id of a launcher whose end is this process's end
FULL_DISK = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
DEVICE_FAULTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "HIP error")


class UserError(Exception):
    """What is wrong, in which file, what to do: the message is all that the user sees."""


class NonFiniteSamples(UserError):
    """A model's samples of an image are NaN or infinite."""


def is_full_disk(error: BaseException | None) -> bool:
    """Whether `error`, or what led to it, is a full disk; libraries report it by errno or by text."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in FULL_DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice: Python's, NumPy's, PyTorch's on a CPU, a GPU's."""
    text = str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(words in text for words in OUT_OF_MEMORY)


def is_device_fault(error: BaseException) -> bool:
    """Whether `error` is a GPU's own, and not of its memory's size: whatever the process asks of the device after it may fail too."""
    is_fault = type(error).__name__ == "AcceleratorError" or any(words in str(error) for words in DEVICE_FAULTS)
    return is_fault and not is_out_of_memory(error)


def in_one_line(error: BaseException) -> str | None:
    """What a user can mend of an exception that no program foresaw, as a line; None for a fault of this code."""
    if is_full_disk(error):
        return "the disk is full; nothing half-written is kept: free some space and run the same command again"
    if is_out_of_memory(error):
        return out_of_memory(
            error,
            "lower --batch_size, --upscale (--tile_size and --vae_tile_size for large images), or close other programs; run it again",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: cannot be read or written ({error.strerror}); see that the path is right and yours to use, or give another"
        )
    return None


def out_of_memory(error: BaseException, what_to_do: str) -> str:
    """The line of an error of `is_out_of_memory`."""
    reason = " ".join(str(error).split())[:120]
    return f"memory does not suffice ({type(error).__name__}{': ' + reason if reason else ''}); what is whole is kept: {what_to_do}"


def advice(first: Sequence[str], other: Sequence[str]) -> str:
    """What a training may be told to take less memory: flags with which the run goes on, and flags that make another run."""
    words = f"set {', '.join(first)} and run the same command again; " if first else ""
    return f"{words}or begin anew in another --output_dir with {', '.join(other)}" if other else words.removesuffix("; ")


@contextlib.contextmanager
def memory_advice(what_to_do: str) -> Iterator[None]:
    """Within, memory that does not suffice is `UserError`, with what a user of this program can do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(out_of_memory(error, what_to_do)) from None


@contextlib.contextmanager
def made_of(given: str) -> Iterator[None]:
    """Within, a network is made of a user's numbers: what the libraries cannot make is `UserError`, with the flags `given`."""
    try:
        yield
    except UserError:
        raise
    except (
        Exception
    ) as error:  # diffusers, transformers and PyTorch raise what comes: ValueError, TypeError, RuntimeError, ZeroDivisionError
        if in_one_line(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{given}: no network can be made of these numbers ({reason}); give others") from None


def run(main: Callable[[], object]) -> None:
    """Call a script's `main()`; what a user can mend is one line and exit code 2, an interrupt one line and 130."""
    end_with_parent()
    sleep_soon()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # of one of its modules to another
    try:
        main()
    except UserError as error:
        stop(f"error: {error}", 2)
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os._exit(141)
    except KeyboardInterrupt:
        stop("stopped; what is whole is kept, the same command does what is left", 130)
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        stop(f"error: {line}", 2)


def end_with_parent(parent: int | str | None = None) -> None:
    """End this process when `parent` is gone: a process id, by default the launcher's, if one started it.

    A killed parent cannot do it, and its orphans would work on.
    """
    parent = parent or os.environ.get(PARENT)
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def stop(message: str, code: int) -> NoReturn:
    if "tqdm" in sys.modules:  # a live bar would share the line, and be drawn once more after it
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    print(" ".join(message.splitlines()), file=sys.stderr)
    sys.exit(code)


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[str], at_most: int = 8) -> str:
    """`a, b, c and 5 more`."""
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest
