"""The candidates that a reward ranks first as images, as scoring sees them."""

import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_clear_line, one_kind, run_program
from PIL import Image

from dp2osr.cli import parse
from dp2osr.data.images import tensor_to_pil
from dp2osr.errors import UserError
from dp2osr.preference.export import export_candidates
from dp2osr.preference.settings import ExportSettings, PruneSettings
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.store import CandidateStore


@pytest.fixture
def folder(labelled, tmp_path):
    return shutil.copytree(labelled, tmp_path / "candidates")


def export(folder, *more, out="out"):
    words = ["--candidates_dir", folder, "--reward_config", folder / "reward.yaml", "--output_dir", folder.parent / out, *more]
    export_candidates(parse(ExportSettings, words))
    return folder.parent / out


def rewards_of(folder):
    """{image id: (M,) rewards}."""
    config = load_reward_config(folder / "reward.yaml")
    table = read_scores(folder / "scores.parquet", config)
    return dict(zip(table.image_ids, hybrid_reward(table.scores, table.lower_better, config)))


def test_the_winners_are_the_images_that_were_scored(kind, folder, capsys):
    out = export(folder)
    several, worst = export(folder, "--top", 3, out="three"), export(folder, "--worst", out="worst")
    store = CandidateStore(folder)
    decoder = load_decoder(store.settings)
    for image_id, rewards in rewards_of(folder).items():
        order = sorted(range(len(rewards)), key=lambda m: -rewards[m])
        group = store.read(image_id)
        images = [np.asarray(tensor_to_pil(image)) for image in decode_group(decoder, group, store.settings["align_method"])]
        for path, number in [(out / f"{image_id}.png", order[0]), (worst / f"{image_id}.png", order[-1])] + [
            (several / f"{image_id}_{rank:02d}.png", order[rank]) for rank in range(3)
        ]:
            assert np.abs(np.asarray(Image.open(path), dtype=int) - images[number]).max() <= 1
            record = json.loads((path.parent / f".records/{path.name}.json").read_text())
            assert record["input"]["candidate"] == number and record["reward"] == pytest.approx(rewards[number])
    assert len(list(out.glob("*.png"))) == 3 and len(list(several.glob("*.png"))) == 9
    capsys.readouterr()
    export(folder)
    assert "0 images written, 3 already there" in capsys.readouterr().out


@one_kind
def test_a_pruned_folder_has_its_winners_and_says_what_it_lacks(kind, folder):
    from dp2osr.preference.prune import prune_candidates

    before = export(folder, "--top", 2, out="before")
    words = ["--candidates_dir", folder, "--reward_config", folder / "reward.yaml", "--top_n", 2]
    prune_candidates(parse(PruneSettings, words))
    after = export(folder, "--top", 2, out="after")
    assert all((after / path.name).read_bytes() == path.read_bytes() for path in before.glob("*.png"))
    with pytest.raises(UserError, match="pruned by scripts/prune.py.*lack candidates"):
        export(folder, "--top", 3, out="more")
    assert not (folder.parent / "more").exists()


@one_kind
def test_what_cannot_be_is_one_line(kind, folder):
    for more, told in (
        (["--top", 7], "--top 7: of 6 candidates"), (["--num_candidates", 7], "--num_candidates 7: only 6"),
        (["--num_candidates", 2, "--top", 3], "--top 3: of 2 candidates"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            export(folder, *more)
    export(folder)
    with pytest.raises(UserError, match="worst is False there and True here"):
        export(folder, "--worst")
    with pytest.raises(UserError, match="is the input --candidates_dir"):
        export(folder, out="candidates")
    words = ["scripts/export.py", "--candidates_dir", folder.parent, "--output_dir", folder.parent / "x"]
    assert_one_clear_line(run_program(*words, check=False), "is not a candidate folder")
