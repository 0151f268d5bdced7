"""One safetensors file of about 0.4 GB from RAM's 5.6 GB checkpoint, DAPE's update merged: it loads in seconds and needs no companions."""

from dataclasses import dataclass
from pathlib import Path

from dp2osr.cli import Settings, parse
from dp2osr.errors import run


@dataclass(kw_only=True)
class ConvertSettings(Settings):
    """What is merged, and where it goes."""

    ram_path: str
    """ram_swin_large_14m.pth, with ram_tag_list.txt and ram_tag_list_threshold.txt beside it."""
    dape_path: str | None = None
    """DAPE.pth, to be merged; without it the file is plain RAM."""
    output: str
    """The .safetensors file: give it to --ram_path of any script."""


def main():
    args = parse(ConvertSettings, description=__doc__)
    from dp2osr.errors import UserError
    from dp2osr.outputs import check_output, refuse_inputs
    from dp2osr.prompts.ram import load_tagger, write_converted

    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output {output}: must end in .safetensors")
    check_output(output, "--output", is_file=True)
    refuse_inputs(output, {"--ram_path": args.ram_path, "--dape_path": args.dape_path}, flag="--output")
    tagger = load_tagger(args.ram_path, args.dape_path)
    output.parent.mkdir(parents=True, exist_ok=True)
    weights = dict(tagger.state_dict())
    write_converted(output, weights, tagger.tags, tagger.thresholds.tolist(), merged=bool(args.dape_path) or tagger.merged_before)
    print(f"{args.output}: {sum(value.numel() for value in weights.values()) / 1e6:.1f} M parameters, {len(tagger.tags)} tags")


if __name__ == "__main__":
    run(main)
