"""A user's mistake: one clear line on stderr and exit code 2, never a traceback."""

import sys


class UserError(Exception):
    """What is wrong, in which file, what to do: the message is all that the user sees."""


def run(main):
    """Call a script's `main()`; report a `UserError` or a full disk in one line with exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        print(f"error: no space left on the disk while writing {error.filename or 'a file'}; free some and run the same command again", file=sys.stderr)
        sys.exit(2)
