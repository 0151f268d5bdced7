"""Push a folder to a model hub, with its card: a trained ControlNet, a candidate folder, or labels of scripts/export_labels.py.

    python scripts/push_to_hub.py runs/policy --hub_model_id me/my-policy
    python scripts/push_to_hub.py runs/policy --hub_model_id me/my-policy --report runs/report
    python scripts/push_to_hub.py runs/labels --hub_model_id me/my-labels --dry_run

Log in with `hf auth login` before, or set HF_TOKEN. What goes there: weights, card, settings and log, the pictures of the last validation;
of candidates the latents and LR images. No checkpoint, and no place of this machine. --dry_run lists it, and uploads nothing.
"""

from dp2osr.cli import given, parse, refuse_ignored
from dp2osr.errors import run
from dp2osr.hub.settings import PushSettings


def main():
    args = parse(PushSettings, description=__doc__)
    if args.dry_run:
        refuse_ignored(given(PushSettings), ("hub_token", "hub_private_repo"), "with --dry_run")
    from dp2osr.publishing import push_folder

    push_folder(args)


if __name__ == "__main__":
    run(main)
