"""Reports: files that are written, replaced or refused, and the command that writes them."""

import shutil
from pathlib import Path

import pytest

import commands
from pydvl_datainf import StoreError
from pydvl_datainf.report import ReportExistsError, extra, is_report, write_report
from pydvl_datainf.report.file import write_whole
from pydvl_datainf.runner import tasks
from report_pages import M, Page, ids_shown, made

# Files


def written(path):
    path.write_text("<html>mine")
    return path


@pytest.mark.usefixtures("without_pictures")
def test_a_file_that_is_no_report_is_kept(tmp_path, plain):
    path = written(tmp_path / "report.html")
    with pytest.raises(ReportExistsError, match="is no report of this package"):
        write_report(plain, path)
    assert path.read_text() == "<html>mine"
    write_report(plain, path, overwrite=True)
    assert is_report(path)


@pytest.mark.usefixtures("without_pictures")
def test_an_earlier_report_is_replaced(tmp_path, plain):
    path = write_report(plain, tmp_path / "new" / "report.html")
    other = made(tmp_path / "other.zarr", m=M - 1, metadata=None)
    write_report(other, path)
    assert "All 4 test samples" in Page(path).text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_never_replaced(tmp_path, plain, overwrite):
    with pytest.raises(ReportExistsError, match="is a folder"):
        write_report(plain, tmp_path, overwrite=overwrite)


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = written(tmp_path / "report.html")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_text() == "<html>mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("without_pictures")
def test_a_link_stays_one(tmp_path, plain):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "elsewhere" / "report.html")
    write_report(plain, link)
    assert link.is_symlink()
    assert is_report(tmp_path / "elsewhere" / "report.html")


# What is refused


def stop(*arguments):
    raise KeyboardInterrupt


def test_a_run_that_is_not_complete_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_piece", stop)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match=r"is not complete .* the same arguments to go on"):
        write_report(tmp_path / "run.zarr", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_run_is_refused(tmp_path, folder, plain):
    shutil.copytree(folder / "plain.zarr", tmp_path / "run.zarr")
    chunk = tmp_path / "run.zarr/scores/c/0/0"
    damaged = bytearray(chunk.read_bytes())
    damaged[9] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(StoreError, match="scores"):
        write_report(tmp_path / "run.zarr", tmp_path / "report.html")


def test_missing_packages_are_named_with_what_to_install(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(extra, "PACKAGES", ("torch", "no_such_one", "no_such_two"))
    with pytest.raises(ModuleNotFoundError) as raised:
        write_report(plain, tmp_path / "report.html")
    message = "A report needs no_such_one, no_such_two, not installed here"
    assert str(raised.value) == f"{message}: pip install 'pydvl-datainf[report]'"


# On the command line


def invoke(*arguments):
    return commands.invoke("report", *arguments)


def test_the_command_writes_the_same_page(tmp_path, folder, plain_page):
    result = invoke(folder / "plain.zarr", "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Written to {tmp_path / 'report.html'}.\n"
    assert (tmp_path / "report.html").read_bytes() == (folder / "plain.html").read_bytes()


@pytest.mark.usefixtures("without_pictures")
def test_the_command_takes_bounds(tmp_path, folder, plain):
    path = tmp_path / "report.html"
    options = ("--k", 2, "--max-test", 3, "--suspects", 1, "--images", tmp_path)
    assert invoke(folder / "plain.zarr", "-o", path, *options).exit_code == 0
    page = Page(path)
    assert len(ids_shown(page, "test")) == 3
    assert len(page.data["tops"]["helpful"]["rows"][0]) == 2
    assert "The 1 most suspicious by any" in page.text


@pytest.mark.usefixtures("without_pictures")
def test_the_command_refuses_with_a_message(tmp_path, folder, plain):
    path = written(tmp_path / "report.html")
    refused = invoke(folder / "plain.zarr", "-o", path)
    assert refused.exit_code == 1
    assert "or replace the file with --overwrite." in refused.stderr
    assert path.read_text() == "<html>mine"
    assert invoke(folder / "plain.zarr", "-o", path, "--overwrite").exit_code == 0
    missing = invoke(tmp_path / "none.zarr", "-o", path)
    assert (missing.exit_code, missing.stderr) == (
        1,
        f"Error: There is no store at {tmp_path / 'none.zarr'}.\n",
    )


def test_templates_are_part_of_the_package():
    declared = (Path(__file__).parents[2] / "setup.cfg").read_text()
    assert "pydvl_datainf.report = templates/*" in declared
