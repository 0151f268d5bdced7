"""Baseline: stream."""

import numpy as np
import pytest
from baselines import photographs, train_controlnet  # noqa: F401 - fixtures
from conftest import ROOT, read_log

from dp2osr.errors import UserError


def made_stream(folder, **settings):
    from dp2osr.data.collection import open_collection
    from dp2osr.data.degradation_settings import load_degradation
    from dp2osr.data.stream import PairStream, StreamSettings

    return PairStream(
        open_collection(folder), StreamSettings(load_degradation("resshift"), **{"resolution": 32, "grid": 4, "seed": 3, **settings})
    )


def made_plan(**changed):
    from dp2osr.data.stream import BatchPlan

    return BatchPlan(
        **{"micro_batch": 4, "accumulation": 1, "processes": 1, "window": 16, "whole": 32, "steps": 6, "small_steps": 4, **changed}
    )


def streamed(stream, plan, first=0, workers=0):
    """{sample's number: (pixels, prompt)} of all processes, and what was told."""
    from dp2osr.data.stream import pair_batches

    found, told = {}, []
    for rank in range(plan.processes):
        for numbers, pixels, prompts, problems in pair_batches(stream, plan, rank, first, workers):
            told += problems
            for place, number in enumerate(numbers):
                assert number not in found
                found[number] = (pixels[:, place].numpy(), prompts[place])
    return found, told


def same_samples(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[i][0], other[i][0]) and one[i][1] == other[i][1] for i in one)


def test_samples_do_not_depend_on_workers_processes_micro_batches_or_where_a_run_begins():
    stream = made_stream(ROOT / "preset/train/gt", crops_per_photograph=3, drop_share=0.3, negative_share=0.3)
    whole, _ = streamed(stream, made_plan())
    assert sorted(whole) == list(range(4 * 4 + 2 * 1)) and whole[0][0].shape == (2, 16, 16, 3) and whole[17][0].shape == (2, 32, 32, 3)
    assert {prompt for _, prompt in whole.values()} == {0, 1}  # without captions: none, and the negative one
    for plan in (made_plan(micro_batch=1, accumulation=4), made_plan(micro_batch=2, processes=2)):
        split, _ = streamed(stream, plan)
        assert all(np.array_equal(whole[i][0], split[i][0]) for i in range(16))
    rest, _ = streamed(stream, made_plan(), first=2, workers=2)
    assert same_samples(rest, {i: sample for i, sample in whole.items() if i >= 8})


def test_an_epoch_draws_each_photograph_once():
    from dp2osr.data.stream import epoch_order

    stream = made_stream(ROOT / "preset/test/gt")
    count = len(stream.collection)
    epochs = [[stream.photograph(epoch * count + place)[0] for place in range(count)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count)) and epochs[0] != epochs[1]
    assert epochs[1] == epoch_order(3, 1, count).tolist()


def test_a_photograph_that_breaks_within_an_epoch_is_told_skipped_and_counted(photographs, tmp_path_factory, capsys):
    stream, epochs = made_stream(photographs), made_plan(small_steps=6)
    before, _ = streamed(stream, epochs)
    broken = sorted(photographs.glob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:2000])
    again, told = streamed(stream, epochs)
    assert {place for place, _ in told} == {broken.name}
    assert sum(not np.array_equal(before[i][0], again[i][0]) for i in before) == 2  # once in each of two epochs
    assert same_samples(again, streamed(stream, epochs, workers=2)[0])
    out, stream_flags = tmp_path_factory.mktemp("run"), ["--train_dir", photographs, "--full_window_share", 0, "--max_train_steps", 4]
    train_controlnet(*stream_flags, "--output_dir", out / "run")
    said = capsys.readouterr().err
    assert (
        said.count("skipped\n") == 1 and f"{broken.name}: not a readable image" in said and "1 photographs or shards were skipped" in said
    )
    assert read_log(out / "run/train_log.jsonl")[-1]["skipped"] == 1
    with pytest.raises(UserError, match=f"{broken.name}: not a readable image"):
        train_controlnet(*stream_flags, "--strict", "--output_dir", out / "strict")


def write_shards(folder, photographs, captions=None):
    """Shards of four photographs each."""
    import io
    import tarfile

    folder.mkdir()
    for number in range(0, len(photographs), 4):
        with tarfile.open(folder / f"part-{number // 4:03d}.tar", "w") as shard:
            for path in photographs[number : number + 4]:
                shard.add(path, path.name)
                if captions:
                    info = tarfile.TarInfo(f"{path.stem}.txt")
                    info.size = len(captions[path.stem].encode())
                    shard.addfile(info, io.BytesIO(captions[path.stem].encode()))
    return folder


def test_shards_a_list_and_a_folder_give_the_same_photographs(photographs):
    from dp2osr.data.collection import open_collection

    paths = sorted(photographs.glob("*.png"))
    captions = {path.stem: f"tag {place % 3}" for place, path in enumerate(paths)}
    shards = write_shards(photographs / "shards", paths, captions)
    (photographs / "list.txt").write_text("\n".join(path.name for path in paths))
    (photographs / "list.csv").write_text("file,prompt\n" + "\n".join(f"{path.name},{captions[path.stem]}" for path in paths))
    plan = made_plan(steps=4)
    whole, _ = streamed(made_stream(photographs), plan)
    for where in (shards, shards / "part-{000..002}.tar", shards / "*.tar", photographs / "list.txt", photographs / "list.csv"):
        found, told = streamed(made_stream(where), plan, workers=2)
        assert not told and all(np.array_equal(whole[i][0], found[i][0]) for i in whole)
    for where in (shards, photographs / "list.csv"):
        collection = open_collection(where)
        assert [collection.prompts[number] for number in collection.prompt_of] == list(captions.values())


def test_a_shard_that_breaks_is_told_and_skipped(photographs):
    from dp2osr.data.collection import open_collection

    shards = write_shards(photographs / "shards", sorted(photographs.glob("*.png")))
    stream = made_stream(shards)
    second = shards / "part-001.tar"
    second.write_bytes(second.read_bytes()[:1500])  # while it is read
    found, told = streamed(stream, made_plan(steps=4))
    assert len(found) == 16 and {place for place, _ in told} == {str(second)}
    cut = open_collection(shards)
    assert len(cut) == 8 and "not a whole tar file" in cut.problems[str(second)]
    with pytest.raises(UserError, match="compressed shards"):
        open_collection(shards / "part.tar.gz")
