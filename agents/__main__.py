"""`python -m gps.agents`: the agent of any experiment behind a TCP port, in a robot's place.

A command line like `gps`, so it may import the loader, which the other modules here must not.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gps import agents  # its names need MuJoCo, and say so when they are used without
from gps.agents import real_time
from gps.agents._protocol import MAX_BYTES
from gps.agents.remote import RobotServer, serve
from gps.errors import ConfigError, GPSError, choices
from gps.pipeline import loader
from gps.pipeline.experiment import AgentConfig

AGENTS: dict[str, Callable[[], AgentConfig]] = {
    "acrobot": lambda: agents.acrobot(),
    "arm_reach": lambda: agents.arm_reach(),
    "cartpole": lambda: agents.cartpole(),
    "peg_insertion": lambda: agents.peg_insertion(),
    "pendulum": lambda: agents.pendulum(),
    "point_mass": lambda: agents.PointMassConfig(),
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = argparse.ArgumentParser(
        prog="python -m gps.agents",
        description="Serve a simulated agent to learners that use RemoteConfig, until Ctrl-C.",
    )
    p.add_argument(
        "agent",
        metavar="NAME|FILE.py",
        help=f"the agent of an experiment (see gps list) or of a hyperparams file; or one of "
        f"{', '.join(AGENTS)}",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    p.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    p.add_argument("--secret-file", help="file with the shared secret; needed beyond 127.0.0.1")
    p.add_argument(
        "--step-timeout", type=float, default=5.0, help="seconds for an action (%(default)s)"
    )
    p.add_argument(
        "--start-timeout", type=float, default=60.0, help="the same at step 0 (%(default)s)"
    )
    p.add_argument("--max-bytes", type=int, default=MAX_BYTES, help="of a message (%(default)s)")
    p.add_argument(
        "--real-time",
        type=float,
        metavar="SPEED",
        help="take a robot's time, divided by SPEED, instead of as little as possible",
    )
    return p


def agent_config_of(name: str) -> AgentConfig:
    """An agent by its own name, by that of an experiment, or by a hyperparams file.

    Raises ConfigError and ExperimentError.
    """
    if name in AGENTS:
        return AGENTS[name]()
    if not name.endswith(".py") and os.sep not in name:
        known = {*AGENTS, *(experiment for experiment, _ in loader.names())}
        if name not in known:
            raise ConfigError(f"{choices('agent', name, known)}; or give a hyperparams file")
    return loader.load(name).experiment.agent


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; 0 after Ctrl-C or a termination signal, 2 where it cannot."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    # as Ctrl-C, so that a rollout under way is stopped
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = agent_config_of(args.agent)
        if args.real_time is not None:
            config = real_time.RealTimeConfig(agent=config, speed=args.real_time)
        secret = None
        if args.secret_file is not None:
            try:
                secret = Path(args.secret_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--secret-file cannot be read: {error}") from error

        def ready(server: RobotServer) -> None:
            print(f"serving {args.agent} at {server.host}:{server.port}", flush=True)

        serve(
            config.build(),
            args.host,
            args.port,
            secret,
            step_timeout=args.step_timeout,
            start_timeout=args.start_timeout,
            max_bytes=args.max_bytes,
            ready=ready,
        )
    except KeyboardInterrupt:
        return 0
    except GPSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
