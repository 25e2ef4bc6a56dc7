"""The exceptions of the demo: settings, packages and output folders that cannot be."""

from pydvl_datainf.errors import DataInfError


class DemoSettingsError(DataInfError, ValueError):
    """A setting of the demo is out of its range."""


class PackageError(DataInfError, ImportError):
    """A package that the demo needs is missing, or its files are not those expected."""


class OutputError(DataInfError, FileExistsError):
    """The output folder exists and may not be replaced."""
