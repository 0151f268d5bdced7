"""The reference's errors on disk: it never changes, so a second training on the same visits need not run it."""

import hashlib
import json
from pathlib import Path

import torch

from dp2osr.config import write_json
from dp2osr.errors import UserError


class ReferenceCache:
    """Errors by group, timestep and noise. Trainings that differ in loss, β, N, weights or learning rate share them; other seeds do not.

    One JSON a visit, {candidate: error}, under `folder`/<hash of all else that decides an error>/<image id>/.

    Args:
        folder: of the cache; made if it is not there.
        origin: what else decides an error: hashes of base and reference, the candidates' settings, precision, guidance.
        args: parsed `TRAINING_FLAGS`; read are seed, shared_noise.
    """

    def __init__(self, folder, origin, args):
        settings = {**origin, "seed": args.seed, "shared_noise": args.shared_noise}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.folder = Path(folder) / digest
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--reference_cache {folder}: cannot be made ({error.strerror}); give a folder that can be written to"
            ) from None
        write_json(self.folder / "settings.json", settings)
        self.hits = self.visits = 0

    def path(self, group, timestep, step, visit):
        return self.folder / group.image_id / f"{step}-{visit}-{timestep.item():.9g}.json"

    def stored(self, path):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):  # not there, or cut by a full disk: it is computed anew
            return {}

    def read(self, group, timestep, step, visit):
        """(2N,) float32 errors of the group's candidates, or None where one of them is not known."""
        stored = self.stored(self.path(group, timestep, step, visit))
        self.visits += 1
        if any(str(candidate) not in stored for candidate in group.candidates):
            return None
        self.hits += 1
        return torch.tensor([stored[str(candidate)] for candidate in group.candidates], dtype=torch.float32)

    def write(self, group, timestep, step, visit, errors):
        """Add the errors (2N,) of the group's candidates."""
        path = self.path(group, timestep, step, visit)
        path.parent.mkdir(exist_ok=True)
        known = {str(candidate): error for candidate, error in zip(group.candidates, errors.tolist(), strict=True)}
        write_json(path, {**self.stored(path), **known})
