"""The whole chain's bookkeeping at full size, with networks that cost nothing: seconds, files, bytes and memory of each stage.

    python bench/rehearsal.py --images 30000 --candidates 64 --work runs/rehearsal      # an hour or two on two cores, 4 GB of disk
    python bench/rehearsal.py --images 60 --work runs/rehearsal_small                   # a try

The programs are the real ones. The model has Stable Diffusion's classes, a few thousand random parameters, latents of 8 × 8 and one
denoising step; the reward is one metric that takes no time. Candidates are sampled by two jobs of two ranks each on one folder; each job
is killed once, with all its ranks, and started again. Labels are written by two jobs. Training goes ten steps, and is run again for ten
more. Sampling and scoring are started once more on finished work: what that takes is their start-up, as the resume of training is its
own. A folder of `--model_gb` of sparse files stands for a large model's weights.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "preset/models/tiny-sd2"
SMALL = {"sample_size": 8, "block_out_channels": [8, 16], "attention_head_dim": 4, "norm_num_groups": 1}
METRIC = """
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.utils.registry import ARCH_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class Rehearsed(nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))


DEFAULT_CONFIGS["rehearsed"] = {"metric_opts": {"type": "Rehearsed"}, "metric_mode": "NR", "lower_better": False}
"""


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30000, help="LR images (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=64, help="M (default: %(default)s)")
    parser.add_argument("--model_gb", type=float, default=58, help="of sparse weights that are hashed (default: %(default)s)")
    parser.add_argument("--work", default="runs/rehearsal", help="working folder, kept (default: %(default)s)")
    return parser


def make_model(folder):
    """A base and a ControlNet of SD2's classes, as small as these go."""
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    if (folder / "controlnet/config.json").exists():
        return
    shutil.copytree(TINY, folder / "base", dirs_exist_ok=True)
    config = UNet2DConditionModel.load_config(TINY, subfolder="unet")
    blocks = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    unet = UNet2DConditionModel.from_config({**config, **SMALL, **blocks})
    unet.save_pretrained(folder / "base/unet")
    vae = AutoencoderKL.load_config(TINY, subfolder="vae")
    AutoencoderKL.from_config({**vae, "block_out_channels": [4, 4, 4], "sample_size": 32}).save_pretrained(folder / "base/vae")
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4)).save_pretrained(folder / "controlnet")
    (folder / "base/sampling_settings.json").write_text(
        json.dumps({"num_inference_steps": 1, "guidance_scale": 1.0, "align_method": "nofix"})
    )


