"""What compression behind side bases keeps of layers, and what a caller asks for it."""

from pydvl_datainf.inverse.compression import Compression, compression_of
from pydvl_datainf.results.record import COMPRESSION, compression_entry, compression_said

LAYERS = {"wide": (9, 11, True), "narrow": (2, 5, False)}
WIDTHS = {"other": 50, "wide": 99, "narrow": 10}


def test_widths_of_blocks_with_and_without_side_bases():
    compression = Compression(rank=7, basis_sample=20, sides=0.5).of_layers(LAYERS)
    assert compression.layers == {"wide": (9, 11, True)}  # of the other 1 x 3 would be left
    assert compression.kept_of_sides == {"wide": (5, 6)}
    assert compression.small_widths(WIDTHS) == {"other": 50, "wide": 30, "narrow": 10}
    assert compression.side_shapes(WIDTHS) == {1: (9, 5, 11, 6)}
    assert compression.widths(WIDTHS, 100) == {"other": 7, "wide": 7, "narrow": 7}
    assert compression.shapes(WIDTHS, 100) == {0: (7, 50), 1: (7, 30), 2: (7, 10)}
    assert compression.shapes(WIDTHS, 3) == {0: (3, 50), 1: (3, 30), 2: (3, 10)}


def test_without_sides_layers_do_not_count():
    compression = Compression(rank=7)
    assert compression.of_layers(LAYERS) is compression
    assert compression.small_widths(WIDTHS) == WIDTHS
    assert compression.side_shapes(WIDTHS) == {}


def test_a_caller_asks_for_the_same_again():
    """As values from a store do."""
    compression = Compression(rank=7, basis_sample=20, basis_seed=3, sides=0.5)
    assert compression_of("compressed", **compression.asked) == compression


def test_the_record_tells_it():
    compression = Compression(rank=7, basis_sample=20, sides=0.5).of_layers(LAYERS)
    told = compression_entry(compression, WIDTHS, 100)
    assert told[COMPRESSION]["sides"] == 0.5
    assert compression_said(told) == compression
    assert "sides" not in compression_entry(Compression(rank=7), WIDTHS, 100)[COMPRESSION]
