"""What a run takes before it starts: hours, disk and peak memory on each GPU, stage by stage, from its own settings.

    python scripts/plan.py configs/flux_dev --num_gpus 8

FLOPs and memory are counted by running the programs' own code on tensors that have a shape and no content, so this needs no weights,
no GPU and little memory. A model that is not on disk is taken to be the published one of its kind (configs/models). Hours follow from the
FLOPs and the share of a GPU's peak that is had; unless told, the share that the paper's hours of sampling imply.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run
from dp2osr.fields import Count, Positive, default_is, metavar
from dp2osr.rewards.settings import LabelSettings
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.settings import TrainSettings

GIGA = 1e9
FULL = 0.9  # of a GPU's memory: the rest is CUDA's context, its libraries' workspaces and what lies between tensors


@dataclass(kw_only=True)
class PlanSettings(Settings):
    """The hardware, and the run's folder of settings."""

    settings: tyro.conf.Positional[Annotated[str, metavar("SETTINGS_DIR")]]
    """Folder with the sample.yaml and train.yaml that will be run, and perhaps the label.yaml."""
    num_gpus: Count
    """GPUs, each with a replica."""
    gpu_memory: Positive = 80
    """Of one GPU, GB."""
    tflops: Positive = 312
    """Peak of one GPU in the precision used, TFLOPS; 312: A800 and A100."""
    utilisation: Annotated[Positive | None, default_is("what the paper's hours imply")] = None
    """Share of that peak that is had."""
    num_images: Annotated[Count | None, default_is("those of sample.yaml's folder; without it the paper's 30000")] = None
    """LR images."""
    lr_size: Annotated[tuple[Count, Count] | None, default_is("the first's; 128 128"), metavar("WIDTH HEIGHT")] = None
    """Of an LR image, pixels."""
    sharding: Literal["ddp", "zero2", "fsdp"] = "ddp"
    """How training would share its memory; the preference trainer runs replicas, the others are what-ifs."""


def settings_of(settings, path, **defaults):
    """The settings of a stage by its file."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; a plan reads sample.yaml and train.yaml")
    # where things are written does not matter here, and an experiment's settings do not say it
    places = {entry.name: "-" for entry in fields(settings) if entry.name in ("output_dir", "candidates_dir")}
    return parse(settings, ["--config", str(path)], **{**defaults, **places})


def metrics_of(path):
    """Names of the metrics that `label_rewards.py` scores under a settings file; none where there is no such file."""
    if not path.is_file():
        return []
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.label import chosen_metrics

    flags = settings_of(LabelSettings, path)
    config = load_reward_config(flags.reward_config or "default")
    return [spec.name for spec in chosen_metrics(config, flags.extra_metrics, flags.exclude_metrics)]


def images_of(args, sampling):
    """How many LR images, and the (width, height) of one."""
    from dp2osr.data.images import read_image
    from dp2osr.data.inputs import list_images

    paths = list_images(sampling.image_path) if Path(sampling.image_path).exists() else []
    count = args.num_images or min(len(paths), sampling.max_images or len(paths)) or sampling.max_images or 30_000
    size = args.lr_size or (read_image(paths[0]).size if paths else (128, 128))
    return count, tuple(size)


def table(stages, hardware, utilisation):
    """Markdown: one row a stage."""
    rows = ["| stage | what | PFLOP | GPU-hours | hours | GB a GPU | disk, GB |", "|---|---|---|---|---|---|---|"]
    for stage in stages:
        hours = stage.gpu_hours(hardware.tflops, utilisation)
        peak = sum(stage.memory.values()) / GIGA
        name = stage.name + ("" if peak < FULL * hardware.gpu_memory else " **does not fit**")
        row = [name, stage.amount, f"{stage.flops / 1e15:,.4g}", f"{hours:,.4g}", f"{hours / hardware.num_gpus:,.3g}", f"{peak:.1f}"]
        rows.append("| " + " | ".join([*row, f"{stage.disk / GIGA:,.3g}"]) + " |")
    return "\n".join(rows)


def main():
    args = parse(PlanSettings, description=__doc__)
    from dp2osr.planning.models import read_published
    from dp2osr.planning.stages import SCORING_SECONDS, PlannedModel, implied_utilisation, plan_sampling, plan_scoring, plan_training, shard

    if args.utilisation and args.utilisation > 1:
        raise UserError(f"--utilisation {args.utilisation}: is a share, at most 1")
    folder = Path(args.settings)
    sampling = settings_of(GenerateSettings, folder / "sample.yaml")
    on_disk = Path(sampling.pretrained_model_name_or_path).exists()
    if not on_disk and not sampling.backbone:
        raise UserError(f"{sampling.pretrained_model_name_or_path}: is not on disk; say with `backbone:` in sample.yaml which model it is")
    count, lr_size = images_of(args, sampling)
    model = PlannedModel(sampling, lr_size, None if on_disk else read_published(sampling.backbone))
    training = settings_of(TrainSettings, folder / "train.yaml", backbone=model.kind)
    stages = [
        plan_sampling(model, count),
        plan_scoring(model, count, metrics_of(folder / "label.yaml")),
        plan_training(model, training, args.num_gpus),
    ]
    stages[-1].memory = shard(stages[-1].memory, args.sharding, args.num_gpus)
    implied, paper = implied_utilisation(model.kind)
    utilisation = args.utilisation or implied

    gpus = f"{args.num_gpus} GPUs of {args.gpu_memory:g} GB and {args.tflops:g} TFLOPS"
    print(f"{count:,} LR images of {lr_size[0]} × {lr_size[1]}, {gpus}\n")
    print(table(stages, args, utilisation))
    for stage in stages:
        print(f"\n{stage.name}, GB a GPU: " + ", ".join(f"{name} {size / GIGA:.2f}" for name, size in stage.memory.items()))
    paper_run = f"{paper['sampling_hours']} h of sampling {paper['candidates']:,} candidates on {paper['gpus']} × {paper['tflops']} TFLOPS"
    print(
        f"\nUtilisation {utilisation:.3f}, the same for all stages; the paper's {paper_run} mean {implied:.3f} of the FLOPs counted here.\n"
        f"Scoring takes the paper's {SCORING_SECONDS:.2f} GPU-seconds for 512 × 512 pixels and nine metrics, on any GPU, and decoding.\n"
        "Not counted: the tagger, PNGs, other metrics' memory, validation, a scheduler that predicts more than once a step.\n"
        f"All images are taken to have the first one's size. A stage fits below {FULL:.0%} of the memory."
    )


if __name__ == "__main__":
    run(main)
