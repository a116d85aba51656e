"""aet-stream: background-free tilt series for atomic electron tomography, while the microscope is still writing them.

Every command ends with 0 only if it did what it says. Errors are one line that names the file or setting and the remedy; --debug shows
where they came from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aet_stream import __version__
from aet_stream.cli import access, batch, checks, daemon, editions, files, microscope, operate, science, service_files
from aet_stream.cli.common import Command
from aet_stream.durable import refused
from aet_stream.errors import AetError
from aet_stream.service import EXIT_DISK, EXIT_FAILED, exit_code, set_up_logging


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed, unknown = _parser().parse_known_args(arguments)
    if unknown:
        parsed.usage_error(f"unrecognized arguments: {' '.join(unknown)}")
    set_up_logging(parsed.command, verbose=parsed.verbose)
    command: Command = parsed.run
    try:
        return command(parsed)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return EXIT_FAILED
    except (AetError, OSError) as error:
        if parsed.debug:
            raise
        code, said = exit_code(error), str(error)
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: {refused(error, Path(error.filename)) if code == EXIT_DISK else error.strerror}"
        print(f"aet-stream {parsed.command}: {said}", file=sys.stderr)
        return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more")
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML); without it the built-in defaults hold")
    settings.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting, over the file's")

    parser = argparse.ArgumentParser(prog="aet-stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"aet-stream {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, *, config: bool = True) -> argparse.ArgumentParser:
        parents = [common, settings] if config else [common]
        sub = commands.add_parser(name, help=text, description=run.__doc__, parents=parents)
        sub.set_defaults(run=run, usage_error=sub.error)
        return sub

    for group in (files, daemon, operate, editions, batch, access, checks, service_files, microscope, science):
        group.add_commands(add)
    return parser
