"""What a finished training leaves for others: a card in the ControlNet's folder and, if asked for, the whole of it on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dp2osr.errors import UserError
from dp2osr.files import read_text
from dp2osr.hub.cards import CARD, as_json_text, is_edited, without_places, write_card
from dp2osr.hub.upload import Destination, check_destination, open_repository, push
from dp2osr.sharing import Launch
from dp2osr.training.model_card import TrainedControlNet, model_card

if TYPE_CHECKING:
    from dp2osr.training.baseline_settings import BaselineSettings
    from dp2osr.training.settings import TrainSettings

BESIDE = ("config.json", "sampling_settings.json")  # of a ControlNet's files, with its weights
OF_RUN = ("versions.json", "train_log.jsonl")


class Publication:
    """A run's way to the hub: all is checked before its first step, by the first rank for all.

    Args:
        args: settings of the training.

    Raises:
        UserError: as `check_destination`; a token that a tracker would keep.
    """

    def __init__(self, args: TrainSettings | BaselineSettings) -> None:
        self.args, self.launch = args, Launch()
        self.destination: Destination | None = None
        if args.hub_token and args.report_to == "wandb":
            raise UserError(
                "--hub_token with --report_to wandb: wandb keeps the command line, and the token with it; log in with `hf auth login`, "
                "or set HF_TOKEN"
            )
        if args.push_to_hub:
            self.launch.of_first("hub", self._check)

    def _check(self) -> None:
        args = self.args
        self.destination = check_destination(args.hub_model_id, args.output_dir, args.hub_token, args.hub_private_repo)

    def open(self) -> None:
        """Make the repository, when all else of the run is known to be good; `UserError` as of `open_repository`."""
        if self.args.push_to_hub:
            self.launch.of_first("hub repository", lambda: open_repository(self.destination) if self.destination else None)

    def finish(self, folder: str | Path) -> None:
        """Write the card of the ControlNet in `folder` and push it; to be called by all ranks. `UserError` as of `push`."""
        if not self.launch.is_first:
            return
        trained = TrainedControlNet(Path(folder))
        write_card(folder, model_card(trained, folder))
        if self.destination:
            push_model(trained, self.destination)


def push_model(trained: TrainedControlNet, destination: Destination, evaluation: tuple[str, ...] = ()) -> None:
    """Upload a trained ControlNet, and say where it is."""
    files = model_files(trained, destination.repo_id, evaluation)
    print(f"pushed: {push(destination, files, trained.folder, 'A ControlNet trained with dp2osr')}")


def model_files(trained: TrainedControlNet, repo_id: str, evaluation: tuple[str, ...] = ()) -> dict[str, Path | str]:
    """{name in the repository: file here, or text}: what others need; no checkpoints, and no place of this machine.

    A card that its user has edited goes as it is.
    """
    folder, run = trained.folder, trained.run or trained.folder
    card = folder / CARD
    text = read_text(card).replace("](../samples/", "](samples/") if is_edited(card) else model_card(trained, repo_id, evaluation, True)
    paths = [folder / name for name in BESIDE] + sorted(folder.glob("diffusion_pytorch_model*")) + [run / name for name in OF_RUN]
    files: dict[str, Path | str] = {path.name: path for path in paths if path.is_file()}
    if trained.picture:
        files[f"samples/{trained.picture.name}"] = trained.picture
    return {**files, "settings.json": as_json_text(without_places(trained.record)), CARD: text}
