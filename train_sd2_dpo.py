"""Post-train a ControlNet on preference groups: stage four of DP²O-SR, on Stable Diffusion 2.

    accelerate launch train_sd2_dpo.py --pretrained_model_name_or_path preset/models/tiny-sd2 \\
        --controlnet_model_name_or_path preset/models/c-tiny-sd2 --candidates_dir runs/candidates \\
        --reward_config embedded --top_n 4 --groups_per_step 4 --shared_noise --learning_rate 1e-4 \\
        --max_train_steps 50 --output_dir runs/dp2o

The candidates are those of the examples of gen_candidates.py and label_rewards.py. Run it again and it goes on from its last checkpoint.
"""

from dp2osr.cli import given, parse
from dp2osr.errors import run
from dp2osr.training.checks import check_given
from dp2osr.training.settings import TrainSettings


def main() -> None:
    settings = parse(TrainSettings, description=__doc__, backbone="sd2")
    check_given(settings, given(TrainSettings))
    from dp2osr.training.trainer import train_preferences

    train_preferences(settings)


if __name__ == "__main__":
    run(main)
