"""Make a candidate folder of candidates that others sampled: label_rewards.py and training read it as one of gen_candidates.py.

    python scripts/import_candidates.py --pretrained_model_name_or_path preset/models/tiny-sd2 --image_path lr --images their_images \\
        --output_dir runs/imported
    python scripts/import_candidates.py --pretrained_model_name_or_path preset/models/tiny-sd2 --image_path lr --latents their_latents \\
        --output_dir runs/imported

Images are <image_id>/000.png, <image_id>/001.png, ... or <image_id>_00.png, ...; latents <image_id>.safetensors, .pt or .npy, one file
an image. All LR images must have the same number of candidates. The base model's autoencoder encodes images, which loses detail: latents
are better where you have them. settings.json says that the candidates were imported. Run it again and it does what is left.
"""

from dp2osr.cli import given, parse, refuse_ignored
from dp2osr.errors import run
from dp2osr.sampling.settings import ImportSettings


def main():
    args = parse(ImportSettings, description=__doc__)
    if args.latents:
        refuse_ignored(given(ImportSettings), ("first_number",), "with --latents")
    from dp2osr.sampling.importing import import_candidates

    import_candidates(args)


if __name__ == "__main__":
    run(main)
