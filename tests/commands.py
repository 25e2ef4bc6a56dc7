"""Commands of the package, called in this process."""

from click.testing import CliRunner

from pydvl_datainf.cli import main


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def printed(*arguments):
    """What a command prints that succeeds."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def done(*arguments):
    """The same on one line."""
    return " ".join(printed(*arguments).split())


def failed(code, *arguments):
    """The message of a command that ends with this exit code."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return result.stderr


def refused(*arguments):
    """The message of a command that refuses, by itself."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr
