"""What the benches share: full-size models from random weights, and a process's memory."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def memory(entry):
    """An entry of this process's memory status, GB: VmRSS, what it holds, or VmHWM, the most that it held (Linux)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return int(line.split()[1]) / 1e6


@contextmanager
def models(full_size):
    """Within, the path of a folder that holds `base` and `controlnet`: the tiny preset's, or those of `make_full_size`."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if full_size:
            make_full_size(folder)
        else:
            (folder / "base").symlink_to(ROOT / "preset/models/tiny-sd2")
            (folder / "controlnet").symlink_to(ROOT / "preset/models/c-tiny-sd2")
        yield str(folder)


def make_full_size(folder):
    """Stable Diffusion 2-base and its ControlNet from their published configs with random weights, in diffusers' layout."""
    import torch
    import yaml
    from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = yaml.safe_load((ROOT / "configs/models/sd2_base.yaml").read_text())
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config["unet"])
    controlnet = ControlNetModel.from_unet(unet)
    for block in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block, controlnet.controlnet_cond_embedding.conv_out]:
        torch.nn.init.normal_(block.weight, std=0.02)  # zero convolutions would hide what the ControlNet does
    parts = {"unet": unet, "vae": AutoencoderKL(**config["vae"]), "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))}
    for name, part in {**parts, "scheduler": DDPMScheduler(**config["scheduler"])}.items():
        part.save_pretrained(folder / "base" / name)
    controlnet.save_pretrained(folder / "controlnet")
    shutil.copytree(ROOT / "preset/models/tiny-sd2/tokenizer", folder / "base/tokenizer")
    shutil.copy(ROOT / "preset/models/tiny-sd2/model_index.json", folder / "base")
    print(f"UNet {unet.num_parameters() / 1e6:.1f} M, ControlNet {controlnet.num_parameters() / 1e6:.1f} M parameters")
