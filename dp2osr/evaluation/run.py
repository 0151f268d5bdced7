"""The evaluation from folders to files, in the order a reader would check it."""

import platform
from importlib import metadata
from pathlib import Path

from dp2osr.data.inputs import find_gt
from dp2osr.evaluation import figures, pictures, report, tables
from dp2osr.evaluation.methods import bicubic_scores, load_methods, parse_candidates, suites_of
from dp2osr.evaluation.summary import evaluate
from dp2osr.evaluation.training_log import read_training_logs
from dp2osr.files import write_text
from dp2osr.outputs import check_output
from dp2osr.results import check_own_files, own_files

PACKAGES = ("torch", "diffusers", "transformers", "pyiqa", "numpy", "matplotlib", "pillow")

FILES = ("curves.png", "metrics.csv", "summary.json", "summary.md", "report.html")


def run_evaluation(args):
    """Compare candidate stores and write metrics.csv, summary.json, summary.md, curves.png and report.html to `args.output_dir`.

    Args:
        args: the flags of scripts/evaluate.py.

    Returns:
        `Evaluation`; what the files say is also printed.
    """
    from dp2osr.device import compute_device
    from dp2osr.rewards.chosen import label_command, reward_of
    from dp2osr.rewards.table import SCORES, read_metadata

    check_output(args.output_dir)
    check_own_files(args.output_dir, FILES)
    paths = [folder / SCORES for folder in parse_candidates(args.candidates).values()]
    scored = {path: read_metadata(path) for path in paths if path.is_file()}
    config = reward_of(args.reward_config, scored)
    training, validation = read_training_logs(args.training_log) if args.training_log else ({}, {})

    def label(folder):
        return label_command(folder, config, next(iter(scored.values()), None), gt_path=args.gt_path, given=args.reward_config)

    methods, notes = load_methods(args.candidates, config, label, args.num_candidates)
    gt_paths = find_gt(args.gt_path, methods[0].image_ids)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)

    device = compute_device()
    bicubic = None
    if config.columns:
        notes.append(
            f"Bicubic is left out: the reward has {', '.join(config.columns)}, a column of the score tables, and bicubic is in none."
        )
    elif not args.no_bicubic:
        bicubic = bicubic_scores(methods[0], gt_paths, suites_of(methods[0].metrics, device, args.metrics_dir, config.imports))
    evaluation = evaluate(methods, config, bicubic, resamples=args.bootstrap, seed=args.seed, crop_suffix=args.crop_suffix)
    evaluation.notes = notes + evaluation.notes
    panels = pictures.make_panels(evaluation, methods, bicubic, args.gt_path, args.max_images_in_report, device)

    settings = _settings(args, methods)
    plots = figures.result_plots(evaluation) + figures.training_plots(training, validation)
    with own_files(output, FILES):
        figures.save_png(output / "curves.png", plots)
        write_text(output / "metrics.csv", tables.metrics_csv(evaluation))
        write_text(output / "summary.json", tables.summary_json(evaluation, settings))
        write_text(output / "summary.md", tables.summary_markdown(evaluation))
        write_text(output / "report.html", report.report_html(evaluation, panels, settings, training, validation))
    print(f"\n{tables.terminal(evaluation)}\n\nreport: {output / 'report.html'}")
    return evaluation


def _settings(args, methods):
    return {
        "flags": {key: value for key, value in vars(args).items() if value is not None},
        "methods": {method.name: dict(method.store.settings) for method in methods},
        "metrics": methods[0].metrics,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES}
        | {"pyiqa (scores)": methods[0].pyiqa},
    }
