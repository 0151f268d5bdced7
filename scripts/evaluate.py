"""Compare models by their candidates, or any methods by folders of their SR images.

    python scripts/evaluate.py --candidates base=runs/quickstart/test/base policy=runs/quickstart/test/policy \\
        --gt_path preset/test/gt --output_dir runs/report
    python scripts/evaluate.py --images SD2=runs/sr FLUX=runs/sr_flux --gt_path preset/test/gt --output_dir runs/table

The first compares what scripts/quickstart.sh sampled, the second the images of the examples of the two test programs.

Candidates (scored by label_rewards.py) are compared by reward and by metric: tables, Best/Mean/Worst curves, a self-contained report.html.
Images are scored here, in one pass over the files, and compared by metric: Markdown, LaTeX and CSV tables with intervals and paired tests.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def make_parser():
    from dp2osr.config import at_least, regular_expression

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--candidates",
        nargs="+",
        metavar="NAME=DIR",
        help="candidate folders with scores.parquet; the first is the reference of all comparisons",
    )
    what.add_argument(
        "--images",
        nargs="+",
        metavar="NAME=DIR",
        help="folders of SR images named as their GT, or with _00, _01 ... for several samples; a name given again has further samples; "
        "the first is the reference of all comparisons",
    )
    parser.add_argument("--gt_path", help="folder of GT images, named as the LR images; --images without it: NR metrics alone")
    parser.add_argument("--output_dir", required=True, help="tables, and what else there is, go here; run again to go on")
    parser.add_argument("--bootstrap", type=at_least(1), default=2000, help="resamples for the intervals (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the resampling (default: %(default)s)")
    parser.add_argument(
        "--crop_suffix",
        type=regular_expression,
        default=r"_\d\d$",
        help="regular expression of what an image id has beyond its photograph's name; '' if every image is a photograph "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--metrics_dir",
        help="folder of scripts/fetch_metrics.py with pyiqa's weights (default: DP2OSR_METRICS_DIR, else pyiqa's own places)",
    )
    of_candidates = parser.add_argument_group("with --candidates")
    of_candidates.add_argument(
        "--reward_config",
        metavar="NAME_OR_YAML",
        help="a name in configs/rewards or a YAML (default: the one that the scores were made for)",
    )
    of_candidates.add_argument("--training_log", nargs="+", help="train_log.jsonl of the policy's training, or one a round, for its curves")
    of_candidates.add_argument(
        "--num_candidates", type=at_least(2), help="use the first M candidates of each image (default: the smallest M among the methods)"
    )
    of_candidates.add_argument(
        "--max_images_in_report", type=at_least(0), default=12, help="images shown, evenly over the gains (default: %(default)s)"
    )
    of_candidates.add_argument("--no_bicubic", action="store_true", help="leave out bicubic, whose metrics are computed here")
    of_images = parser.add_argument_group("with --images")
    of_images.add_argument(
        "--protocol",
        default="offline",
        metavar="NAME_OR_YAML",
        help="metrics: a name in configs/evaluation or a YAML (default: %(default)s)",
    )
    of_images.add_argument("--lr_path", help="folder of LR images, whose names tell samples from images where there is no GT")
    of_images.add_argument(
        "--suffix", default="", help="what is behind the names of the SR images; not needed for those of the test programs (default: none)"
    )
    of_images.add_argument("--channel", choices=["y", "rgb"], help="of PSNR and SSIM (default: the protocol's)")
    of_images.add_argument("--crop_border", type=at_least(0), help="of PSNR and SSIM, pixels cut on each side (default: the protocol's)")
    of_images.add_argument("--center_crop", type=at_least(8), help="score the middle square of this side, pixels (default: all)")
    of_images.add_argument("--exclude_metrics", nargs="+", default=[], metavar="METRIC", help="metrics of the protocol to leave out")
    of_images.add_argument(
        "--fid", action="store_true", help="FID of each method's images against the GT too; 100 images at least, whole (no --center_crop)"
    )
    of_images.add_argument(
        "--published", metavar="NAME_OR_YAML", help="published values to set beside: a name in configs/paper (table1_realsr ...) or a YAML"
    )
    return parser


def main():
    from dp2osr.config import given_flags, parse_args
    from dp2osr.flags import refuse_ignored

    parser = make_parser()
    args = parse_args(parser)
    used, other = ("--images", "with --candidates") if args.images else ("--candidates", "with --images")
    group = next(group for group in parser._action_groups if group.title == other)
    refuse_ignored(given_flags(parser), [action.dest for action in group._group_actions], f"with {used}")
    if args.images:
        from dp2osr.evaluation.run_images import run_image_evaluation

        return run_image_evaluation(args)
    from dp2osr.errors import UserError
    from dp2osr.evaluation.run import run_evaluation

    if not args.gt_path:
        raise UserError("--gt_path: is needed with --candidates")
    run_evaluation(args)


if __name__ == "__main__":
    from dp2osr.errors import run

    run(main)
