"""Propose M and N for a model before its training: a few steps for each, judged by photographs that they did not visit.

    python scripts/suggest_nm.py --config configs/reproduce/tiny/sd2/train.yaml --candidates_dir runs/candidates \\
        --output_dir runs/suggest_nm

Takes the flags of training. Candidates of the base must be sampled and scored, for a part of the planned images, with the largest M
that is thought of; nothing is sampled or scored here. One line for each M and N: the gap of winners and losers and the first-order
gain, Cov(r̂, R), both in σ of the reward. The gain orders settings and does not foretell G. A stopped run goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dp2osr.config import MODEL_FLAGS, at_least, parse_args, positive
from dp2osr.errors import UserError, run
from dp2osr.training.options import TRAINING_FLAGS


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[MODEL_FLAGS, TRAINING_FLAGS], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("probe").add_argument
    add("--sizes", type=at_least(2), nargs="+", help="M that are tried (default: powers of two from 4 to all that are scored)")
    add("--tops", type=at_least(1), nargs="+", help="N that are tried (default: powers of two up to M/2)")
    add("--probe_steps", type=at_least(1), default=20, help="optimizer steps for each (default: %(default)s)")
    add("--probe_visits", type=at_least(2), default=32, help="candidates a step, for every N (default: %(default)s)")
    add("--held_out_share", type=positive, default=0.25, help="of the photographs (default: %(default)s)")
    add("--held_out_groups", type=at_least(2), default=24, help="held-out groups that judge (default: %(default)s)")
    add("--held_out_candidates", type=at_least(2), default=16, help="candidates of each (default: %(default)s)")
    add("--held_out_timesteps", type=at_least(1), default=4, help="timesteps for each (default: %(default)s)")
    add("--crop_suffix", default=r"_\d\d$", help="what an image id has beyond its photograph's name (default: %(default)s)")
    parser.set_defaults(report_to="none")
    return parser


def main():
    args = parse_args(build_parser())
    if args.lora_rank:
        raise UserError("--lora_rank: the probe trains whole ControlNets; leave it out")
    if args.force or args.reference_controlnet_model_name_or_path:
        raise UserError(
            "--force, --reference_controlnet_model_name_or_path: not of a probe, which starts from the reference; leave them out"
        )
    import tempfile
    from argparse import Namespace

    from dp2osr.config import settle
    from dp2osr.provenance import weights_hash
    from dp2osr.training.probe import Probe, probe_all, settings_to_probe, suggest
    from dp2osr.training.trainer import PreferenceTrainer

    output = Path(args.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        training = Namespace(
            **{
                **vars(args),
                "output_dir": folder,
                "top_n": 1,
                "num_candidates": None,
                "validation_steps": 0,
                "force": False,
                "lr_scheduler": "constant_with_warmup",
                "max_train_steps": args.probe_steps,
            }
        )
        trainer = PreferenceTrainer(training)
        if trainer.accelerator.num_processes > 1:
            raise UserError("one process is enough for the probe; start it with python")
        scored = trainer.groups.rewards.shape[1]
        wanted = settings_to_probe(args.sizes, args.tops, scored)
        told = ("config", "output_dir", "force", "sizes", "tops", "top_n", "num_candidates", "max_train_steps", "groups_per_step")
        hashes = {"groups_hash": trainer.groups.fingerprint(), "start_hash": weights_hash(args.controlnet_model_name_or_path)}
        settle(output / "settings.json", vars(args) | hashes, told)
        probe = Probe(
            trainer, args.probe_steps, args.probe_visits, args.held_out_share, args.held_out_groups,
            args.held_out_candidates, args.held_out_timesteps, args.crop_suffix,
        )  # fmt: skip
        print(f"{len(probe.train_on)} groups are visited, {len(probe.held_out)} judge\n")
        print("| M | N | N/M | gap, σ | accuracy | gain | |\n|---|---|---|---|---|---|---|")
        records = probe_all(probe, wanted, output / "probe.json", show)
    best, cheapest = suggest(records, seed=args.seed)
    print(f"\nBest: N = {best['N']} of M = {best['M']}.")
    print(f"The smallest M that cannot be told from it: N = {cheapest['N']} of M = {cheapest['M']}.")


def show(record):
    ratio = record["N"] / record["M"]
    cells = [record["M"], record["N"], f"1/{1 / ratio:g}", f"{record['gap']:.2f}", f"{record['accuracy']:.2f}", f"{record['gain']:.3f}"]
    print("| " + " | ".join(map(str, [*cells, f"[{record['low']:.3f}, {record['high']:.3f}]"])) + " |", flush=True)


if __name__ == "__main__":
    run(main)
