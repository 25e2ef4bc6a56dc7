"""How far an order of samples may be trusted, in a line for each comparison that there is."""

from pathlib import Path

from pydvl_datainf.cli.console import say
from pydvl_datainf.results.beside import bank_beside
from pydvl_datainf.results.facts import reliability
from pydvl_datainf.results.reader import InfluenceRun


def say_reliability(run: InfluenceRun) -> None:
    """Says what was measured of the influences of a run, by itself and by retraining beside it.

    Args:
        run: complete.
    """
    for line in reliability(run):
        say(line)
    place = bank_beside(run)
    if run.store.path is None or place is None or not Path(place).is_dir():
        return
    from pydvl_datainf.report.retraining import retraining_of  # which takes seconds to import

    told = retraining_of(run)
    if told is not None:
        say(f"Linear datamodelling score against the retrainings beside it: {told.value}.")
