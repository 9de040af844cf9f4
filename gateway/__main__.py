"""The command line: `ledger-gateway`, or `python -m gateway`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway import config as configuration
from gateway.config import Config, InvalidConfiguration

DEFAULT_CONFIG = Path("config.yaml")
# Commands that call no ledger need not be told where it is.
_NO_LEDGER = {"GATEWAY_LEDGER__BASE_URL": "http://127.0.0.1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 if it did what it should, 1 with a message if not, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    if sys.stdout is None:
        # Whatever is opened next would be taken for it.
        print("standard output is closed", file=sys.stderr)
        return 1
    _take_closed_numbers()
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except InvalidConfiguration as error:
        print("The configuration cannot be used:", *error.problems, sep="\n  ", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
    return 1


def _take_closed_numbers() -> None:
    """Opens standard input and error where they are closed: a connection with such a number ends
    the process when it is closed (libuv).
    """
    for number in (0, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ledger-gateway", description="A gateway for a ledger.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> Callable[..., object]:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added.add_argument

    command("demo", _demo, "Run the gateway over a sandbox ledger and print tokens to try it.")
    option = command("serve", _serve, "Run the gateway over the configured ledger.")
    option("--config", type=Path, help="default: config.yaml, if there is one")
    option("--workers", type=_positive, help="processes; default: server.workers")
    option = command("sandbox", _sandbox, "Run the sandbox ledger alone.")
    option("--port", type=_port, default=8090, help="default: 8090; 0 takes any that is free")
    rows = "serve so many generated rows in place of the seed: no actions, no filters"
    option("--rows", type=_positive, help=rows)
    option = command("token", _token, "Print a development token.")
    option("--username", required=True)
    option("--role", required=True, choices=("admin", "service", "user"))
    option("--ttl", type=_positive, default=3600, help="seconds; default: 3600")
    option("--config", type=Path)
    option = command("check", _check, "Print the effective configuration, or every mistake in it.")
    option("--config", type=Path)
    command("routes", _routes, "Print every route and who may call it.")
    command("openapi", _openapi, "Print the OpenAPI document.")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65_535:
        raise argparse.ArgumentTypeError("must be 0 to 65535")
    return value


def _config(options: argparse.Namespace, **preset: str) -> Config:
    return configuration.read(_path(options), {**preset, **os.environ})


def _path(options: argparse.Namespace) -> Path | None:
    given: Path | None = getattr(options, "config", None)
    return given or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)


def _demo(options: argparse.Namespace) -> int:
    from gateway import logs
    from gateway.demo import demo
    from gateway.server import run

    logs.configure()
    run(demo(_path(options), os.environ))
    logs.end()
    return 0


def _serve(options: argparse.Namespace) -> int:
    config = _config(options)
    count = options.workers or config.server.workers
    if count == 1:
        return _work(config)
    with tempfile.TemporaryDirectory(prefix="ledger-gateway-") as folder:
        # prometheus-client reads this when it is first imported: the workers add up their counts.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        return _supervise(config, count)


def _work(config: Config) -> int:
    from gateway import app, logs, server

    logs.configure()
    server.work(config, app.shared(config))
    logs.end()
    return 0


def _supervise(config: Config, count: int) -> int:
    from gateway import app, logs, metrics, server
    from gateway.workers import Workers

    logs.configure()
    common = app.shared(config)

    def work() -> int:
        try:
            metrics.reserve(os.getpid())
            server.work(config, common)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0

    status = Workers(count, work, bury=metrics.forget).run()
    logs.end()
    return status


def _sandbox(options: argparse.Namespace) -> int:
    from gateway import server
    from gateway.sandbox import create_sandbox

    token = os.environ.get("GATEWAY_LEDGER__TOKEN")
    app = create_sandbox(rows=options.rows, token=token)
    server.run(server.serve_alone(app, "127.0.0.1", options.port))
    return 0


def _token(options: argparse.Namespace) -> int:
    from gateway.authn import development_token

    auth = _config(options, **_NO_LEDGER).auth
    print(development_token(auth, options.username, options.role, options.ttl))
    return 0


def _check(options: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(_config(options).masked(), sort_keys=False), end="")
    return 0


def _routes(_options: argparse.Namespace) -> int:
    from gateway.endpoints import ENDPOINTS

    for endpoint in ENDPOINTS:
        grants = ", ".join(f"{role.label}: {access}" for role, access in endpoint.roles.items())
        print(f"{endpoint.method:7}{endpoint.path:80}{grants}")
    return 0


def _openapi(_options: argparse.Namespace) -> int:
    from gateway import openapi

    sys.stdout.write(openapi.document_bytes().decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
