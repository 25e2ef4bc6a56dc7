"""The console command, apart from the package: importing that takes a while."""

from pydvl_datainf.interrupts import ending_at_once


def main() -> None:
    """Runs the command line; Ctrl-C ends it in one line and with exit code 130 from the start."""
    with ending_at_once():
        from pydvl_datainf.cli import main as commands

    commands(prog_name="pydvl-datainf")  # also as python -m


if __name__ == "__main__":
    main()
