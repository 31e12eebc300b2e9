"""Keep lmms-eval and `datasets` quiet: no log, no bars, no calls home; errors still raise, as what they are.

Import this module before lmms_eval, which logs while it is imported.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import datasets
from loguru import logger as eval_logger
from tenacity import RetryError

from dpbench.storage.locks import DATASETS_REMEDY, explain_missing_locks

eval_logger.disable("lmms_eval")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide lmms-eval's tables, progress bars and prints; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if not bars:
                datasets.enable_progress_bars()


@contextlib.contextmanager
def without_download_counts() -> Iterator[None]:
    """Stop `datasets` from reporting every load, even of local files, to a server; offline it waits for a timeout."""
    counting = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    # The only switch: `datasets` reads its environment variable once, at import, which other code may have done before.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting  # as it was before


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the error itself instead of the RetryError that lmms-eval's tenacity wraps it in."""
    try:
        yield
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise cause if cause is not None else error from None


def explained_locks() -> contextlib.AbstractContextManager[None]:
    """Name the cache of `datasets` where its file system has no locks."""
    return explain_missing_locks(Path(datasets.config.HF_DATASETS_CACHE), DATASETS_REMEDY)
