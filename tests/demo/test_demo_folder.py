"""What else may stand in the folder of the demo: never replaced or touched."""

import pytest
import zarr

from pydvl_datainf import StoreExistsError, run_influences
from pydvl_datainf.demo import output, run
from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.results.reader import InfluenceRun
from small_demo import SETTINGS, prepared


def written(folder, name="thesis.tex"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    return folder / name


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_touched(demo, overwrite):
    written(demo.out)
    with pytest.raises(OutputError, match=r"does not write \(thesis.tex, for one\)"):
        demo(overwrite=overwrite)
    assert (demo.tuned, [p.name for p in demo.out.iterdir()]) == (0, ["thesis.tex"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_page_that_is_no_report_is_never_replaced(demo, overwrite):
    demo()
    page = written(demo.out, output.REPORT)
    with pytest.raises(OutputError, match=r"does not write \(report.html, for one\)"):
        demo(overwrite=overwrite)
    assert page.read_text() == "mine"


def test_a_file_is_never_replaced(demo):
    path = written(demo.out.parent, demo.out.name)
    with pytest.raises(OutputError, match="is a file"):
        demo(overwrite=True)
    assert path.read_text() == "mine"


def test_a_run_that_is_not_of_the_demo_is_never_replaced(demo):
    made = prepared(SETTINGS, run.Stages(lambda line: None))
    run_influences(made.influence, made.test, made.train, demo.store, progress=False)
    before = demo.content()
    with pytest.raises(OutputError, match="is not of this demo"):
        demo(overwrite=True)
    assert (demo.tuned, demo.content()) == (0, before)


def test_another_zarr_group_is_never_replaced(demo):
    zarr.create_group(demo.store)
    with pytest.raises(StoreExistsError, match="never replaced"):
        demo(overwrite=True)


def test_plots_without_scores_are_replaced_on_request(demo):
    plot = written(demo.out, output.ROC_PLOT)
    with pytest.raises(OutputError, match="holds the plots or the report of an earlier"):
        demo()
    assert plot.read_text() == "mine"
    demo(overwrite=True)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_a_killed_process_left_is_no_hindrance(demo):
    written(demo.out / f".{output.SCORES}.123.old")
    (demo.out / output.LOCK).touch()
    written(demo.out, f".{output.REPORT}.123.part")
    demo()
    assert InfluenceRun(demo.store).is_complete
