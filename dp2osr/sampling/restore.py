"""Super-resolution of a folder: the released way to use a model, one or more samples an image."""

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dp2osr.config import settle
from dp2osr.data.images import list_images, read_image, read_image_and_alpha, save_image, tensor_to_pil
from dp2osr.device import compute_device
from dp2osr.sampling.sampler import GroupSampler, sampling_record
from dp2osr.sampling.store import TOLD


def restore_folder(args):
    """Write the SR image(s) of every image of `args.image_path`; results that are there already are kept.

    Raises:
        UserError: the folder holds results of other settings, and `--overwrite` is not given.
    """
    from accelerate import PartialState

    paths = list_images(args.image_path)
    for path in paths:  # all are readable, before the first expensive second
        read_image(path)
    output = Path(args.output_dir)
    state = PartialState(cpu=compute_device() == "cpu")
    sampler = GroupSampler(args, state.device)
    if state.is_main_process:
        record = output / f"settings{args.suffix}.json"  # results with another suffix may lie beside these
        if args.overwrite:
            record.unlink(missing_ok=True)
            for path in paths:
                for name in result_names(path, args):
                    (output / name).unlink(missing_ok=True)
        settings = sampling_record(args, sampler, sample_times=args.sample_times, process_size=args.process_size)
        settle(record, settings, told=TOLD)
    state.wait_for_everyone()
    share = paths[state.process_index :: state.num_processes]
    for path in tqdm(share, unit="image", desc="restore", disable=not state.is_local_main_process):
        names = result_names(path, args)
        text = output / "txt" / f"{path.stem}{args.suffix}.txt"
        if all((output / name).exists() for name in names) and (text.exists() or not args.save_prompts):
            continue
        lr, alpha = read_image_and_alpha(path)
        group = sampler.sample(path.stem, lr, args.sample_times)
        for name, image in zip(names, sampler.images(group), strict=True):
            result = tensor_to_pil(image)
            if alpha is not None:
                result.putalpha(alpha.resize(result.size, Image.Resampling.BICUBIC))
            save_image(result, output / name)
        if args.save_prompts:
            text.parent.mkdir(exist_ok=True)
            text.write_text(group.prompt + "\n", encoding="utf-8")
    state.wait_for_everyone()


def result_names(path, args):
    """File names of the results of one input."""
    if args.sample_times == 1:
        return [f"{path.stem}{args.suffix}.png"]
    digits = max(2, len(str(args.sample_times - 1)))
    return [f"{path.stem}_{index:0{digits}d}{args.suffix}.png" for index in range(args.sample_times)]
