"""Commands of this project's programs as a shell takes them: what a message suggests can be pasted."""

import shlex


def command(program: str, *words: object, **flags: object) -> str:
    """`python PROGRAM word ... --flag value ...`, quoted where a shell needs it.

    Args:
        program: a script's path in the repository.
        words: what comes before the flags.
        flags: a value; True for a switch; a list for several values. A flag that is None, False or an empty list is left out.
    """
    line = ["python", program, *map(str, words)]
    for name, value in flags.items():
        if value is None or value is False or value == []:
            continue
        line.append(f"--{name}")
        if value is not True:
            line += [str(word) for word in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(line)
