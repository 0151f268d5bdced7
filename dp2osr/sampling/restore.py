"""Super-resolution of a folder: the released way to use a model, one or more samples an image."""

from pathlib import Path

import torch
from tqdm import tqdm

from dp2osr.config import write_json
from dp2osr.data.images import list_images, read_image, save_image, tensor_to_pil
from dp2osr.provenance import versions, weights_hash
from dp2osr.sampling.sampler import GroupSampler


def restore_folder(args):
    """Write the SR image(s) of every image of `args.image_path`; results that are there already are kept."""
    from accelerate import PartialState

    paths = list_images(args.image_path)
    for path in paths:  # all are readable, before the first expensive second
        read_image(path)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.is_main_process:
        hashes = {name: weights_hash(getattr(args, name)) for name in ("pretrained_model_name_or_path", "controlnet_model_name_or_path")}
        write_json(output / "settings.json", {**vars(args), "weights": hashes, "versions": versions()})
    sampler = GroupSampler(args, state.device)
    if args.process_size:
        sampler.backbone.native_size = args.process_size
    share = paths[state.process_index :: state.num_processes]
    for path in tqdm(share, unit="image", desc="restore", disable=not state.is_local_main_process):
        names = result_names(path, args)
        if all((output / name).exists() for name in names):
            continue
        group = sampler.sample(path.stem, read_image(path), args.sample_times)
        for name, image in zip(names, sampler.images(group), strict=True):
            save_image(tensor_to_pil(image), output / name)
    state.wait_for_everyone()


def result_names(path, args):
    """File names of the results of one input."""
    if args.sample_times == 1:
        return [f"{path.stem}{args.suffix}.png"]
    return [f"{path.stem}_{index}{args.suffix}.png" for index in range(args.sample_times)]
