"""Checkpoints: written beside and renamed; the newest whole one is taken, older ones are removed."""

import os
import shutil
import sys
from pathlib import Path

import torch

from dp2osr.errors import UserError, listed
from dp2osr.files import save_model, whole, write_json


def save_controlnet(controlnet, folder, sampling=None):
    """Diffusers layout, and `model.safetensors` (a link to the same bytes) as the released files are named.

    `sampling`, if given, is written beside as sampling_settings.json: what the test programs take by default.
    """
    folder = Path(folder)
    if sampling:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "sampling_settings.json", sampling)
    save_model(controlnet, folder)
    link = folder / "model.safetensors"
    link.unlink(missing_ok=True)
    try:
        os.link(folder / "diffusion_pytorch_model.safetensors", link)
    except OSError:
        shutil.copyfile(folder / "diffusion_pytorch_model.safetensors", link)


def save_checkpoint(output_dir, step, parts, keep):
    """Write the states of `parts` ({name: module or optimizer}) to `checkpoint-STEP.pt`, whole or not at all; keep the newest `keep`."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with whole(Path(output_dir) / f"checkpoint-{step}.pt") as part:
        torch.save({"step": step, **state}, part)
    for path in list_checkpoints(output_dir)[keep:]:
        path.unlink()


def list_checkpoints(output_dir):
    """Checkpoint files, newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*.pt") if path.stem.split("-")[1].isdecimal()]
    return sorted(found, key=lambda path: -int(path.stem.split("-")[1]))


def restore_checkpoint(output_dir, parts):
    """Load the newest readable checkpoint into `parts`, named as they were saved; returns its step, 0 if there is none."""
    state = load_checkpoint(output_dir)
    if state is None:
        return 0
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{output_dir}: its checkpoint is of another kind of run ({reason}); use another output folder") from None
    print(f"{output_dir}: goes on from step {state['step']}", file=sys.stderr)
    return state["step"]


def load_checkpoint(output_dir):
    """State of the newest readable checkpoint, or None; a broken one is passed over with a warning."""
    for path in list_checkpoints(output_dir):
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # a truncated zip raises RuntimeError, OSError, EOFError or UnpicklingError
            print(f"warning: {path}: passed over, not readable ({str(error).splitlines()[0][:100]})", file=sys.stderr)
    return None


def check_agreement(step, accelerator):
    """Raise `UserError` unless all processes are at the same step."""
    from accelerate.utils import gather_object

    steps = gather_object([step])
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes go on from different steps ({listed([str(found) for found in sorted(set(steps))])}); --output_dir must lie "
            "on a file system that they share"
        )
