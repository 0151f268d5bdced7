"""Weights from disk, with one clear line where they are missing, broken or another model's."""

from dp2osr.errors import UserError


def load_part(cls, path, subfolder, **options):
    """`cls.from_pretrained` with one clear line where a file is missing or broken."""
    options = {**options, **({"subfolder": subfolder} if subfolder else {})}
    try:
        return cls.from_pretrained(path, **options)
    except Exception as error:  # from_pretrained raises OSError, ValueError, SafetensorError, RuntimeError, KeyError, ...
        where = f"{path}/{subfolder}" if subfolder else path
        raise UserError(
            f"{where}: {cls.__name__} cannot be loaded ({' '.join(str(error).split())[:300]}); check that the folder is complete"
        ) from None


def read_tensors(path):
    """Tensors of one safetensors file; UserError if it is missing or broken."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, FileNotFoundError, OSError
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_weights(module, path):
    """Load one safetensors file into `module`, every key of it and no other."""
    tensors = read_tensors(path)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unexpected or misshapen:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        report = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in lists.items() if keys]
        raise UserError(f"{path}: does not fit this model: {'; '.join(report)}")
    module.load_state_dict(tensors)
