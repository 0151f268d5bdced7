"""An experiment that is small enough to be run in a test."""

import yaml


def experiment(folder, **changes):
    """An experiment of two short trainings on three photographs; returns the path of its YAML."""
    stages = folder / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    model = {
        "pretrained_model_name_or_path": "preset/models/tiny-sd2",
        "controlnet_model_name_or_path": "preset/models/c-tiny-sd2",
    }
    sampling = {"num_inference_steps": 1, "guidance_scale": 1.0, "batch_size": 4, "num_candidates": 4}
    reward = folder / "psnr.yaml"
    reward.write_text("fr: [psnr, gmsd]\n", encoding="utf-8")
    content = {
        "sample": model | sampling | {"image_path": "preset/train/lr", "max_images": 3},
        "label": {"gt_path": "preset/train/gt", "reward_config": str(reward)},
        "train": model
        | {"reward_config": str(reward), "top_n": 2, "groups_per_step": 2, "max_train_steps": 2}
        | {"learning_rate": 1e-3, "report_to": "none"},
        "test": model | sampling | {"image_path": "preset/test/lr", "max_images": 3, "seed": 1},
        "label_test": {"gt_path": "preset/test/gt", "reward_config": str(reward), "extra_metrics": ["ssim"]},
    }
    for name, settings in content.items():
        (stages / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    grid = {
        "title": "A small one",
        "stages": str(stages),
        "evaluated_by": str(reward),
        "seeds": [0, 1],
        "axis": "N/M",
        "arms": {
            "plain": {"at": 0.5},
            "ranks": {"reward": {"normalise": "rank"}, "train": {"top_n": 1}, "seeds": [1], "line": "ranks", "at": 0.25, "rounds": 2},
        },
    } | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    return path
