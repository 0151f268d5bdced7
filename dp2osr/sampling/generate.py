"""Sampling of a folder of candidate groups: M candidates an LR image, by any number of ranks and jobs, resumable."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from dp2osr.data.images import read_image
from dp2osr.data.inputs import ImageFile, find_inputs
from dp2osr.data.part import part_of
from dp2osr.device import compute_device
from dp2osr.outputs import check_output
from dp2osr.sampling.progress import LaunchBar, say_cost, say_settings, summary
from dp2osr.sampling.sampler import GroupSampler, earlier_values, sampling_record, settings_not_compared
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.sampling.store import CandidateGroup, CandidateStore
from dp2osr.sharing import Launch, WorkLog, share


def generate_candidates(args: GenerateSettings) -> CandidateStore:
    """Sample every missing group of `args.image_path` into `args.output_dir`, beside other ranks and other jobs on that folder.

    A group is kept if it was made of the same image, with these settings; one of fewer candidates gets those that it lacks.
    """
    check_output(args.output_dir)
    begun, choose, launch = time.monotonic(), part_of(args), Launch()
    with launch.first("inputs"):
        files, skipped = find_inputs(
            args.image_path,
            args.recursive,
            args.skip_unreadable,
            choose=choose,
            quiet=not launch.is_first,
        )
    sampler = GroupSampler(args, compute_device())
    say_settings(launch, sampler, args.negative_prompt, files)
    with launch.first("weights"):
        record = sampling_record(sampler, num_candidates=args.num_candidates)
    launch.agree("sampling", {**record, "images": [(file.name, file.size) for file in files]})
    store = CandidateStore(args.output_dir, record, settings_not_compared(sampler), earlier_values(args), begin=False)
    survey = partial(survey_groups, store, sampler)
    have = launch.of_first("candidates", lambda: survey(files))
    todo = [file for file in files if have[file.id] < args.num_candidates]
    counts = {file.id: args.num_candidates - have[file.id] for file in todo}
    if launch.is_first and len(todo) < len(files):
        print(f"{args.output_dir}: {len(files) - len(todo)} of {len(files)} groups are there, {len(todo)} to sample")
    say_cost(launch, sampler, todo, counts, args.save_images == "all")
    sampler.prepare(todo)
    launch.of_first("settings", store.begin)
    if launch.is_first:
        store.clear_parts(have)
    log = WorkLog(args.output_dir, "sample", launch)
    with store.locks.leaving(), LaunchBar(launch, sampler, todo, counts, "sample") as bar:
        for file in share(launch, "sample", todo, store.locks, lambda file: file.id):
            bar.begin()
            there = survey([file], held=True)[file.id]  # another job may have made it meanwhile
            if there < args.num_candidates:
                store.write(*sample_group(sampler, store, file, there, bar.update))
                log.write(file.id, candidates=args.num_candidates - there)
            launch.add("made", int(there < args.num_candidates))
            bar.end(file.id)
    if launch.is_last("sampling"):
        store.clear_parts(have)
        store.locks.leave()
        made = launch.total("made", len(todo))
        print(summary(args.output_dir, "group", made, len(files) - made, skipped, begun))
    return store


def survey_groups(store: CandidateStore, sampler: GroupSampler, files: Sequence[ImageFile], held: bool = False) -> dict[str, int]:
    """{image id: candidates that are there, sampled as this run samples}; see `CandidateStore.survey`."""
    prompts = sampler.prompts.fixed(file.id for file in files)
    return store.survey({file.id: file for file in files}, prompts, sampler.args.adopt, sampler.args.save_images == "all", held)


def sample_group(
    sampler: GroupSampler, store: CandidateStore, file: ImageFile, have: int, progress: Callable[[int], object]
) -> tuple[CandidateGroup, torch.Tensor | None, dict[str, str]]:
    """(group, its images or None, what its input is) with the candidates that it lacks behind those that are there."""
    args, lr = sampler.args, read_image(file.path)
    group = sampler.sample(file.id, lr, args.num_candidates, have, progress)
    if have:
        earlier = store.read(file.id)
        group.latents = torch.cat([earlier.latents[:have], group.latents])
        group.seeds = [*earlier.seeds[:have], *group.seeds]
    return group, sampler.images(group) if args.save_images == "all" else None, {"image": file.content}
