"""Propose M and N for a model before its training: a few steps for each, judged by photographs that they did not visit.

    python scripts/suggest_nm.py --config configs/reproduce/tiny/sd2/train.yaml --candidates_dir runs/candidates \\
        --output_dir runs/suggest_nm

Takes the flags of training. Candidates of the base must be sampled and scored, for a part of the planned images, with the largest M
that is thought of; nothing is sampled or scored here. One line for each M and N: the gap of winners and losers and the first-order
gain, Cov(r̂, R), both in σ of the reward. The gain orders settings and does not foretell G. A stopped run goes on.
"""

from dp2osr.cli import given, parse, refuse_ignored
from dp2osr.errors import run
from dp2osr.hub.settings import OF_THE_HUB
from dp2osr.training.settings import ProbeSettings


def main():
    args = parse(ProbeSettings, description=__doc__, report_to="none")
    refuse_ignored(given(ProbeSettings), OF_THE_HUB, "in a probe, which leaves no model")
    from studies.probe import run_probe

    run_probe(args)


if __name__ == "__main__":
    run(main)
