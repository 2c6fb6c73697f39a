"""Everything tokensieve raises on purpose.

TokensieveError
├── ConfigError (ValueError)        an argument or option is out of range or contradictory
│   ├── BudgetError                 ``keep`` is no fraction in (0, 1] and no count that can be spent
│   └── UnknownNameError (KeyError) no method, model or kind of that name
├── InputError (ValueError)         the data handed in cannot be used
│   ├── PictureError                a picture file is missing, broken, too large or not a picture
│   ├── PromptError                 the prompt and its pictures do not fit together
│   ├── RowError                    a row of training data cannot be learned from
│   └── NonFiniteError              NaN or Inf where numbers were expected
├── WeightsError (ValueError)       a weights file is missing, truncated or for another encoder
│   └── EncoderMismatchError        selector and encoder differ in width, layer or grid
├── MissingPackageError (ImportError) an optional package of tokensieve is not installed
├── TrainingError (RuntimeError)     a training went wrong and would give a useless result
└── UnsupportedError (RuntimeError) the model, site or mode is not one this method can act on

EncoderMismatchWarning (UserWarning) a selector meets an encoder of the right shape, other weights
QuestionWarning (UserWarning)        a method that reads the question meets a picture before it

Every message says what was expected, what was got and what to do. The CLI prints it as one line
and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TokensieveError(Exception):
    """Base of all errors tokensieve raises on purpose."""


class ConfigError(TokensieveError, ValueError):
    """An argument or option is out of range or contradicts another."""


class BudgetError(ConfigError):
    """``keep`` is neither a fraction in (0, 1] nor a count from 2 that can be spent."""


class UnknownNameError(ConfigError, KeyError):
    """No method, model or kind goes by that name."""

    __str__ = Exception.__str__  # KeyError would print the repr, quotes and all

    @classmethod
    def of(cls, what: str, got: object, known: Iterable[str]) -> UnknownNameError:
        """Build the message "Unknown {what} ... did you mean ...? Known: ..."."""
        names = sorted(known)
        text = got if isinstance(got, str) else repr(got)
        text = text if text.isprintable() else repr(text)[1:-1]
        shown = text if len(text) <= 80 else f"{text[:60]}..."
        if not isinstance(got, str):
            return cls(f"Unknown {what} {shown}. Known: {', '.join(names)}.")
        hint = did_you_mean(shown, names)
        return cls(f"Unknown {what} '{shown}'.{hint} Known: {', '.join(names)}.")


class InputError(TokensieveError, ValueError):
    """The data handed in cannot be used."""


class PictureError(InputError):
    """A picture is missing, empty, truncated, too large or not a picture."""


class PromptError(InputError):
    """The prompt and its pictures do not fit together."""


class RowError(InputError):
    """A row of training data cannot be learned from; `reason` is what bad rows are counted by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NonFiniteError(InputError):
    """NaN or Inf where finite numbers were expected."""


class WeightsError(TokensieveError, ValueError):
    """A weights file is missing, truncated or not what its config says."""


class EncoderMismatchError(WeightsError):
    """The weights were trained for another encoder."""


class EncoderMismatchWarning(UserWarning):
    """A selector meets an encoder of the shape it was trained for, with other weights.

    A fine-tuned copy may well do. To be told nothing: `warnings.simplefilter("ignore",
    EncoderMismatchWarning)`.
    """


class QuestionWarning(UserWarning):
    """A picture stands before its question where the method chooses by what was asked.

    A causal LLM has not read the question by then, so the choice cannot depend on it.
    """


class MissingPackageError(TokensieveError, ImportError):
    """An optional package is not installed."""


class TrainingError(TokensieveError, RuntimeError):
    """A training went wrong in a way that would give a useless result."""


class UnsupportedError(TokensieveError, RuntimeError):
    """The model, site or mode is not one this method can act on."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """The words " Did you mean '...'?" where a known name is near, else none."""
    close = difflib.get_close_matches(got, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def brief(text: object, most: int = 200) -> str:
    """Some of a stranger's text, or of another's error: one line, short, and fit to be written."""
    line = " ".join(str(text).split()) or type(text).__name__
    line = line if len(line) <= most else f"{line[: most - 3]}..."
    return line.encode("utf-8", "backslashreplace").decode("utf-8")
