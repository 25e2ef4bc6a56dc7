"""What is known of methods by their names alone is what they say themselves."""

from typing import get_args

from pydvl_datainf.influence.by_name import METHODS as BY_NAME
from pydvl_datainf.inverse import names
from pydvl_datainf.inverse.methods import METHODS


def test_names_are_those_of_the_methods():
    assert METHODS.keys() == names.NAMES
    assert {name for name, method in METHODS.items() if not method.is_damped} == names.UNDAMPED
    assert {name for name, method in METHODS.items() if method.settings} == names.WITH_SETTINGS
    assert set(get_args(names.Asked)) == BY_NAME.keys()
