"""Sample M candidates per LR image from a reference model: stage one of DP²O-SR.

    python gen_candidates.py --pretrained_model_name_or_path preset/models/tiny-sd2 \\
        --controlnet_model_name_or_path preset/models/c-tiny-sd2 --image_path preset/train/lr --max_images 84 --num_candidates 16 \\
        --output_dir runs/candidates

Run it again and it does what is left: a group is kept if it was made of the same image with the same settings. With a larger
--num_candidates the groups that are there get the candidates that they lack.
"""

from dp2osr.cli import parse
from dp2osr.errors import run
from dp2osr.sampling.settings import GenerateSettings


def main() -> None:
    settings = parse(GenerateSettings, description=__doc__)
    from dp2osr.sampling.generate import generate_candidates

    generate_candidates(settings)


if __name__ == "__main__":
    run(main)
