"""Checkpoints: written beside and renamed; the newest whole one is taken, older ones are removed."""

import os
import shutil
import sys
from pathlib import Path

import torch

from dp2osr.errors import UserError


def save_controlnet(controlnet, folder):
    """Diffusers layout, and `model.safetensors` (a link to the same bytes) as the released files are named."""
    folder = Path(folder)
    controlnet.save_pretrained(folder)
    link = folder / "model.safetensors"
    link.unlink(missing_ok=True)
    try:
        os.link(folder / "diffusion_pytorch_model.safetensors", link)
    except OSError:
        shutil.copyfile(folder / "diffusion_pytorch_model.safetensors", link)


def replace_folder(folder, write):
    """Let `write` fill a folder beside `folder`, then put it in its place; what a stop between two renames left is put back first."""
    folder = Path(folder)
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(output_dir, step, parts, keep):
    """Write the states of `parts` ({name: module or optimizer}) to `checkpoint-STEP.pt`, whole or not at all; keep the newest `keep`."""
    state = {name: part.state_dict() for name, part in parts.items()}
    part = Path(output_dir) / f".checkpoint-{step}.part"
    try:
        torch.save({"step": step, **state}, part)
        part.rename(Path(output_dir) / f"checkpoint-{step}.pt")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    for path in list_checkpoints(output_dir)[keep:]:
        path.unlink()


def list_checkpoints(output_dir):
    """Checkpoint files, newest first."""
    return sorted(Path(output_dir).glob("checkpoint-*.pt"), key=lambda path: -int(path.stem.split("-")[1]))


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
