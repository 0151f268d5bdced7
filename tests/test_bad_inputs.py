"""Bad and odd inputs, one after another, at the programs that they concern: nothing of a user's is lost, and nothing is silently wrong.

Each case builds its input in a folder of its own, runs a program there as its command line does (in this process, and one case of each kind
as a process of its own), and says what must come of it: one clear line and exit code 2, or results that are right, with what was not done
said. In every case all files that were there are compared by content before and after, and nothing half-written may remain.

    python tests/test_bad_inputs.py --write      # docs/bad_inputs.md, the table of what was given and what came out
    python tests/test_bad_inputs.py WORD ...     # the cases with these words in their ids: those that do not do what they must, and why
"""

import importlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from bad_inputs import MODULES
from bad_inputs.attempts import attempt
from bad_inputs.common import CASES
from bad_inputs.outcomes import CACHE, KINDS, ROOT, TABLE, Outcome
from bad_inputs.table import cell, programs_of, rows, table_text

for name in MODULES:
    importlib.import_module(f"bad_inputs.{name}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_bad_input_loses_nothing_and_is_not_silent(case, tmp_path):
    _, fault = attempt(case, tmp_path / "work")
    assert fault is None, f"{case.program}: {case.given}: {fault[0]}: {fault[1]}"


def test_every_kind_has_a_case_in_a_process_of_its_own():
    assert {case.kind for case in CASES if case.process} == set(KINDS)
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({case.given for case in CASES}) >= 80


def test_the_table_in_docs_is_that_of_this_module():
    text = TABLE.read_text(encoding="utf-8")
    lacking = [given for (_, given), cases in rows(CASES).items() if f"| {cell(given)} | {programs_of(cases)} |" not in text]
    assert not lacking, f"python tests/test_bad_inputs.py --write: lacks {lacking[:5]}"
    assert len(re.findall(r"(?m)^\| \d+ \|", text)) == len(rows(CASES))


def main():
    """The table, or with words only the cases whose id has one of them."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    wanted = [word for word in sys.argv[1:] if not word.startswith("--")]
    results = {}
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        for index, each in enumerate(case for case in CASES if not wanted or any(word in case.id for word in wanted)):
            try:
                results[each] = attempt(each, Path(folder) / str(index) / "work")
            except AssertionError as error:  # a command before it
                results[each] = Outcome(None, "", "", str(error), Path(folder), {}, {}), ("setting up", str(error))
            fault = results[each][1]
            if fault or "--all" in sys.argv:
                print(f"{each.kind:2} | {Path(each.program).name} | {each.given} | {': '.join(fault) if fault else 'ok'}", flush=True)
    faults = [fault[0] for _, fault in results.values() if fault]
    print(f"{len(results)} runs, {len(faults)} faults: " + ", ".join(f"{faults.count(name)} {name}" for name in sorted(set(faults))))
    if "--write" in sys.argv:
        TABLE.write_text(table_text(results), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)
