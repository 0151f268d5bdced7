"""How far samples lie from those of a long trajectory with the same noise, by the flags that make them cheaper.

    python studies/solver_errors.py --model preset/models/tiny-flux --controlnet preset/models/c-tiny-flux --lr_path preset/test/lr \\
        --steps 8 --reference "num_inference_steps 64 scheduler flow_dpm" \\
        --set "scheduler flow_euler" "num_inference_steps 4 scheduler flow_dpm" "taylorseer_interval 3"

A solver that draws noise at its steps has no such trajectory. What the flags cost is what bench/levers.py counts.
"""

import shlex
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, metavar


@dataclass(kw_only=True)
class ErrorSettings(Settings):
    """A model, images, and sets of flags of gen_candidates.py."""

    model: str
    """Base model: a diffusers folder."""
    controlnet: str
    """Its ControlNet."""
    lr_path: str
    """Folder of LR images."""
    reference: str
    """Flags of the long trajectory, without their dashes: NAME VALUE NAME VALUE ..."""
    set: Annotated[list[str], metavar('"NAME VALUE ..."')]
    """Flags that are compared with it."""
    steps: Count = 8
    """--num_inference_steps where a set names none."""
    max_images: Count = 20
    """Images, evenly spread over the folder's names."""


def main():
    args = parse(ErrorSettings, description=__doc__)
    from dp2osr.backbones import load_backbone
    from dp2osr.data.inputs import list_images
    from dp2osr.data.part import evenly
    from dp2osr.device import compute_device
    from dp2osr.stats import bootstrap_weights, photographs_of

    files = evenly(list_images(args.lr_path), args.max_images)
    backbone = load_backbone(args.model, device=compute_device())
    wanted = samples_of(args, args.reference, files, backbone)
    weights = bootstrap_weights(photographs_of(list(wanted)), 2000, 0)
    print("| flags | RMSE, levels of 255 | 95 % interval |\n|---|---|---|")
    for flags in args.set:
        found = samples_of(args, flags, files, backbone)
        squares = np.array([np.square(found[name] - wanted[name]).mean() for name in wanted])
        low, high = np.sqrt(np.percentile(weights @ squares / weights.sum(1), [2.5, 97.5]))
        print(f"| `{' '.join(dashed(flags))}` | {np.sqrt(squares.mean()):.2f} | {low:.2f} to {high:.2f} |", flush=True)


def dashed(flags):
    """`scheduler flow_dpm` → the words `--scheduler`, `flow_dpm`."""
    return [f"--{word}" if place % 2 == 0 else word for place, word in enumerate(shlex.split(flags))]


def samples_of(args, flags, files, backbone):
    """{image id: its two samples by the flags, (2, 3, H, W) in levels of 255}, all from the same noise."""
    from dp2osr.data.images import read_image
    from dp2osr.sampling.decode import finish_images
    from dp2osr.sampling.sampler import GroupSampler
    from dp2osr.sampling.settings import GenerateSettings

    words = [
        "--pretrained_model_name_or_path",
        args.model,
        "--controlnet_model_name_or_path",
        args.controlnet,
        "--image_path",
        args.lr_path,
    ]
    words += ["--output_dir=-", "--num_candidates", "2", "--num_inference_steps", str(args.steps), "--guidance_scale", "1"]
    sampler = GroupSampler(parse(GenerateSettings, [*words, "--align_method", "wavelet", *dashed(flags)]), backbone.device, backbone)
    samples = {}
    for path in files:
        lr = read_image(path)
        group = sampler.sample(path.stem, lr, 2)
        samples[path.stem] = 255 * finish_images(sampler.backbone, group.latents, lr, 4, "wavelet").numpy()
    return samples


if __name__ == "__main__":
    run(main)
