"""Show what training will be taught: winners, losers, spread and pair weights of each group.

    python scripts/inspect_preferences.py --candidates_dir runs/candidates --top_n 6

The folder is that of the examples of gen_candidates.py and label_rewards.py.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.preference.settings import PreferenceSettings


def main():
    args = parse(PreferenceSettings, description=__doc__)
    from dp2osr.preference.describe import describe_preferences

    print("\n".join(describe_preferences(args)))


if __name__ == "__main__":
    run(main)
