"""What a hub's refusal means, in a few words that say what to do; and whether the hub answers at all."""

from __future__ import annotations

import socket


def reason_of(error: BaseException) -> str:
    """What an exception of huggingface_hub, or of its HTTP library, means to a user."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, errors.HFValidationError):
        return f"it is no id of a hub ({one_line(error)})"
    if isinstance(error, errors.GatedRepoError):
        return "it is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such revision of it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has none of that id, or a private one: check the id; for a private one log in with `hf auth login` or set HF_TOKEN"
    if status == 401:
        return "the hub refuses the token; log in again with `hf auth login`, or give another"
    if status == 403:
        return "the token may not do that; take one that may write to it, or another id"
    if status == 429 or status and status >= 500:
        return f"the hub answers with error {status}; try again later"
    if cannot_be_reached(error):
        return f"{endpoint()} cannot be reached ({one_line(error)}); check the network and HF_ENDPOINT"
    return one_line(error) or type(error).__name__


def cannot_be_reached(error: BaseException) -> bool:
    """Whether no answer came: the HTTP library's own errors, or a socket's."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"TransportError", "ConnectionError", "TimeoutError", "gaierror"})


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def one_line(error: BaseException, most: int = 200) -> str:
    return " ".join(str(error).split())[:most]


def answers(address: str) -> bool:
    """Whether the machine of a hub's address can be connected to; a proxy is taken at its word."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if getproxies():
        return True
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)), timeout=5).close()
    except OSError:
        return False
    return True
