"""BRISQUE with parameters from a safetensors file: pyiqa's features and kernel, and a regressor that needs no download."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import safe_open

from dp2osr.errors import UserError
from dp2osr.files import save_tensors
from dp2osr.outputs import check_output, refuse_inputs


class Brisque(torch.nn.Module):
    """BRISQUE (Mittal, Moorthy, Bovik 2012) score of images; lower is better.

    Features, down-sampling and RBF kernel are pyiqa's (`brisque_arch`). Each support-vector machine has the feature
    ranges that it was trained with; pyiqa's function has the ranges of its own machine built in, so the scaling
    is done here with the file's.

    Args:
        path: safetensors with `support_vectors` (S, 36), `coefficients` (S,), `feature_min` and `feature_max` (36,),
            and `gamma`, `rho` in its metadata.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            with safe_open(Path(path), "pt") as file:
                for name in ("support_vectors", "coefficients", "feature_min", "feature_max"):
                    self.register_buffer(name, file.get_tensor(name).double())
                constants = json.loads(file.metadata()["constants"])
        except Exception as error:  # safetensors raises its own type, absent keys another
            raise UserError(f"{path}: not a BRISQUE parameter file ({error}); restore it from the repository") from None
        self.gamma, self.rho = constants["gamma"], constants["rho"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] → (B,)."""
        from pyiqa.archs.brisque_arch import imresize, natural_scene_statistics, rbf_kernel, to_y_channel

        # In float64: coefficients of ±1024 cancel, and float32 sums would depend on the batch in the fourth digit.
        luma = to_y_channel(images.double(), 255.0)
        half = imresize(luma, scale=0.5, antialiasing=True)
        features = torch.cat([natural_scene_statistics(luma), natural_scene_statistics(half)], dim=-1)
        scaled = 2 * (features - self.feature_min) / (self.feature_max - self.feature_min) - 1
        return rbf_kernel(scaled, self.support_vectors.t(), self.gamma) @ self.coefficients - self.rho


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries and numbers; refuses to import anything."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise UserError(f"the pickle wants {module}.{name}; only plain numbers are expected in it")


def convert_wheel(wheel: str | Path, output: str | Path) -> None:
    """Write the libsvm model and the feature ranges in the wheel of PyPI's `brisque` as the file that `Brisque` reads.

    Raises:
        UserError: a file that is no such wheel, or an output that cannot be written or is the wheel.
    """
    check_output(output, "--output", is_file=True)
    refuse_inputs(output, {"--wheel": wheel}, flag="--output")
    try:
        with zipfile.ZipFile(wheel) as archive:
            header, body = archive.read("brisque/models/svm.txt").decode().split("SV\n", 1)
            ranges = _PlainUnpickler(io.BytesIO(archive.read("brisque/models/normalize.pickle"))).load()
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"--wheel {wheel}: is not the wheel of brisque 0.2.0 ({' '.join(str(error).split())[:160]})") from None
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    settings = dict(line.split(" ", 1) for line in header.splitlines() if line)
    rows = [row.split() for row in body.splitlines()]
    tensors = {
        "support_vectors": torch.tensor([[float(cell.split(":")[1]) for cell in row[1:]] for row in rows]),
        "coefficients": torch.tensor([float(row[0]) for row in rows]),
        "feature_min": torch.tensor(ranges["min_"]),
        "feature_max": torch.tensor(ranges["max_"]),
    }
    origin = {
        "constants": json.dumps({"gamma": float(settings["gamma"]), "rho": float(settings["rho"])}),
        "source": "PyPI package brisque 0.2.0: models/svm.txt, models/normalize.pickle",
        "licence": "Apache-2.0",
        "credit": "Copyright 2024 Rehan Guha; method: Mittal, Moorthy, Bovik 2012",
    }
    save_tensors(tensors, output, origin)
