"""The demo from the first to the last stage; a result that is there already is read instead."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from pydvl_datainf.demo import output
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.demo.preparation import Prepared, Stages, prepare
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.errors import StoreError, StoreExistsError
from pydvl_datainf.plots import roc_curves, score_distribution
from pydvl_datainf.report import write_report
from pydvl_datainf.results.reader import InfluenceRun


def run_demo(
    settings: DemoSettings,
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Tunes a model on reviews with flipped labels, scores each training review, and shows it all.

    Where `out` holds the complete result of these settings, it is read, and only the plots and the
    report are made. Where it holds a part of it, the model is tuned again, and the run goes on.

    Args:
        settings: sizes, rates and seed.
        out: folder of the results.
        overwrite: replace a result of other settings, once the model is tuned.
        progress: show bars on stderr.
        announce: told what happens, line by line.

    Returns:
        What was found, as it is stored.
    """
    begun = output.begun_run(out, settings, overwrite)
    result = None if begun is None else _reused(begun, announce)
    if result is None:
        stages = Stages(announce)
        prepared = prepare(settings, stages, progress)
        with stages.stage("DataInf: influences and self-influences"):
            run = _computed(prepared, out, begun, stages, overwrite, progress)
        result = DemoResult.from_run(run)
    write_plots(out, result)
    write_report(out / output.SCORES, out / output.REPORT)
    return result


def _reused(run: InfluenceRun, announce: Callable[[str], None]) -> DemoResult | None:
    """The result, or None if it is not there whole."""
    created = run.attrs["created"]
    try:
        result = DemoResult.from_run(run)
    except StoreError:
        state = "damaged" if run.is_complete else "not complete"
        announce(f"The result of {created} is {state}; what is missing is computed.")
        return None
    announce(f"Reusing the result of {created}, which has the same settings.")
    return result


def _computed(
    prepared: Prepared,
    out: Path,
    begun: InfluenceRun | None,
    stages: Stages,
    overwrite: bool,
    progress: bool,
) -> InfluenceRun:
    """Goes on with the run that was begun, or makes a new one."""
    store = out / output.SCORES
    if begun is not None:
        seconds = begun.metadata("run")["seconds"]  # as told then: a run that goes on is the same
        try:
            return prepared.run(store, seconds, overwrite=False, progress=progress)
        except StoreExistsError as error:
            if not overwrite:
                raise OutputError(
                    f"{out} holds a result of the same settings, begun with another number of "
                    "threads or other versions of packages, so that it cannot go on. Replace it "
                    f"with --overwrite. {error}"
                ) from error
    output.delete_earlier(out)  # they would stand beside scores that they do not show
    return prepared.run(store, stages.seconds, overwrite, progress)


def write_plots(folder: Path, result: DemoResult) -> None:
    """Draws the two plots.

    Args:
        folder: where to; must exist.
        result: what was found.
    """
    suspicions, flipped = result.scores.suspicions(), result.train.flipped
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    roc_curves(suspicions, flipped, figure.subplots())
    figure.suptitle(f"Finding {flipped.sum():,} flipped labels among {flipped.size:,}")
    figure.savefig(folder / output.ROC_PLOT, dpi=150)
    figure = Figure(figsize=(8, 1.5 * len(suspicions)), layout="constrained")
    panels = figure.subplots(len(suspicions))
    for (name, suspicion), panel in zip(suspicions.items(), panels, strict=True):
        score_distribution(suspicion, flipped, panel, name=name)
    for panel in panels[1:]:
        panel.get_legend().remove()
    figure.suptitle(
        "Scores as suspicions: further right, more like a wrong label\n"
        "(mean influences times −1; the outermost bins count all that lies beyond)"
    )
    figure.savefig(folder / output.DISTRIBUTION_PLOT, dpi=150)
