"""docs/bad_inputs.md, the table of what was given and what came out."""

import re
import textwrap
from pathlib import Path

from bad_inputs.outcomes import KINDS, LONGEST_LINE, ROOT

ABOUT = """# Bad and odd inputs

{inputs} inputs at {programs} programs, {runs} runs: **{traceback} tracebacks, {lost} files lost, {silent} silent wrong results**{rest}.
`python tests/test_bad_inputs.py --write` makes this file; the test suite repeats every run.

In every run all files that were there are compared by content before and after, and nothing half-written may remain. The programs run
in the process of the tests, each kind once as a process of its own (*process*). *refused*: exit code 2 and one line, nothing written.
*done*: exit code 0, with what was checked. What the programs said stands below each table, under the row's number.
"""


def said(outcome):
    """The line that tells what came out: the error, or the line that says what the case asks for, or the last one."""
    if outcome.raised:
        return shorten(outcome.raised)
    if outcome.code:
        return shorten(outcome.last_error_line)
    words = outcome.fits.says if outcome.fits else ()
    telling = [line for line in outcome.lines if any(re.search(word, line, re.IGNORECASE) for word in words)]
    return shorten(telling[-1] if telling else outcome.lines[-1] if outcome.lines else "(nothing)")


def shorten(line):
    """Without the paths and the figures of this machine, and long names cut."""
    line = line.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    line = re.sub(r"/[^\s:,;()]*?/work/", "", line)
    line = line.replace(str(Path.home()), "~")
    line = re.sub(r"(\S)\1{20,}", r"\1…", line)
    return re.sub(r"[\d.,]+ ?(GB|MB|minutes?|seconds?|hours?|s|min|h)\b", r"… \1", line)


def comparable(text):
    """Without what another version of Python or of a library, or another machine, says otherwise."""
    return re.sub(r"\s+", "", re.sub(r"\([^()]*\)", "", re.sub(r"\d[\d.,]*", "#", text)))


def cell(text):
    return text.replace("|", "\\|").replace("\n", " ")


def rows(cases):
    """{(kind, what is given): its cases}, a row each."""
    found = {}
    for case in cases:
        found.setdefault((case.kind, case.given), []).append(case)
    return found


def programs_of(cases):
    return ", ".join(f"`{Path(case.program).name}`" + (" *process*" if case.process else "") for case in cases)


def in_short(outcome, fault):
    """What came out, for the table's cell."""
    if fault:
        return f"**{fault[0]}**"
    return "refused" if outcome.code else ": ".join(filter(None, ["done", outcome.fits.note]))


def table_text(results):
    """Markdown of {case: (outcome, fault)}, its text no wider than `LONGEST_LINE`."""
    faults = [fault[0] for _, fault in results.values() if fault]
    known = {"traceback": "traceback", "lost": "file lost", "silent": "silent"}
    counts = {name: faults.count(word) for name, word in known.items()}
    others = len(faults) - sum(counts.values())
    lines = ABOUT.format(
        inputs=len({case.given for case in results}),
        programs=len({case.program for case in results}),
        runs=len(results),
        rest=f", {others} other faults" if others else "",
        **counts,
    ).splitlines()
    number = 0
    for kind, title in KINDS.items():
        lines += ["", f"## {title}", "", "| | given | program | what came out |", "|---|---|---|---|"]
        told = []
        for (_, given), cases in rows(case for case in results if case.kind == kind).items():
            number += 1
            came = ", ".join(dict.fromkeys(in_short(*results[case]) for case in cases))
            lines.append(f"| {number} | {cell(given)} | {programs_of(cases)} | {came} |")
            messages = {comparable(message): message for message in (said(results[case][0]) for case in cases)}
            for message in messages.values():
                told += textwrap.wrap(f"{number:3}  {message}", LONGEST_LINE - 5, subsequent_indent="     ", break_on_hyphens=False)
        lines += ["", "```text", *told, "```"]
    return "\n".join(lines) + "\n"
