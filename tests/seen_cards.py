"""Work for processes that see three cards, in a module that needs little in them."""

import os
import time
from functools import partial
from pathlib import Path

import torch


class SeenFromACard:
    """Whoever unpickles it sees three cards from then on."""

    def __reduce__(self):
        return _see_cards, (3,)


def _see_cards(count):
    torch.cuda.is_initialized = lambda: True
    torch.cuda.device_count = lambda: count
    torch.cuda.set_device = partial(setattr, torch.cuda, "chosen")


def current_card(_, together):
    """Waits for the other processes, so that none does all the work."""
    Path(together, str(os.getpid())).touch()
    while len(os.listdir(together)) < 2:
        time.sleep(0.01)
    return os.getpid(), torch.cuda.chosen
