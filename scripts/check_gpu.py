"""What a lab runs first on its node: in ten minutes, what its GPUs do at full size, with random weights that are built there.

    python scripts/check_gpu.py                                   # SD2 and FLUX on a GPU, the tiny models on a CPU
    python scripts/check_gpu.py --model sd2 --parts training      # one part of one model
    python scripts/check_gpu.py --reward_config default --metrics_dir metrics

Tables of the machine, sampling (ours and diffusers' pipeline), the same candidate in a batch of one and of many, a step of preference
training beside the plan, scoring in fp32, TF32 and bf16, and gradients summed over all visible GPUs. What fails is a line that says so;
where the device fails, a fresh process goes on. docs/check_gpu.md says what each line means. Nothing is downloaded.
"""

from dp2osr.checkup.settings import CheckupSettings
from dp2osr.cli import parse
from dp2osr.errors import run


def main() -> None:
    settings = parse(CheckupSettings, description=__doc__)
    from dp2osr.checkup.processes import check_in_processes

    check_in_processes(settings)


if __name__ == "__main__":
    run(main)
