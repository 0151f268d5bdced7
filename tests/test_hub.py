"""Models and data on a hub, against a stand-in of it: what is pushed, what a card says, and what a hub's refusal becomes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, one_kind
from hub_server import Repository, environment_of, front_of, policy, push, running_hub, server  # noqa: F401 - fixtures
from PIL import Image
from programs import run_program
from trainings import copy_validation_images, words

from dp2osr.backbones import load_backbone
from dp2osr.backbones.locate import _list_hub
from dp2osr.errors import UserError
from dp2osr.hub.cards import CARD
from dp2osr.hub.settings import check_hub_flags
from dp2osr.training import trainer


@one_kind
def test_a_training_pushes_what_it_leaves_and_its_token_is_nowhere(kind, labelled, server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    flags = copy_validation_images(tmp_path, 1)
    given = words(kind, labelled, tmp_path / "run", *flags, "--validation_steps", 6, "--push_to_hub", "--hub_token", "write-token")
    trainer.train_preferences(kind.training_settings(list(map(str, given[1:]))))
    pushed = server.repositories["models/me/run"]
    assert set(pushed.files) == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "sampling_settings.json", "settings.json", "train_log.jsonl",
        "versions.json", "samples/step-000006.png",
    }  # fmt: skip
    card = pushed.files["README.md"].decode()
    assert (
        '"me/run"' in card and "![Held-out images: LR, base, policy, GT](samples/step-000006.png)" in card and "held-out G, step 6" in card
    )
    for content in [*pushed.files.values(), *(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())]:
        assert b"write-token" not in content
    for name in ("settings.json", "README.md"):
        assert str(tmp_path).encode() not in pushed.files[name] and str(ROOT).encode() not in pushed.files[name]


def test_a_pushed_policy_is_loaded_by_its_id_as_from_its_folder(kind, policy, server, monkeypatch):
    from dp2osr.provenance import weights_hash

    push(policy, "--hub_model_id", "me/policy", "--hub_private_repo")
    assert server.repositories["models/me/policy"].private
    backbone = load_backbone(kind.model)
    loaded, here = backbone.load_controlnet("me/policy"), backbone.load_controlnet(policy)
    assert all(torch.equal(tensor, here.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert weights_hash("me/policy") == weights_hash(policy)
    monkeypatch.delenv("HF_TOKEN")
    _list_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(policy.parent / "empty"))
    with pytest.raises(UserError, match="^me/policy: .*none of that id, or a private one: .*log in with `hf auth login` or set HF_TOKEN"):
        backbone.load_controlnet("me/policy")


@one_kind
@pytest.mark.parametrize(
    ("token", "given", "told"),
    [
        (None, [], "there is no token; log in with `hf auth login`"),
        ("stolen", [], "the hub refuses the token"),
        ("read-token", [], "the token of me may only read"),
        ("write-token", ["--hub_model_id", "teams/policy"], "--hub_model_id teams/policy: the token may not do that"),
        ("write-token", ["--hub_model_id", "a/b/c"], "--hub_model_id a/b/c: is NAME or OWNER/NAME"),
        ("write-token", ["--hub_model_id", "me/public", "--hub_private_repo"], "me/public is there and public"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_the_first_step(kind, labelled, server, tmp_path, monkeypatch, token, given, told):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    server.repositories["models/me/public"] = Repository()
    monkeypatch.setattr(trainer.PreferenceTrainer, "train", lambda self: pytest.fail("it trains"))
    settings = kind.training_settings(words(kind, labelled, tmp_path / "run", "--push_to_hub", *given)[1:])
    with pytest.raises(UserError) as error:
        trainer.train_preferences(settings)
    assert told in str(error.value) and "\n" not in str(error.value) and (not token or token not in str(error.value))


@one_kind
def test_a_hub_that_cannot_be_reached_is_one_line_and_exit_code_2(kind, policy, server, monkeypatch, tmp_path):
    with running_hub() as gone:
        pass
    environment = environment_of(gone, tmp_path / "home", "write-token")
    done = run_program("scripts/push_to_hub.py", policy, env=environment, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: pushing to a hub: {gone.address} cannot be reached")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it, or do not push"):
        push(policy)


@one_kind
def test_a_push_that_fails_at_the_end_leaves_the_policy_and_says_how_to_push_it(kind, policy, server):
    before = {path: path.read_bytes() for path in policy.rglob("*") if path.is_file()}
    server.refused = {"/commit/": 403}
    with pytest.raises(UserError) as error:
        push(policy, "--hub_model_id", "mine")
    later = f"python scripts/push_to_hub.py {policy} --hub_model_id me/mine"
    reason = "the token may not do that; take one that may write to it, or another id"
    assert str(error.value) == f"{policy}: is whole on disk, and was not pushed to me/mine: {reason}. Later: {later}"
    after = {path: path.read_bytes() for path in policy.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path.name != CARD} == {
        path: content for path, content in before.items() if path.name != CARD
    }
    server.refused = {}
    push(policy, "--hub_model_id", "me/mine")
    assert "config.json" in server.repositories["models/me/mine"].files


@one_kind
def test_flags_of_the_hub_that_would_do_nothing_are_refused(kind, labelled, tmp_path):
    from dp2osr.training.publication import Publication

    settings = kind.training_settings(words(kind, labelled, tmp_path / "run", "--hub_model_id", "x")[1:])
    with pytest.raises(UserError, match="--hub_model_id: would do nothing without --push_to_hub"):
        check_hub_flags(settings, {"hub_model_id"})
    flags = ["--push_to_hub", "--hub_token", "secret", "--report_to", "wandb"]
    settings = kind.training_settings(words(kind, labelled, tmp_path / "run", *flags)[1:])
    assert "secret" not in repr(settings)
    with pytest.raises(UserError, match="wandb keeps the command line"):
        Publication(settings)


# -- candidates --


@one_kind
def test_a_pushed_candidate_folder_trains_as_the_one_here(kind, labelled, server, tmp_path, monkeypatch):
    from huggingface_hub import snapshot_download

    from dp2osr.preference.groups import PreferenceGroups
    from dp2osr.rewards.config import load_reward_config
    from dp2osr.rewards.table import read_scores
    from dp2osr.sampling.store import CandidateStore

    here = shutil.copytree(labelled, tmp_path / "candidates")
    push(here, "--hub_model_id", "me/candidates")
    card = server.repositories["datasets/me/candidates"].files["README.md"].decode()
    store = CandidateStore(here)
    assert "3 LR images (groups), 6 candidates each, 18 in all" in card and store.settings["controlnet_hash"] in card
    assert all(f"| {licence} |" in card for licence in licences_of_csv(store.ids()))
    there = snapshot_download("me/candidates", repo_type="dataset", local_dir=tmp_path / "theirs")
    config = load_reward_config(here / "reward.yaml")
    groups = [
        PreferenceGroups(CandidateStore(folder), read_scores(f"{folder}/scores.parquet", config), config, None, 2).fingerprint()
        for folder in (here, there)
    ]
    assert groups[0] == groups[1]
    for path in (here / "groups").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "theirs" / path.relative_to(here)).read_bytes()
    assert str(ROOT) not in (tmp_path / "theirs/settings.json").read_text()


def licences_of_csv(image_ids):
    import csv

    rows = {row["stem"]: row["licence"] for row in csv.DictReader((ROOT / "configs/photographs.csv").open(encoding="utf-8"))}
    found = {rows[image_id[:-3]] for image_id in image_ids}
    assert found
    return found


# -- reading from a hub --


@one_kind
def test_a_gated_model_a_lost_one_and_another_revision_are_one_clear_line(kind, sd2, server):
    files = {"config.json": b"{}", "model_index.json": b"{}"}
    server.repositories |= {"models/big/gated": Repository(gated=True, files=files), "models/big/open": Repository(files=files)}
    for path, told in (
        ("big/gated", "it is gated: ask for access on its page"),
        ("big/none", "the hub has none of that id, or a private one"),
    ):
        with pytest.raises(UserError, match=f"^{path}: .*{told}"):
            sd2.load_controlnet(path)
    from dp2osr.backbones.loading import ModelSource

    with pytest.raises(UserError, match=r"big/open \(revision v9\): .*the hub has no such revision"):
        load_backbone(ModelSource("big/open", revision="v9"))


@one_kind
def test_a_base_and_a_controlnet_by_id_restore_as_their_folders_do(kind, server):
    import dp2osr

    for name, folder in (("base", kind.model), ("control", kind.controlnet)):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        server.repositories[f"models/big/{name}"] = Repository(files=files)
    image = Image.effect_noise((24, 24), 60).convert("RGB")
    by_id = dp2osr.load("big/base", controlnet="big/control", device="cpu").restore(image, num_inference_steps=1)
    here = dp2osr.load(kind.model, controlnet=kind.controlnet, device="cpu").restore(image, num_inference_steps=1)
    assert by_id[0].tobytes() == here[0].tobytes()


@one_kind
def test_a_pushed_policy_knows_its_base_which_may_be_on_the_hub_too(kind, policy, server):
    import dp2osr

    about = json.loads((policy / "settings.json").read_text())
    (policy / "settings.json").write_text(json.dumps({**about, "pretrained_model_name_or_path": "big/base"}))
    files = {path.relative_to(kind.model).as_posix(): path.read_bytes() for path in sorted(Path(kind.model).rglob("*")) if path.is_file()}
    server.repositories["models/big/base"] = Repository(files={**files, "README.md": b"---\nlicense: openrail++\n---\nA base."})
    push(policy, "--hub_model_id", "me/policy")
    card = server.repositories["models/me/policy"].files["README.md"].decode()
    assert front_of(card)["base_model"] == "big/base" and "`big/base` is under openrail++, as its card says." in card
    assert dp2osr.load("me/policy", device="cpu").kind == "sd2"


# -- baselines, and the program itself --


def test_a_baseline_leaves_its_card_beside_the_controlnet_and_a_program_pushes_it(server, tmp_path):
    from baselines import train_controlnet

    output, image = tmp_path / "baseline", sorted((ROOT / "preset/test/lr").glob("*.png"))[0]
    shown = ["--validation_image", str(image), "--num_validation_images", "1", "--num_inference_steps", "1"]
    train_controlnet("--output_dir", str(output), "--max_train_steps", "2", *shown)
    card = (output / "controlnet" / CARD).read_text(encoding="utf-8")
    [picture] = (output / "samples").glob("*.png")
    assert (
        "trained on degraded photographs" in card
        and "`model`, which was trained along with it" in card
        and f"(../samples/{picture.name})" in card
    )
    environment = environment_of(server, tmp_path / "home", "write-token")
    done = run_program("scripts/push_to_hub.py", output, "--hub_model_id", "c-mine", env=environment)
    assert done.stdout.splitlines()[-1] == f"pushed: {server.address}/me/c-mine"
    files = server.repositories["models/me/c-mine"].files
    assert f"(samples/{picture.name})" in files["README.md"].decode() and files[f"samples/{picture.name}"] == picture.read_bytes()
    assert files["diffusion_pytorch_model.safetensors"] == (output / "controlnet/diffusion_pytorch_model.safetensors").read_bytes()
