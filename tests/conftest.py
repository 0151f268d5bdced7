"""Shared fixtures: small models, a small candidate store, a shell around the programs."""

import json
import os
import signal
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from programs import run_program

from dp2osr.cli import parse
from dp2osr.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Kind:
    """One of the two kinds of backbone, by a small model of it and its programs.

    models: the folder of its model: `tests/models` has random ones (make_models.py), `preset/models` those that are shipped.
    """

    name: str
    test_program: str
    models: str = "tests/models"

    @property
    def model(self):
        return str(ROOT / self.models / f"tiny-{self.name}")

    @property
    def controlnet(self):
        return str(ROOT / self.models / f"c-tiny-{self.name}")

    @property
    def model_flags(self):
        return ["--pretrained_model_name_or_path", self.model, "--controlnet_model_name_or_path", self.controlnet]

    @property
    def training_program(self):
        return f"train_{self.name}_dpo.py"

    def training_settings(self, words):
        """The settings that the training program reads from words of the command line."""
        return parse(TrainSettings, words, backbone=self.name)


KINDS = {kind.name: kind for kind in (Kind("sd2", "test_sd2b_controlnet.py"), Kind("flux", "test_flux_controlnet.py"))}
SHIPPED = {name: replace(kind, models="preset/models") for name, kind in KINDS.items()}
MODEL, CONTROLNET, MODEL_FLAGS = KINDS["sd2"].model, KINDS["sd2"].controlnet, KINDS["sd2"].model_flags


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """As in a program of its own: accelerate keeps the first precision that a process asks for."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def ctrl_c():
    """SIGINT as at a terminal, also where the tests run in the background, for which shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.SIGINT
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request):
    """Tests of what both kinds of backbone must do the same run once for each."""
    return KINDS[request.param]


@pytest.fixture(params=list(SHIPPED))
def shipped_kind(request):
    """The same, with the embedded tiny models: of tests that look at what a model makes."""
    return SHIPPED[request.param]


@pytest.fixture(scope="session")
def backbone(kind):
    from dp2osr.backbones import load_backbone

    return load_backbone(kind.model)


@pytest.fixture(scope="session")
def controlnet(kind, backbone):
    return backbone.load_controlnet(kind.controlnet)


@pytest.fixture(scope="session")
def sd2():
    from dp2osr.backbones import load_backbone

    return load_backbone(MODEL)


@pytest.fixture(scope="session")
def shipped_sd2():
    from dp2osr.backbones import load_backbone

    return load_backbone(SHIPPED["sd2"].model)


@pytest.fixture(scope="session")
def sd2_controlnet(sd2):
    return sd2.load_controlnet(CONTROLNET)


def settings_with(kind, **values):
    """Settings of a `kind` whose required fields that are not given are "-"."""
    needed = (entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING)
    return kind(**{**dict.fromkeys(needed, "-"), **values})


# A test of what no backbone has a part in needs one of them only.
one_kind = pytest.mark.parametrize("kind", ["sd2"], indirect=True)


def assert_one_clear_line(done, *mentions):
    """A user's mistake: exit code 2, a last line that begins with 'error:' and names what it must, no traceback."""
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr[-2000:]
    assert last.startswith("error: ") and "Traceback" not in done.stderr, done.stderr[-2000:]
    for mention in mentions:
        assert mention in last, last


@pytest.fixture(scope="session")
def lr_folder(tmp_path_factory):
    """Three LR photographs of the training preset."""
    folder = tmp_path_factory.mktemp("lr")
    for path in sorted((ROOT / "preset/train/lr").glob("*.png"))[::100]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def sampled(kind, tmp_path_factory, lr_folder):
    """A candidate folder: 3 images, M = 6, two denoising steps."""
    return sample(kind, lr_folder, tmp_path_factory.mktemp("candidates") / "store")


def sample(kind, lr_folder, folder):
    """The same into `folder`."""
    run_program("gen_candidates.py", *kind.model_flags, *SAMPLING, "--image_path", lr_folder, "--output_dir", folder)
    return folder


SAMPLING = ["--num_inference_steps", "2", "--guidance_scale", "1", "--num_candidates", "6", "--batch_size", "4", "--seed", "3"]


@pytest.fixture(scope="session")
def labelled(sampled):
    """The same with made-up scores."""
    write_made_up_scores(sampled)
    return sampled


def write_made_up_scores(folder):
    """`scores.parquet` of a candidate folder and `reward.yaml`: random `gmsd` and `piqe`, both lower is better."""
    from dp2osr.rewards.table import write_scores
    from dp2osr.sampling.store import CandidateStore

    store, rng = CandidateStore(folder), np.random.default_rng(0)
    ids, count = store.ids(), store.settings["num_candidates"]
    columns = {
        "image_id": [image_id for image_id in ids for _ in range(count)],
        "candidate": [m for _ in ids for m in range(count)],
        "gmsd": rng.random(count * len(ids)),
        "piqe": rng.random(count * len(ids)) * 50,
    }
    about = {"gmsd": {"lower_better": True, "mode": "FR", "options": {}}, "piqe": {"lower_better": True, "mode": "NR", "options": {}}}
    write_scores(folder / "scores.parquet", columns, {"pyiqa": "0", "metrics": about, "candidates": {}})
    (folder / "reward.yaml").write_text("fr: [gmsd]\nnr: [piqe]\n", encoding="utf-8")


def save_noise(path, size, seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def read_log(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


from trainings import trained  # noqa: E402, F401 - a fixture that several files share
