"""The reference's errors on disk: it never changes, so a second training on the same visits need not run it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.errors import UserError
from dp2osr.files import write_json
from dp2osr.provenance import weights_hash

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone
    from dp2osr.preference.groups import PreferenceGroup
    from dp2osr.sampling.store import CandidateStore
    from dp2osr.training.settings import TrainSettings


class ReferenceCache:
    """Errors by group, timestep and noise. Trainings that differ in loss, β, N, weights or learning rate share them; other seeds do not.

    One JSON a visit, {candidate: error}, under `folder`/<hash of `origin`>/<image id>/; its name holds step, visit, timestep and a hash of
    control image and prompt, its keys a hash of the candidate's latents. It may be read-only where nothing is missing.

    Args:
        folder: of the cache; made if it is not there.
        origin: what else decides an error: hashes of base and reference, seed, precision, guidance.
    """

    def __init__(self, folder: str | Path, origin: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.folder = Path(folder) / digest
        self.hits = self.visits = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "settings.json").exists():
                write_json(self.folder / "settings.json", origin)
        except OSError as error:
            raise UserError(f"--reference_cache {folder}: cannot be written ({error.strerror}); give another folder") from None

    def path(self, group: PreferenceGroup, timestep: torch.Tensor, step: int, visit: int) -> Path:
        conditions = fingerprint(group.control, *(group.prompt[name] for name in sorted(group.prompt)))
        return self.folder / group.image_id / f"{step}-{visit}-{timestep.item():.9g}-{conditions}.json"

    def keys(self, group: PreferenceGroup) -> list[str]:
        return [f"{candidate}-{fingerprint(latents)}" for candidate, latents in zip(group.candidates, group.latents, strict=True)]

    def stored(self, path: Path) -> dict[str, float]:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):  # not there, or cut by a full disk: it is computed anew
            return {}

    def read(self, group: PreferenceGroup, timestep: torch.Tensor, step: int, visit: int) -> torch.Tensor | None:
        """(2N,) float32 errors of the group's candidates, or None where one of them is not known."""
        stored, keys = self.stored(self.path(group, timestep, step, visit)), self.keys(group)
        self.visits += 1
        if any(key not in stored for key in keys):
            return None
        self.hits += 1
        return torch.tensor([stored[key] for key in keys], dtype=torch.float32)

    def write(self, group: PreferenceGroup, timestep: torch.Tensor, step: int, visit: int, errors: torch.Tensor) -> None:
        """Add the errors (2N,) of the group's candidates."""
        path = self.path(group, timestep, step, visit)
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, {**self.stored(path), **dict(zip(self.keys(group), errors.tolist(), strict=True))})
        except PermissionError:
            raise UserError(
                f"{path.parent}: cannot be written, and an error of this visit is not in it; give another --reference_cache"
            ) from None


def open_cache(
    args: TrainSettings, backbone: Backbone, store: CandidateStore, precision: str, control_scale: float
) -> ReferenceCache | None:
    """The cache of `--reference_cache`, if given, filed under all that decides an error of a run beside group, timestep and noise."""
    if not args.reference_cache:
        return None
    origin = {
        "reference": weights_hash(args.reference_controlnet_model_name_or_path or args.controlnet_model_name_or_path),
        "model": store.settings["model_hash"],
        "variant": args.variant,
        "revision": args.revision,
        "guidance": backbone.guidance,
        "control_scale": control_scale,
        "seed": args.seed,
        "shared_noise": args.shared_noise,
        "device": backbone.device.type,
        "mixed_precision": precision,
        "frozen": f"{backbone.dtype} {args.quantize_backbone}" if args.quantize_backbone else str(backbone.dtype),
        # rounding depends on what is computed together, and β multiplies it: in 16 bits N and batch are part of what was computed
        "together": None if precision == "no" else [args.top_n, args.micro_batch_size],
    }
    return ReferenceCache(args.reference_cache, origin)


def fingerprint(*tensors: torch.Tensor) -> str:
    """8 hexadecimal digits of the tensors' content."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
