"""The command line: python -m rota demo"""

import argparse
import importlib
import sys

from rota.loadbalance import LoadBalancer

LEAST_REQUESTS = 10
THIRD_PARTY = ("rich", "urllib3")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rota", description="Client-side load balancing."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="send real requests to real servers, through each balancer and selector",
        description="Send real requests through each balancer to five HTTP servers of different "
        "weights, while one of them is killed, one is added and one gets another weight. Then "
        "send some through selectors to five equal servers, while one of them is ten times "
        "slower for 3 s. Exit code 1 when a request is lost, a server does not get its share, "
        "or p2c does not leave the slow server and return to it in time.",
    )
    demo.add_argument("--json", action="store_true", help="print one JSON document, no tables")
    demo.add_argument(
        "--only", choices=("balancers", "selector"), help="play one part (default both)"
    )
    demo.add_argument(
        "--requests",
        type=int,
        default=10_000,
        metavar="N",
        help="for each balancer (default 10000)",
    )
    demo.add_argument(
        "--discovery",
        choices=("file", "etcd"),
        default="file",
        help="where the servers are published and found (default file)",
    )
    demo.add_argument(
        "--etcd",
        metavar="URL",
        nargs="+",
        help="the endpoints of an etcd (default: one is started, where it is installed)",
    )
    demo.add_argument("--seed", type=int, metavar="S", help="of rota's balancers")
    demo.add_argument(
        "--balancer",
        type=_balancer,
        default=[],
        action="extend",
        nargs="+",
        metavar="MODULE:CLASS",
        help="a balancer of your own to play besides; the class is called with no arguments",
    )
    options = parser.parse_args(arguments)
    if options.requests < LEAST_REQUESTS:
        demo.error(f"--requests must be at least {LEAST_REQUESTS}, got {options.requests}")
    if options.etcd and options.discovery != "etcd":
        demo.error("--etcd is for --discovery etcd")
    if options.seed is not None and not 0 <= options.seed < 2**64:
        demo.error(f"--seed must be in [0, 2**64), got {options.seed}")
    try:
        from rota.demo.registries import Unavailable
        from rota.demo.run import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in THIRD_PARTY:
            raise
        print(f'The demo needs {missing}: pip install "rota[demo]"', file=sys.stderr)
        return 2
    try:
        return run(
            options.requests,
            options.seed,
            options.balancer,
            json_only=options.json,
            only=options.only,
            discovery=options.discovery,
            etcd=options.etcd,
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Unavailable as error:
        print(f"The demo cannot run: {error}", file=sys.stderr)
        return 2


def _balancer(text: str) -> LoadBalancer:
    module, _, name = text.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    if not isinstance(made, LoadBalancer):
        raise argparse.ArgumentTypeError(f"{text} must have a name and get_picker, got {made!r}")
    return made


if __name__ == "__main__":
    sys.exit(main())
