"""Folders of SR images from files to tables."""

import sys
from pathlib import Path

from dp2osr.errors import UserError
from dp2osr.evaluation import benchmark
from dp2osr.evaluation.fid import build_fid, check_enough, frechet_distances
from dp2osr.evaluation.image_folders import pair_images, parse_folders
from dp2osr.evaluation.image_scores import ImageScorer, protocol_specs
from dp2osr.files import write_json, write_text
from dp2osr.outputs import check_output
from dp2osr.provenance import versions
from dp2osr.results import check_own_files, own_files
from dp2osr.rewards.config import CONFIG_DIR, load_reward_config, nearest
from dp2osr.rewards.metrics import MetricSuite, check_modes

FILES = ("table.md", "table.tex", "table.csv", "per_image.csv", "settings.json")
PROTOCOL_DIR = CONFIG_DIR.parent / "evaluation"


def run_image_evaluation(args):
    """Score folders of SR images; writes table.md, table.tex, table.csv, per_image.csv and settings.json to `args.output_dir`.

    Args:
        args: the flags of scripts/evaluate.py.

    Returns:
        `Benchmark`; table.md is also printed.
    """
    from dp2osr.device import compute_device

    check_output(args.output_dir)
    check_own_files(args.output_dir, FILES)
    published = benchmark.load_published(args.published) if args.published else None
    if published and not set(published["methods"]) & {argument.partition("=")[0] for argument in args.images}:
        named = ", ".join(published["methods"])
        print(
            f"warning: --published {args.published}: no method has a name of that table ({named}), so that none is compared",
            file=sys.stderr,
        )
    config = load_protocol(args.protocol)
    specs = protocol_specs(config, args.channel, args.crop_border, args.exclude_metrics)
    methods, gt = pair_images(parse_folders(args.images), args.gt_path, args.lr_path, suffix=args.suffix)
    if not gt:
        specs = [spec for spec in specs if spec in config.nr]
        if not specs:
            raise UserError(f"--protocol {args.protocol}: has no metric that does without GT; give --gt_path")
    device = compute_device()
    fid = _prepare_fid(args, gt, device) if args.fid else None  # before hours of scoring, not after
    suite = MetricSuite(specs, device, weights_dir=args.metrics_dir)
    check_modes(config, suite)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with own_files(output, FILES):
        return _score_and_write(args, suite, methods, gt, fid, specs, published, output)


def _score_and_write(args, suite, methods, gt, fid, specs, published, output):
    """Scores and tables of methods that have been checked; returns the `Benchmark`."""
    scores = ImageScorer(suite, gt, output / "scores.jsonl", args.center_crop).score(methods)

    image_ids = sorted(methods[0].samples)
    found = benchmark.compare(scores, image_ids, suite, args.bootstrap, args.seed, args.crop_suffix, published)
    distances = frechet_distances(methods, gt, fid) if fid else {}
    settings = {
        "images": " ".join(args.images),
        "GT": args.gt_path or "none",
        "metrics": ", ".join(_named(spec) for spec in specs),
        "center crop": args.center_crop or "none",
        "photographs": f"image ids without /{args.crop_suffix}/" if args.crop_suffix else "every image is one",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("pyiqa", "torch")),
    }
    text = benchmark.benchmark_markdown(found, settings, distances)
    write_text(output / "table.md", text)
    write_text(output / "table.tex", benchmark.benchmark_latex(found))
    write_text(output / "table.csv", benchmark.benchmark_csv(found))
    write_text(output / "per_image.csv", benchmark.per_image_csv(scores, image_ids))
    about = {"flags": vars(args), "metrics": suite.describe(), "versions": versions()}
    write_json(output / "settings.json", about | ({"fid": distances} if distances else {}))
    print(f"\n{text}\nfiles: {output}/table.md, .tex, .csv, per_image.csv and settings.json")
    return found


def _prepare_fid(args, gt, device):
    if args.center_crop:
        raise UserError("--fid: is of whole images; leave --center_crop out")
    check_enough(gt)
    return build_fid(args.metrics_dir, device)


def load_protocol(name_or_yaml):
    """The metrics of a protocol by its name in `configs/evaluation` or the path of a YAML; UserError where there is none."""
    path = Path(name_or_yaml) if str(name_or_yaml).endswith((".yaml", ".yml")) else PROTOCOL_DIR / f"{name_or_yaml}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such protocol{nearest(path.stem, [file.stem for file in PROTOCOL_DIR.glob('*.yaml')])}")
    return load_reward_config(path)


def _named(spec):
    return spec.name + (f" ({', '.join(f'{key} {value}' for key, value in spec.options.items())})" if spec.options else "")