def make_images(folder, count):
    """LR images of 8 × 8 pixels, no two the same, and GT of 32 × 32."""
    rng = np.random.default_rng(0)
    for side, name in ((8, "lr"), (32, "gt")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(len(os.listdir(folder / name)), count):
            Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(folder / name / f"{number:06d}.png")


class Stage:
    """Programs that run side by side, in process groups of their own."""

    def __init__(self, *commands, processes=1):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        self.started = time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as scripts/environment.sh has it: else each start compiles the libraries anew
        self.said = [tempfile.TemporaryFile("w+") for _ in commands]  # noqa: SIM115 (a pipe that nobody reads would hold a job up)
        self.jobs = [
            subprocess.Popen(
                [*(launch if processes > 1 else [sys.executable]), *map(str, words)], cwd=ROOT, env=environment, start_new_session=True,
                stdout=said, stderr=subprocess.STDOUT,
            )
            for words, said in zip(commands, self.said)
        ]  # fmt: skip

    def kill(self):
        """All of the jobs' processes at once: the ranks are in process groups of their own."""
        for job in self.jobs:
            root = psutil.Process(job.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            job.wait()

    def finish(self):
        """Seconds until all have ended; what a failed one said ends the rehearsal."""
        for job, said in zip(self.jobs, self.said):
            if job.wait():
                said.seek(0)
                sys.exit(f"{' '.join(job.args[:3])}: exit code {job.returncode}\n{said.read()[-3000:]}")
        return time.time() - self.started


def wait_for(condition, stage):
    while not condition():
        if any(job.poll() not in (None, 0) for job in stage.jobs):
            stage.finish()
        time.sleep(0.2)


def count_groups(candidates):
    groups = candidates / "groups"
    return sum(not name.startswith(".") for name in os.listdir(groups)) if groups.is_dir() else 0


def size_of(folder):
    """(files, bytes on disk) below a folder."""
    found = [os.lstat(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names]
    return len(found), sum(entry.st_blocks * 512 for entry in found)


def model_flags(work):
    return ["--pretrained_model_name_or_path", work / "model/base", "--controlnet_model_name_or_path", work / "model/controlnet"]


def sampling(args, work, report):
    """Two jobs of two ranks; each is killed once."""
    words = [
        "gen_candidates.py", *model_flags(work), "--image_path", work / "images/lr", "--output_dir", work / "candidates",
        "--num_candidates", args.candidates, "--batch_size", args.candidates,
    ]  # fmt: skip
    begun, jobs = time.time(), [Stage(words, processes=2)]
    wait_for(lambda: count_groups(work / "candidates"), jobs[0])
    report("sampling, from the start to the first group", time.time() - begun, work / "candidates")
    jobs.append(Stage(words, processes=2))
    for number, share in ((1, 1 / 3), (0, 2 / 3)):
        wait_for(lambda share=share: count_groups(work / "candidates") >= share * args.images, jobs[number])
        jobs[number].kill()
        jobs[number] = Stage(words, processes=2)
    for job in jobs:
        job.finish()
    assert count_groups(work / "candidates") == args.images
    report("sampling by 2 jobs of 2 ranks, each killed once", time.time() - begun, work / "candidates")
    report("sampling, started again when all is there", Stage(words).finish(), work / "candidates")


def scoring(args, work, report):
    (work / "metric.py").write_text(METRIC)
    (work / "reward.yaml").write_text("imports: [metric.py]\nfr: []\nnr: [rehearsed]\n")
    words = ["label_rewards.py", "--candidates_dir", work / "candidates", "--gt_path", work / "images/gt"]
    words += ["--reward_config", work / "reward.yaml"]
    report("scoring by 2 jobs", Stage(words, words).finish(), work / "candidates")
    report("scoring, started again when all is there", Stage(words).finish(), work / "candidates")


def training(args, work, report):
    words = [
        "train_sd2_dpo.py", *model_flags(work), "--candidates_dir", work / "candidates", "--reward_config", work / "reward.yaml",
        "--output_dir", work / "policy", "--report_to", "none", "--top_n", min(8, args.candidates // 2), "--groups_per_step", "16",
    ]  # fmt: skip
    report("training, 10 steps of 16 groups", Stage([*words, "--max_train_steps", "10"]).finish(), work / "policy")
    report("training, resumed for 10 more", Stage([*words, "--max_train_steps", "20"]).finish(), work / "policy")


HASH = "import sys, time; from dp2osr.provenance import weights_hash; t = time.time(); weights_hash(sys.argv[1]); print(time.time() - t)"


def hashing(args, work, report):
    """Weights as large as a large model's, sparse: the first program hashes them, the second finds the hash remembered."""
    folder = work / "large"
    folder.mkdir(exist_ok=True)
    for number in range(12):
        with open(folder / f"diffusion_pytorch_model-{number:05d}-of-00012.safetensors", "wb") as file:
            file.truncate(int(args.model_gb * 1e9 / 12))
    time.sleep(3)  # a file that has just changed is not remembered
    for name in ("first", "second"):
        done = subprocess.run([sys.executable, "-c", HASH, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
        report(f"hash of {args.model_gb:g} GB of weights, {name} start", float(done.stdout), folder)


def main():
    args = build_parser().parse_args()
    work, rows = Path(args.work).resolve(), []
    os.environ["DP2OSR_CACHE_DIR"] = str(work / "cache")
    work.mkdir(parents=True, exist_ok=True)

    def report(stage, seconds, folder):
        files, size = size_of(folder)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        rows.append(f"| {stage} | {seconds:.1f} | {files:,} | {size / 1e9:.2f} | {peak:.2f} |")
        print(rows[-1], flush=True)

    begun = time.time()
    make_model(work / "model")
    make_images(work / "images", args.images)
    print("| stage | seconds | files | GB on disk | largest process so far, GB |\n|---|---|---|---|---|")
    report("made the images", time.time() - begun, work / "images")
    hashing(args, work, report)
    for stage in (sampling, scoring, training):
        stage(args, work, report)
    (work / "rehearsal.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
