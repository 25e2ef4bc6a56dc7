"""Where pieces of work are done: in this process, in processes of joblib, or on a Dask cluster."""

import joblib
from distributed import Client

from pydvl_datainf.errors import PlanError
from pydvl_datainf.runner.executors.cluster import Dask
from pydvl_datainf.runner.executors.in_process import Executor, InProcess
from pydvl_datainf.runner.executors.processes import Joblib

__all__ = ["Dask", "Executor", "InProcess", "Joblib", "executor_for"]


def executor_for(client: Client | str | None, n_jobs: int | None, progress: bool) -> Executor:
    """Chooses where the work is done.

    Args:
        client: a Dask client or a scheduler's address.
        n_jobs: worker processes, as in joblib; None = one, unless a surrounding
            `joblib.parallel_config` says otherwise.
        progress: whether to show bars.

    Returns:
        The executor.

    Raises:
        PlanError: if both are given.
        ClusterError: if the cluster cannot be reached or does not suit.
    """
    if client is None:
        one = joblib.effective_n_jobs(n_jobs) == 1
        return InProcess(progress) if one else Joblib(n_jobs, progress)
    if n_jobs is not None:
        raise PlanError("Pass client or n_jobs, not both.")
    return Dask(client, progress)
