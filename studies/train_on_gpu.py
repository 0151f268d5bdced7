"""Train a tiny base on one GPU for so many minutes: a step is one CUDA graph, from the draw of its windows to the mean of the weights.

    python studies/train_on_gpu.py --config configs/tiny_flux/baseline_gpu.yaml --minutes 6

A tiny model's step has thousands of small kernels; started one by one they leave such a GPU idle nine tenths of the time. Recipe and
flags are those of `scripts/train_controlnet.py`, but for three things: the rate follows the clock (a cosine over `--minutes`), the text
encoders stay as they are, and crops in the pool are replaced by new ones all the time. It cannot be resumed. On a CPU there is no graph.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from studies.settings import GpuTrainingSettings


def main():
    args = parse(GpuTrainingSettings, description=__doc__)
    from studies.graphed_training import train

    train(args)


if __name__ == "__main__":
    run(main)
