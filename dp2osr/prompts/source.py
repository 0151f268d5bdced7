"""Where an image's prompt comes from: RAM's tags of the LR image, a file of tags, or nowhere."""

from dp2osr.config import read_json
from dp2osr.data.images import pil_to_tensor
from dp2osr.errors import UserError
from dp2osr.prompts.ram import load_tagger
from dp2osr.provenance import weights_hash


class PromptSource:
    """Called with an image id and its RGB LR image, gives the image's tags; each image is tagged once.

    Args:
        args: parsed `SAMPLING_FLAGS`; without `prompt_source`, RAM where its path is given, else a file where that is, else none.
        device: where RAM runs.

    Raises:
        UserError: a source without its file, or a broken file.
    """

    def __init__(self, args, device="cpu"):
        ram_path = getattr(args, "ram_path", None)
        self.kind = args.prompt_source or ("ram" if ram_path else "file" if args.prompt_file else "none")
        self.tags, self.tagger, self.tagger_hash = {}, None, None
        if self.kind == "file":
            self.tags = read_tags(args.prompt_file)
        if self.kind == "ram":
            if not ram_path:
                raise UserError("--prompt_source ram needs --ram_path")
            self.tagger = load_tagger(ram_path, args.dape_path, device)
            self.tagger_hash = "+".join(weights_hash(path) for path in (ram_path, args.dape_path) if path)

    def __call__(self, image_id, lr):
        if self.tagger and image_id not in self.tags:
            self.tags[image_id] = self.tagger.tag(pil_to_tensor(lr))
        return self.tags.get(image_id, "")


def read_tags(path):
    """{image id: tags} of a JSON file.

    Raises:
        UserError: no path, or not such a mapping.
    """
    if not path:
        raise UserError("--prompt_source file needs --prompt_file, a JSON {image id: tags}")
    tags = read_json(path)
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise UserError(f"{path}: must map image ids to strings of tags")
    return tags
