"""A folder's files to a repository of a hub: checked before the work, opened, then uploaded in one go."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dp2osr.commands import command
from dp2osr.errors import UserError
from dp2osr.hub.reasons import answers, endpoint, reason_of


@dataclass(frozen=True)
class Destination:
    """A repository that may be written to.

    Attributes:
        repo_id: OWNER/NAME.
        repo_type: "model" or "dataset".
        private: whether it must be private.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    token: str | None = field(default=None, repr=False)


def check_destination(
    hub_model_id: str | None, default: str | Path, token: str | None, private: bool = False, repo_type: str = "model"
) -> Destination:
    """The `Destination` that the flags name, after the hub was asked whose the token is; nothing is made there yet.

    Args:
        hub_model_id: NAME or OWNER/NAME; None: the name of the folder `default`.
        token: None: the one that this machine is logged in with.

    Raises:
        UserError: offline, no token, an id of another form, a hub that cannot be reached, a token that is refused or may only read.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = hub_model_id or Path(default).resolve().name
    given = f"--hub_model_id {name}" if hub_model_id else f"--hub_model_id: '{name}', the folder's name, will not do"
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"{given}: is NAME or OWNER/NAME, of letters, digits, '-', '_' and '.', at most 96; give such an id") from None
    if constants.HF_HUB_OFFLINE:
        raise UserError("pushing to a hub: HF_HUB_OFFLINE is set; unset it, or do not push")
    try:
        token = token or get_token()
        if not token:
            raise UserError("pushing to a hub: there is no token; log in with `hf auth login`, set HF_TOKEN, or give --hub_token")
        if not answers(endpoint()):
            raise UserError(f"pushing to a hub: {endpoint()} cannot be reached; check the network and HF_ENDPOINT, or do not push")
        about = HfApi(token=token).whoami()
    except UserError:
        raise
    except Exception as error:  # the hub's own errors, and its HTTP library's
        raise UserError(f"pushing to a hub: {reason_of(error)}") from None
    if (about.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"pushing to a hub: the token of {about['name']} may only read; make one that may write, on {endpoint()}")
    return Destination(name if "/" in name else f"{about['name']}/{name}", repo_type, private, token)


def open_repository(destination: Destination) -> None:
    """Make the repository if it is not there: the sure way to learn whether it may be written to.

    Raises:
        UserError: it may not; or it is to be private, and is there and public.
    """
    from huggingface_hub import HfApi

    api, repo_id, kind = HfApi(token=destination.token), destination.repo_id, destination.repo_type
    try:
        api.create_repo(repo_id, private=True if destination.private else None, repo_type=kind, exist_ok=True)
        is_public = destination.private and not api.repo_info(repo_id, repo_type=kind, timeout=30).private
    except Exception as error:
        raise UserError(f"--hub_model_id {repo_id}: {reason_of(error)}") from None
    if is_public:
        raise UserError(f"--hub_private_repo: {repo_id} is there and public; make it private on its page, or give another --hub_model_id")


def push(destination: Destination, files: Mapping[str, Path | str | bytes], folder: str | Path, message: str) -> str:
    """Upload `files` in place of those of the same names, and of the others nothing; returns the repository's address.

    Args:
        files: {name in the repository: path of a file here, or its content}.
        folder: where they are from, for what is said.

    Raises:
        UserError: it failed; what is here stays as it is, and the command that pushes it later is named.
    """
    from huggingface_hub import HfApi

    try:
        with tempfile.TemporaryDirectory() as place:
            lay_out(files, Path(place))
            HfApi(token=destination.token).upload_folder(
                repo_id=destination.repo_id, repo_type=destination.repo_type, folder_path=place, commit_message=message
            )
    except Exception as error:
        private = destination.private or None
        later = command("scripts/push_to_hub.py", folder, hub_model_id=destination.repo_id, hub_private_repo=private)
        raise UserError(
            f"{folder}: is whole on disk, and was not pushed to {destination.repo_id}: {told_of(error)}. Later: {later}"
        ) from None
    kind = "datasets/" if destination.repo_type == "dataset" else ""
    return f"{endpoint()}/{kind}{destination.repo_id}"


def told_of(error: BaseException) -> str:
    """`reason_of` an error or of what led to it: the library wraps those of single files."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    return reason_of(error)


def lay_out(files: Mapping[str, Path | str | bytes], place: Path) -> None:
    """Links to the files, and files of the texts, under their names in the folder `place`."""
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content.resolve())
        else:
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
