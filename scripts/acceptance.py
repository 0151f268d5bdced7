"""Does a released model give here what was published of it? Ten images are restored, scored, and set beside Table 1.

    python scripts/acceptance.py --method C-SD2 --image_path RealSR/lr --gt_path RealSR/gt --exclude_metrics qalign \\
        --pretrained_model_name_or_path preset/models/stable-diffusion-2-base \\
        --controlnet_model_name_or_path preset/models/c-sd2/model.safetensors --output_dir runs/acceptance

Takes the flags of the test programs. The intervals of ten images are wide: this finds wrong weights or settings, no small difference.
It was not run on the released weights. Run it again and it goes on.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.evaluation.settings import AcceptanceSettings


def main():
    args = parse(AcceptanceSettings, description=__doc__)
    from dp2osr.evaluation.acceptance import run_acceptance

    run_acceptance(args)


if __name__ == "__main__":
    run(main)
