"""What a run takes before it starts: hours, disk and peak memory on each GPU, stage by stage, from its own settings.

    python scripts/plan.py configs/flux_dev --num_gpus 8
    python scripts/plan.py configs/flux_dev --table            # what fits 1, 8 and 16 GPUs of 24, 48 and 80 GB, and with which flags

FLOPs and memory are counted by running the programs' own code on tensors that have a shape and no content, so this needs no weights,
no GPU and little memory. A model that is not on disk is taken to be the published one of its kind (configs/models). Hours follow from the
FLOPs and the share of a GPU's peak that is had. That share is an assumption until somebody measures it: sampling is shown by the share
that the paper's hours imply, whose sampling was probably not batched, and by one for batches.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run
from dp2osr.fields import Count, Positive, default_is, metavar
from dp2osr.rewards.settings import LabelSettings
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.baseline_settings import BaselineSettings
from dp2osr.training.settings import TrainSettings

SIZES, COUNTS = (24, 48, 80), (1, 8, 16)  # of --table


@dataclass(kw_only=True)
class PlanSettings(Settings):
    """The hardware, and the run's folder of settings."""

    settings: tyro.conf.Positional[Annotated[str, metavar("SETTINGS_DIR")]]
    """Folder with the sample.yaml and train.yaml that will be run, and perhaps the label.yaml and baseline.yaml."""
    num_gpus: Count = 8
    """GPUs, each with a replica."""
    gpus_per_node: Count = 8
    """GPUs of one node."""
    gpu_memory: Positive = 80
    """Of one GPU, GB as it is sold."""
    tflops: Positive = 312
    """Peak of one GPU in the precision used, TFLOPS; 312: A800 and A100."""
    interconnect: Positive = 200
    """Within a node, GB/s in each direction of one GPU; 200: the A800's NVLink (A100 300, H100 450, PCIe 4.0 about 25)."""
    network: Positive = 200
    """Between nodes, Gb/s of one node."""
    utilisation: Annotated[Positive | None, default_is("an assumption in configs/models")] = None
    """Share of the peak that batched sampling has."""
    training_utilisation: Annotated[Positive | None, default_is("an assumption in configs/models")] = None
    """Share of the peak that training has."""
    scoring_seconds: Annotated[Positive | None, default_is("counted where the metrics' FLOPs are known, else the paper's 1.08")] = None
    """GPU-seconds that the metrics take for a candidate of 512 x 512, as `bench/rewards.py` measures them."""
    num_images: Annotated[Count | None, default_is("those of sample.yaml's folder; without it the paper's 30000")] = None
    """LR images."""
    num_validation_images: Annotated[
        Count | None, default_is("those of train.yaml's folder; without it 100, or none where it names none")
    ] = None
    """Held-out images of the training's validation."""
    lr_size: Annotated[tuple[Count, Count] | None, default_is("the first's; 128 128"), metavar("WIDTH HEIGHT")] = None
    """Of an LR image, pixels."""
    table: bool = False
    """Print instead what fits 1, 8 and 16 GPUs of 24, 48 and 80 GB, and the flags that make it fit."""


def settings_of(settings, path, **defaults):
    """The settings of a stage by its file."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; a plan reads sample.yaml and train.yaml")
    # where things are written does not matter here, and an experiment's settings do not say it
    places = {entry.name: "-" for entry in fields(settings) if entry.name in ("output_dir", "candidates_dir", "train_dir")}
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


def validation_images(args, training):
    """How many held-out images a training validates on; 0 where it does not."""
    from dp2osr.data.inputs import list_images

    path = training.validation_image_path
    if not training.validation_steps or not (path or args.num_validation_images):
        return 0
    return args.num_validation_images or (len(list_images(path)) if Path(path).exists() else 100)


def model_of(args):
    """(`PlannedModel`, LR images) of the folder's sample.yaml."""
    from dp2osr.planning.models import read_published
    from dp2osr.planning.stages import PlannedModel

    sampling = settings_of(GenerateSettings, Path(args.settings) / "sample.yaml")
    on_disk = Path(sampling.pretrained_model_name_or_path).exists()
    if not on_disk and not sampling.backbone:
        raise UserError(f"{sampling.pretrained_model_name_or_path}: is not on disk; say with `backbone:` in sample.yaml which model it is")
    count, lr_size = images_of(args, sampling)
    return PlannedModel(sampling, lr_size, None if on_disk else read_published(sampling.backbone)), count, lr_size


def main():
    args = parse(PlanSettings, description=__doc__)
    for name in ("utilisation", "training_utilisation"):
        if (getattr(args, name) or 0) > 1:
            raise UserError(f"--{name} {getattr(args, name)}: is a share, at most 1")
    from dp2osr.planning.hardware import Machine
    from dp2osr.planning.plan_tables import print_fits, print_plan
    from dp2osr.planning.stages import scoring_seconds

    folder = Path(args.settings)
    model, count, lr_size = model_of(args)
    training = settings_of(TrainSettings, folder / "train.yaml", backbone=model.kind)
    baseline = settings_of(BaselineSettings, folder / "baseline.yaml") if (folder / "baseline.yaml").is_file() else None
    if args.table:
        print_fits(model, training, baseline, [(gpus, size) for size in SIZES for gpus in COUNTS])
        return
    print(f"{count:,} LR images of {lr_size[0]} × {lr_size[1]}", end=", ")
    machine = Machine(args.num_gpus, args.gpu_memory, args.tflops, args.gpus_per_node, args.interconnect, args.network)
    metrics, utilisation = metrics_of(folder / "label.yaml"), {"sampling": args.utilisation, "training": args.training_utilisation}
    scoring = scoring_seconds(metrics, args.tflops, args.scoring_seconds)
    print_plan(model, machine, count, training, baseline, scoring, metrics, validation_images(args, training), utilisation)


if __name__ == "__main__":
    run(main)
