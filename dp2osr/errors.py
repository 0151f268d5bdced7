"""A user's mistake: one clear line on stderr and exit code 2, never a traceback."""

import errno
import os
import sys
import threading
import time

PARENT = "DP2OSR_PARENT"  # process id of a launcher whose end is this process's end
FULL_DISK = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")


class UserError(Exception):
    """What is wrong, in which file, what to do: the message is all that the user sees."""


def is_full_disk(error):
    """Whether `error`, or what led to it, is a full disk; libraries report it by errno or by text."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in FULL_DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


def run(main):
    """Call a script's `main()`; a `UserError` or a full disk is one line and exit code 2, an interrupt one line and 130."""
    end_with_parent()
    try:
        main()
    except UserError as error:
        stop(f"error: {error}", 2)
    except KeyboardInterrupt:
        stop("stopped; the same command goes on from here", 130)
    except Exception as error:
        if not is_full_disk(error):
            raise
        stop("error: the disk is full; nothing half-written is kept: free some space and run the same command again", 2)


def end_with_parent(parent=None):
    """End this process when `parent` is gone: a process id, by default the launcher's, if one started it.

    A killed parent cannot do it, and its orphans would work on.
    """
    parent = parent or os.environ.get(PARENT)
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def stop(message, code):
    if "tqdm" in sys.modules:  # a live bar would share the line, and be drawn once more after it
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    print(message, file=sys.stderr)
    sys.exit(code)


def listed(names, at_most=8):
    """`a, b, c and 5 more`."""
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest
