"""Whether the Hugging Face hub can be reached: asked briefly and once, so that nothing waits or repeats without it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

SECONDS = 3.0
"""How long the hub has to answer."""
_AGAIN = 60.0
"""Seconds after which a hub that did not answer is asked again."""
_asked: dict[str, tuple[float, bool]] = {}
"""Address of a hub -> when it was asked, and whether it answered."""


def hub_answers() -> bool:
    """Whether the hub may be asked, and answers within `SECONDS`; an answer holds as long as the process runs.

    The variables of the hub's library are respected: HF_HUB_OFFLINE (never asked), HF_ENDPOINT, and those of proxies.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = constants.ENDPOINT
    when, answered = _asked.get(address, (-_AGAIN, False))
    if not answered and time.monotonic() - when >= _AGAIN:
        answered = _answers(address)
        _asked[address] = time.monotonic(), answered
    return answered


def why_no_hub() -> str:
    """Why `hub_answers` is False, as the end of a sentence."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    return f"{constants.ENDPOINT} does not answer"


def _answers(address: str) -> bool:
    """Whether anything answers at an address in time; in a thread, since looking up a name knows no limit."""
    from huggingface_hub import get_session

    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # whatever the library of connections raises
            answers.append(get_session().head(address, timeout=SECONDS))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return bool(answers)
