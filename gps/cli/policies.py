"""What a run has learned: `gps evaluate` and `gps export`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

from gps.cli import options
from gps.fields import Count, Whole

if TYPE_CHECKING:
    from gps.pipeline.evaluation import Judged


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps evaluate`."""
    options.run_folder(parser)
    options.iteration(parser, "what to roll out")
    options.add(parser, "--samples", Count, "S", "rollouts per condition (default: 1)", default=1)
    options.add(
        *(parser, "--conditions", Literal["train", "test"], "{train,test}", "default: train"),
        default="train",
    )
    options.flag(parser, "--noise", "with the exploration noise of policy and controllers")
    options.add(parser, "--seed", Whole, "K", "of starts and noise", default=0)
    parser.add_argument("--video", metavar="FILE.mp4", help="film of one rollout per condition")
    parser.add_argument("--images", metavar="FILE.png", help="strip of images, one per condition")
    parser.add_argument("--camera", metavar="NAME", help="camera of the model (default: free)")
    parser.add_argument("--size", default="320x240", metavar="WxH", help="of an image, in pixels")


def evaluate(args: argparse.Namespace) -> int:
    """`gps evaluate`."""
    from gps.cli import images, terminal
    from gps.pipeline import progress
    from gps.pipeline.checking import distance_label
    from gps.pipeline.evaluation import evaluate
    from gps.pipeline.sampling import agent_of
    from gps.pipeline.store import RunFolder

    test = args.conditions == "test"
    drawing = images.Drawing(args.images, args.video, args.camera, args.size, test)
    chosen = progress.choice(args.iteration)
    folder = RunFolder.open(args.run)
    if drawing.wanted:  # refused before the rollouts, which may take long
        drawing.renderer(agent_of(folder.experiment().agent))
    report = evaluate(
        folder,
        iteration=chosen,
        samples=args.samples,
        noise=args.noise,
        test=test,
        seed=args.seed,
        save=True,
    )
    experiment, n = report.experiment, report.iteration
    judged = {"policy": report.policy, "local": report.local}
    results = {who: result for who, result in judged.items() if result is not None}
    label = distance_label(experiment.measure, agent_of(experiment.agent))
    columns = [name for who in results for name in (f"{who} cost", label, "success")]
    rows = [
        [str(m), *(cell for result in results.values() for cell in _cells(result, m))]
        for m in range(len(report.best.cost))
    ]
    footer = [cell for result in results.values() for cell in _cells(result)]
    place = f"iteration {n}" if chosen == n else f"iteration {n} (the {chosen})"
    plural = "s" if args.samples > 1 else ""
    title = f"{experiment.name}, {place}, {args.conditions} conditions, "
    title += f"{args.samples} sample{plural} each"
    terminal.table(title, ["condition", *columns], rows, last=["mean", *footer])
    if report.set_aside is not None:
        before = int(report.set_aside.stem.rpartition("_")[2])
        print(f"kept the one of iteration {before} as {report.set_aside}")
    print(f"wrote {report.table}")
    if drawing.wanted:
        agent = agent_of(experiment.agent)
        renderer = drawing.renderer(agent)
        for path in drawing.write(renderer, report.best.rollouts, agent.T, agent.dt):
            print(f"wrote {path}")
    return 0


def _cells(judged: Judged, m: int | None = None) -> tuple[str, str, str]:
    """Cost, distance and success of a condition, or the means over all."""
    from gps.cli.terminal import number, percent

    columns = judged.cost, judged.distance, judged.success
    means = [c.mean(axis=1) for c in columns]
    cost, distance, success = (float(c.mean() if m is None else c[m]) for c in means)
    return number(cost, 0), number(distance, 0, 4), percent(success)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps export`."""
    options.run_folder(parser)
    parser.add_argument(
        "out", metavar="FILE", help="file to write: .pt2 for torch, .onnx for onnxruntime"
    )
    options.iteration(parser, "whose policy")
    options.flag(parser, "--force", "replace FILE if it exists")
    options.flag(parser, "--clip", "the program clips its action to the agent's limits")
    options.flag(parser, "--float32", "an .onnx file takes float32 observations")


def export(args: argparse.Namespace) -> int:
    """`gps export`."""
    from gps.pipeline import export_policy, progress
    from gps.pipeline.store import RunFolder
    from gps.threads import one_thread

    chosen = progress.choice(args.iteration)
    n = RunFolder.open(args.run).choose(chosen)
    with one_thread():
        path = export_policy(
            *(args.run, args.out),
            iteration=n,
            force=args.force,
            clip=args.clip,
            float32=args.float32,
        )
    onnx = path.suffix == ".onnx"
    reader, how = ("onnxruntime", "gps.policies.onnx") if onnx else ("torch", "torch.export.load")
    place = f"iteration {n}" if chosen == n else f"iteration {n}, the {chosen}"
    print(f"wrote {path} ({place}); it needs {reader} only, see gps.policies.load and {how}")
    return 0
