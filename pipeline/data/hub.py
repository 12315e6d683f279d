"""Finds out soon whether the Hugging Face Hub can be reached. Its client would retry each request for half a minute."""

from __future__ import annotations

from functools import cache
from threading import Thread

from pipeline.common.errors import UserError

UNREACHABLE = 4.0
"""Seconds without an answer after which the Hub counts as unreachable."""


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
