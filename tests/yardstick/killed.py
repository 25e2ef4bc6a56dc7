"""A call that kills its own process, as the system does for want of memory."""

import os
import signal

import linear

from pydvl_datainf.yardstick import validate


def validate_until_killed(place, calls):
    regression = linear.Regression()

    def train(indices, seed):
        if len(regression.calls) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return regression(indices, seed)

    validate(linear.scores(), train, bank=place, subsets=12, progress=False)
