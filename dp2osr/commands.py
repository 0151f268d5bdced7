"""Commands of this project's programs as a shell takes them: what a message suggests can be pasted."""

import shlex


def command(program: str, **flags: object) -> str:
    """`python PROGRAM --flag value ...`, quoted where a shell needs it.

    Args:
        program: a script's path in the repository.
        flags: a value; True for a switch; a list for several values. A flag that is None, False or an empty list is left out.
    """
    words = ["python", program]
    for name, value in flags.items():
        if value is None or value is False or value == []:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += [str(word) for word in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)
