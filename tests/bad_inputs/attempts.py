"""A case is tried."""

from pathlib import Path

from bad_inputs.place import Place, run_here, run_process

OUTCOMES = {}  # case → its `Outcome`, of this process


def attempt(case, folder):
    """(`Outcome`, fault or None): the outcome that comes nearest counts."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    place = Place(folder, case.program)
    argv = case.build(place)
    outcome = run_process(case.program, argv, folder, case.env) if case.process else run_here(case.program, argv, folder)
    OUTCOMES[case] = outcome
    faults = [wanted.fault(outcome) for wanted in case.outcomes]
    if None in faults:
        outcome.fits = case.outcomes[faults.index(None)]
    return outcome, None if outcome.fits else faults[0]
