"""Pictures of scores: numpy arrays in, matplotlib Axes out.

A plot of one panel takes `ax`, the axes to draw on, and returns them. A plot of several panels
takes `figure`, a Figure or SubFigure without other contents, and returns the list of its axes.
Without them a new pyplot figure is made, which notebooks show by themselves; with them none is.
Titles are left to the caller, except where they hold a query.

Blue is positive and helpful, vermilion negative and harmful. Texts and lines of axes take the
colours of `rcParams`, so that plots suit any background. Names and texts that come from the caller
are shown as they are: `$` starts no formula.
"""

from pydvl_datainf.plots.blocks import (
    block_shares,
    damping_by_block,
    error_by_block,
    shares_of_sum,
)
from pydvl_datainf.plots.detection import inspection_curves, roc_curves
from pydvl_datainf.plots.distributions import influence_distribution, score_distribution
from pydvl_datainf.plots.heatmap import score_heatmap
from pydvl_datainf.plots.images import influential_images, perturbation_image
from pydvl_datainf.plots.removal import removal_curves
from pydvl_datainf.plots.retraining import lds_of_methods, predicted_against_actual
from pydvl_datainf.plots.style import COLOURS, DIVERGING, HARMFUL, HELPFUL, MARKERS, STYLES
from pydvl_datainf.plots.texts import influential_texts
from pydvl_datainf.plots.tokens import token_heatmap

__all__ = [
    "COLOURS",
    "DIVERGING",
    "HARMFUL",
    "HELPFUL",
    "MARKERS",
    "STYLES",
    "block_shares",
    "damping_by_block",
    "error_by_block",
    "influence_distribution",
    "influential_images",
    "influential_texts",
    "inspection_curves",
    "lds_of_methods",
    "perturbation_image",
    "predicted_against_actual",
    "removal_curves",
    "roc_curves",
    "score_distribution",
    "score_heatmap",
    "shares_of_sum",
    "token_heatmap",
]
