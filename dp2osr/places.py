"""Where the files that come with the code are: beside it in a checkout, inside it in an installed package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else PACKAGE
CONFIGS = ROOT / "configs"
