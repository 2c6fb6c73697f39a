"""tokensieve: make any vision-language model read fewer visual tokens without reading worse.

from tokensieve import sieve
with sieve(model, "selector", keep=0.4) as report:
    model.generate(**inputs)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokensieve.hf.load import load_model as load_model
    from tokensieve.hf.models.nano import load_nano as load_nano
    from tokensieve.hf.sieve import compress as compress
    from tokensieve.hf.sieve import sieve as sieve
    from tokensieve.methods.registry import get_method as get_method
    from tokensieve.methods.registry import method_names as method_names
    from tokensieve.nn.selector import Selector as Selector

__version__ = "0.1.0"

_EXPORTS = {
    "Selector": "tokensieve.nn.selector",
    "compress": "tokensieve.hf.sieve",
    "get_method": "tokensieve.methods.registry",
    "load_model": "tokensieve.hf.load",
    "load_nano": "tokensieve.hf.models.nano",
    "method_names": "tokensieve.methods.registry",
    "sieve": "tokensieve.hf.sieve",
}
__all__ = ["Selector", "compress", "get_method", "load_model", "load_nano", "method_names", "sieve"]


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: importing tokensieve stays light."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'tokensieve' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
