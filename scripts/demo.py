"""A page in the browser that restores images by any model, and shows its samples with their rewards.

    pip install 'gradio>=6.20,<7'                             # the extra `demo` of the package
    python scripts/demo.py                                    # the tiny models, and runs/quickstart/policy if it is there
    python scripts/demo.py --model mine=runs/policy tiny=preset/models/tiny-sd2+preset/models/c-tiny-sd2

It listens on this machine alone unless --server_name says otherwise, and asks nothing of other servers.
"""

from importlib.util import find_spec

from dp2osr.cli import parse
from dp2osr.demo.settings import DemoSettings
from dp2osr.errors import UserError, run


def main():
    settings = parse(DemoSettings, description=__doc__)
    if find_spec("gradio") is None:
        raise UserError("gradio is not installed, which the page is made with: run  pip install 'gradio>=6.20,<7'")
    from dp2osr.demo.page import serve

    serve(settings)


if __name__ == "__main__":
    run(main)
