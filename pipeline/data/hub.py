"""Finds out soon whether the Hugging Face Hub can be reached. Its client would retry each request for half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Thread

from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError

UNREACHABLE = 4.0
"""Seconds without an answer after which the Hub counts as unreachable."""


def check_hub() -> None:
    """Check that the Hub may be asked, and answers.

    Raises:
        UserError: It does not, or `HF_HUB_OFFLINE` is set.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set. Unset it to ask the Hub, or use a local folder.")
    reach_hub(constants.ENDPOINT)


@contextmanager
def hub_errors(where: str, revision: str | None, unknown: str) -> Iterator[None]:
    """Turn the errors of requests for a repository into messages.

    Args:
        where: What is requested.
        revision: Its revision.
        unknown: The message if there is no such repository, or it may not be read.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise UserError(unknown) from None
    except RevisionNotFoundError:
        raise UserError(f"{where} has no revision {revision}. Check the part after @.") from None
    except UserError:
        raise
    except Exception as error:  # of httpx or requests, depending on the version of huggingface_hub
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise machine_fault(error, where) or UserError(f"{where}: cannot be downloaded ({reason}).") from None


@cache
def reach_hub(endpoint: str) -> None:
    """Check, once a process, that the Hub answers.

    Args:
        endpoint: Its URL.

    Raises:
        UserError: It does not.
    """
    from huggingface_hub.utils import get_session

    failure = [f"no answer within {UNREACHABLE:g} s"]

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=UNREACHABLE)
            failure.clear()
        except Exception as error:  # of httpx or requests, depending on the version of huggingface_hub
            failure[:] = [" ".join(f"{type(error).__name__}: {error}".split())[:200]]

    asking = Thread(target=ask, daemon=True)  # the timeout of a request does not include the search for the address
    asking.start()
    asking.join(UNREACHABLE)
    if failure:
        raise UserError(
            f"the Hugging Face Hub at {endpoint} cannot be reached ({failure[0]}). Check the network, the proxy and "
            "HF_ENDPOINT, or use a local folder, such as one that `hf download` wrote."
        )
