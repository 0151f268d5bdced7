"""Remove the candidates that training with these settings does not read: of each group 2N latents stay, and all scores.

    python scripts/prune.py --candidates_dir runs/candidates --reward_config embedded --top_n 4 --dry_run

says the disk before and after; without --dry_run the other latents are gone for good. Training by the same reward and M then gives the
same weights, to the bit, with this N or a smaller one. What needs a candidate that is gone says so: another reward, a larger N, scoring
again, pictures of all candidates. While a training, a scoring or an evaluation reads the folder, nothing is removed: that is one line and
exit code 2. One that begins while this runs waits for its end. A stopped run goes on.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.preference.settings import PruneSettings


def main():
    args = parse(PruneSettings, description=__doc__)
    from dp2osr.preference.prune import prune_candidates

    prune_candidates(args)


if __name__ == "__main__":
    run(main)
