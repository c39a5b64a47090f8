"""The libraries of the ``proof`` extra, imported late and with an answer when one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from fundus_rt.models.errors import BackendUnavailableError


def require_proof(module: str) -> Any:
    """Import a module of the ``proof`` extra: SciPy, scikit-learn, matplotlib or Jinja, or one below them.

    Args:
        module: as in an import statement, ``matplotlib.figure``.

    Raises:
        BackendUnavailableError: it is not installed, or its own import fails; the message tells the two apart.
    """
    wanted = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == wanted:
            raise BackendUnavailableError(
                f"{wanted} is not installed; reports and statistics need it: pip install 'fundus-rt[proof]'"
            ) from error
        raise BackendUnavailableError(
            f"{wanted} is installed but needs {error.name}, which is not: pip install 'fundus-rt[proof]'"
        ) from error
    except ImportError as error:
        raise BackendUnavailableError(
            f"{wanted} is installed but cannot be imported ({error}); reinstall it with pip install 'fundus-rt[proof]'"
        ) from error
