"""The `asr` command."""

import argparse
import sys
from pathlib import Path

CMDLINE = Path("/proc/cmdline")


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return arguments.run(arguments)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asr", description="Automated System Recovery for Linux.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("console", help="what the recovery medium shows on its screen")
    command.set_defaults(run=console)
    return parser


def console(arguments: argparse.Namespace) -> int:
    """The stage that the kernel's command line names, on this terminal."""
    # Textual is imported by the commands that draw, since the import is the longest part of their start.
    from .app import SetupApp

    app: SetupApp
    if stage(CMDLINE.read_text()) == "restore":
        from bootenv import restore

        from .restore import RestoreApp

        app = RestoreApp(restore)
    else:
        from bootenv import recover

        from .recover import RecoverApp

        app = RecoverApp(recover)
    app.run(mouse=False)
    return app.return_code or 0


def stage(cmdline: str) -> str:
    """What asr.stage= says; the last one counts, as for the kernel."""
    said = [word.removeprefix("asr.stage=") for word in cmdline.split() if word.startswith("asr.stage=")]
    return said[-1] if said else "recover"


if __name__ == "__main__":
    sys.exit(main())
