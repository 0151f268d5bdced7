"""Compare models by their candidates, or any methods by folders of their SR images.

    python scripts/evaluate.py --candidates base=runs/quickstart/test/base policy=runs/quickstart/test/policy \\
        --gt_path preset/test/gt --output_dir runs/report
    python scripts/evaluate.py --images SD2=runs/sr FLUX=runs/sr_flux --gt_path preset/test/gt --output_dir runs/table

The first compares what scripts/quickstart.sh sampled, the second the images of the examples of the two test programs.

Candidates (scored by label_rewards.py) are compared by reward and by metric: tables, Best/Mean/Worst curves, a self-contained report.html.
Images are scored here, in one pass over the files, and compared by metric: Markdown, LaTeX and CSV tables with intervals and paired tests.
"""

from dp2osr.cli import given, parse, refuse_ignored
from dp2osr.errors import UserError, run
from dp2osr.evaluation.settings import OF_CANDIDATES, OF_IMAGES, EvaluateSettings


def main():
    args = parse(EvaluateSettings, description=__doc__)
    if bool(args.images) == bool(args.candidates):
        raise UserError("--candidates, --images: give one of the two")
    used, others = ("--images", OF_CANDIDATES) if args.images else ("--candidates", OF_IMAGES)
    refuse_ignored(given(EvaluateSettings), others, f"with {used}")
    if args.images:
        from dp2osr.evaluation.image_comparison import run_image_evaluation

        return run_image_evaluation(args)
    from dp2osr.evaluation.candidates import run_evaluation

    if not args.gt_path:
        raise UserError("--gt_path: is needed with --candidates")
    run_evaluation(args)


if __name__ == "__main__":
    run(main)
