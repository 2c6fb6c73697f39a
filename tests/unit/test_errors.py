"""The tree of errors is what its docstring draws, and names are helped."""

from __future__ import annotations

import inspect
import re

import pytest

from tokensieve import errors
from tokensieve.errors import ConfigError, TokensieveError, UnknownNameError
from tokensieve.methods.registry import get_method


def test_docstring_draws_every_error() -> None:
    drawn = set(re.findall(r"\b(\w+Error)\b", errors.__doc__ or ""))
    found = {name for name, cls in inspect.getmembers(errors, inspect.isclass) if "Error" in name}
    assert found <= drawn
    assert all(issubclass(getattr(errors, name), TokensieveError) for name in found)


def test_did_you_mean() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_method("selecter")
    message = str(caught.value)
    assert "Unknown method 'selecter'. Did you mean 'selector'?" in message
    assert "feature-norm" in message


def test_unknown_option_lists_the_options() -> None:
    with pytest.raises(ConfigError, match=r"no option 'sead'\. Did you mean 'seed'\?"):
        get_method("random", sead=1)
    with pytest.raises(ConfigError, match=r"no option 'x9'\. Its options: none"):
        get_method("stride", x9=2)
