"""Checkpoints: written beside and renamed; the newest whole one is taken, older ones are removed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.errors import UserError, listed
from dp2osr.files import save_model, whole, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

DIGEST_PART = 2**22  # numbers that are looked at together: 64 MB beside the weights
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a number


def save_controlnet(controlnet: torch.nn.Module, folder: str | Path, sampling: Mapping[str, Any] | None = None) -> None:
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


def save_checkpoint(output_dir: str | Path, step: int, parts: Mapping[str, Any], keep: int, writes: bool = True) -> None:
    """Write the states of `parts` ({name: module or optimizer}) to `checkpoint-STEP.pt`, whole or not at all; keep the newest `keep`.

    A process that does not write has a part in it where a state lies on several.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    if not writes:
        return
    with whole(Path(output_dir) / f"checkpoint-{step}.pt") as part:
        torch.save({"step": step, **state}, part)
    for path in list_checkpoints(output_dir)[keep:]:
        path.unlink()


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint files, newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*.pt") if path.stem.split("-")[1].isdecimal()]
    return sorted(found, key=lambda path: -int(path.stem.split("-")[1]))


def restore_checkpoint(output_dir: str | Path, parts: Mapping[str, Any]) -> int:
    """Load the newest readable checkpoint into `parts`, named as they were saved; returns its step, 0 if there is none."""
    state = load_checkpoint(output_dir)
    if state is None:
        return 0
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
            take_from_file(part)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{output_dir}: its checkpoint is of another kind of run ({reason}); use another output folder") from None
    print(f"{output_dir}: goes on from step {state['step']}", file=sys.stderr)
    return state["step"]


def load_checkpoint(output_dir: str | Path) -> dict[str, Any] | None:
    """State of the newest readable checkpoint, or None; a broken one is passed over with a warning.

    Its tensors lie in the file until they are copied, once for all processes of a machine; where the file system cannot, in memory.
    """
    for path in list_checkpoints(output_dir):
        for mapped in (True, False):
            try:
                return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
            except Exception as error:  # a truncated zip raises RuntimeError, OSError, EOFError or UnpicklingError
                reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        print(f"warning: {path}: passed over, not readable ({reason})", file=sys.stderr)
    return None


def take_from_file(part: Any) -> None:
    """Copy what an optimizer on a CPU has taken of a checkpoint as it lies in the file, which may go.

    All of it then lies in memory as its parameter does: fused optimizers go through both in the order of memory.
    """
    for parameter, state in getattr(part, "state", {}).items():
        for key, value in state.items():
            if not isinstance(value, torch.Tensor):
                continue
            like = parameter.detach() if value.shape == parameter.shape else value
            if value.device.type == "cpu" or value.stride() != like.stride():
                state[key] = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


@torch.no_grad()
def weights_digest(parameters: Sequence[torch.Tensor]) -> list[int]:
    """A number for each parameter that follows from all of its bits, the same in any order of addition; computed where they are."""
    digests = []
    for parameter in parameters:
        total = torch.zeros((), dtype=torch.int64, device=parameter.device)
        for number, part in enumerate(parameter.detach().reshape(-1).split(DIGEST_PART)):
            bits = part.view(BITS[part.element_size()]).to(torch.int64)
            odd = torch.arange(number * DIGEST_PART, number * DIGEST_PART + len(bits), device=part.device).mul_(2).add_(1)
            total += (bits + 1).mul_(odd).sum()
        digests.append(total)
    return torch.stack(digests).tolist() if digests else []


def check_agreement(step: int, accelerator: Accelerator, parameters: Sequence[torch.Tensor] = ()) -> None:
    """Raise `UserError` unless all processes are at the same step and have the same `parameters`."""
    from accelerate.utils import gather_object

    if accelerator.num_processes == 1:
        return
    steps = gather_object([step])
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes go on from different steps ({listed([str(found) for found in sorted(set(steps))])}); --output_dir must lie "
            "on a file system that they share"
        )
    weights: list[list[int]] = gather_object([weights_digest(parameters)])
    others = [str(rank) for rank, found in enumerate(weights) if found != weights[0]]
    if others:
        raise UserError(
            f"step {step}: the weights of rank {listed(others)} of {len(weights)} are not those of rank 0; nothing of this step is saved. "
            "Give all nodes the same files and start the same command again; if it comes back, look at the card and network of that rank"
        )
