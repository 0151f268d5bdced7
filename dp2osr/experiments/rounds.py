"""Rounds of sampling and training: a further one samples other images with the policy of the one before, and starts from it."""


def round_suffix(number):
    """What the folders of a round are called behind their name."""
    return "" if number == 1 else f"-{number}"


def further_round(number, seed):
    """Flags of sampling for a round after the first: other images, other noise."""
    return {"images_offset": number - 1, "seed": seed}


def reference_of(reference, train):
    """Flags of a further round's training: its reference stays the base where it is "fixed"."""
    return {"reference_controlnet_model_name_or_path": train["controlnet_model_name_or_path"]} if reference == "fixed" else {}
