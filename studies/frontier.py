"""The gain of each arm of an experiment over its place on the axis, and the frontier: what no cheaper arm gains as much as.

python studies/frontier.py --experiment cheap --results runs/reproduce/tiny/cheap/results.csv --output docs/cheap.png
"""

from dataclasses import dataclass

from dp2osr.cli import Settings, parse
from dp2osr.errors import UserError, run


@dataclass(kw_only=True)
class FrontierSettings(Settings):
    """An experiment with an axis, and what scripts/reproduce.py found of it."""

    experiment: str
    """Name of an experiment of configs/reproduce/tiny, or a YAML file."""
    results: str
    """Its results.csv."""
    output: str
    """PNG or SVG."""


def main():
    args = parse(FrontierSettings, description=__doc__)
    import pandas as pd

    from dp2osr.evaluation import plots
    from dp2osr.experiments.spec import load_experiment

    experiment = load_experiment(args.experiment, "tiny")
    table = pd.read_csv(args.results)
    found = table[table.metric == "reward"].set_index("arm")
    absent = [name for name in experiment.arms if name not in found.index]
    if absent or not experiment.axis:
        raise UserError(f"{args.results}: {f'has no results of {absent[0]}' if absent else 'its experiment has no axis'}")
    points = sorted((arm.at, *found.loc[name, ["change", "low", "high"]], name) for name, arm in experiment.arms.items())
    best = frontier([(at, gain) for at, gain, *_ in points])
    with plots.drawing((6.4, 3.8)) as (figure, axes):
        axes.plot(*zip(*best, strict=True), color=plots.METHODS[1], linewidth=1.2, drawstyle="steps-post", zorder=1)
        for at, gain, low, high, name in points:
            colour = plots.METHODS[1] if (at, gain) in best else plots.MUTED
            axes.errorbar(at, gain, [[gain - low], [high - gain]], color=colour, marker="o", markersize=5, linewidth=1)
            axes.annotate(name, (at, gain), (5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=experiment.axis, ylabel="change of the reward, σ of the base", xlim=(0, 1.12 * points[-1][0]))
        axes.axhline(0, color=plots.MUTED, linewidth=0.8)
        plots.save_figure(figure, args.output)
    for at, gain, low, high, name in points:
        print(f"{at:5.3f}  {gain:+.2f} [{low:+.2f}, {high:+.2f}]  {name}{'  on the frontier' if (at, gain) in best else ''}")


def frontier(points):
    """Those of [(cost, gain)], sorted by cost, that gain more than all that cost less."""
    best = []
    for cost, gain in points:
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    return best


if __name__ == "__main__":
    run(main)
