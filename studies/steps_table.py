"""The table of `studies/steps.py`: samples of models at several numbers of steps, scored beside bicubic and GT."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from dp2osr.cli import named_folders
from dp2osr.data.contact_sheet import draw_sheet
from dp2osr.data.images import pil_to_tensor, read_image, tensor_to_pil
from dp2osr.data.inputs import find_gt, list_images
from dp2osr.device import compute_device
from dp2osr.errors import UserError
from dp2osr.files import whole
from dp2osr.rewards.config import MetricSpec, load_reward_config
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.settings import GenerateSettings
from studies.settings import StepsSettings

SHOWN = 8  # images on the sheet


@torch.no_grad()
def tabulate(args: StepsSettings) -> None:
    """Write steps.csv (one row a model, number of steps and image; means over seeds) and sheet.png; print means over images."""
    models = named_folders(args.models, "--models", "base=preset/models/tiny-flux+preset/models/c-tiny-flux", ("bicubic", "GT"))
    specs = [*load_reward_config(args.reward_config).metrics, *(MetricSpec(name) for name in args.extra_metrics)]
    suite, output = MetricSuite(specs, compute_device()), Path(args.output_dir)
    lr = {path.stem: read_image(path) for path in list_images(args.image_path)}
    gt = {name: read_image(path) for name, path in find_gt(args.gt_path, list(lr)).items()}
    bicubic = {name: image.resize(gt[name].size, Image.Resampling.BICUBIC) for name, image in lr.items()}
    rows, pictures = [], {name: [bicubic[name]] for name in list(lr)[:SHOWN]}

    def add(model: str, steps: int, name: str, images: torch.Tensor) -> None:
        scores = suite.score(images, pil_to_tensor(gt[name]), name)
        rows.append({"model": model, "steps": steps, "image": name, **{metric: values.mean() for metric, values in scores.items()}})

    for name in lr:
        add("bicubic", 0, name, pil_to_tensor(bicubic[name])[None])
        add("GT", 0, name, pil_to_tensor(gt[name])[None])
    titles = ["bicubic"]
    for model, sampler in samplers(args, models):
        for steps in args.steps:
            sampler.settings = replace(sampler.settings, num_inference_steps=steps)
            titles.append(f"{model} {steps}")
            for name, image in tqdm(lr.items(), desc=titles[-1], unit="image", mininterval=5):
                images = sampler.images(sampler.sample(name, image, args.num_candidates))
                add(model, steps, name, images)
                if name in pictures:
                    pictures[name].append(tensor_to_pil(images[0]))
    table = pd.DataFrame(rows)
    output.mkdir(parents=True, exist_ok=True)
    with whole(output / "steps.csv") as part:
        table.to_csv(part, index=False)
    draw_sheet([[*row, gt[name]] for name, row in pictures.items()], [*titles, "GT"]).save(output / "sheet.png")
    means = table.drop(columns="image").groupby(["model", "steps"]).mean()
    print(means.round(3).to_string(), relative(means, suite).to_string(), sep="\n\n")


def samplers(args: StepsSettings, models: Mapping[str, Path]) -> Iterator[tuple[str, GroupSampler]]:
    """The sampler of each model, by name; one is loaded at a time."""
    for name, folders in models.items():
        base, plus, controlnet = str(folders).partition("+")
        if not plus:
            raise UserError(f"--models {name}={folders}: give NAME=BASE+CONTROLNET")
        options = GenerateSettings(
            pretrained_model_name_or_path=base, controlnet_model_name_or_path=controlnet, image_path=args.image_path,
            output_dir=args.output_dir, guidance_scale=args.guidance_scale, num_candidates=args.num_candidates,
            prompt_source="file" if args.prompt_file else "none", prompt_file=args.prompt_file, batch_size=args.num_candidates,
        )  # fmt: skip
        yield name, GroupSampler(options, compute_device())


def relative(means: pd.DataFrame, suite: MetricSuite) -> pd.DataFrame:
    """Distances (FR, lower is better) as shares of bicubic's."""
    distances = [name for name in means.columns if suite.modes[name] == "FR" and suite.lower_better[name]]
    shares = means[distances] / means.loc[("bicubic", 0), distances]
    return shares.drop(index=["bicubic", "GT"], level="model").round(3) if len(distances) else pd.DataFrame(index=np.array([]))
