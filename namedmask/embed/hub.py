"""The use of Hugging Face's hub, which open_clip asks for weights and tokenizers, with a bound.

The hub's client repeats its requests for about a minute if there is no network. Here the hub gets
`ANSWER_S` seconds for a first answer; if there is none, only the cache of this machine is read.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from namedmask.errors import CheckpointError, NamedMaskError

ANSWER_S = 5.0
"""Seconds in which the hub must answer, and for which a server may stay silent in a download."""


@contextmanager
def hub(weights: str) -> Iterator[None]:
    """Let the block read from the hub, or only from the hub's cache if the hub does not answer.

    Args:
        weights: the weights in the user's words, as the subject of a message.

    Raises:
        CheckpointError: the block failed, and the hub does not answer.
    """
    from huggingface_hub import constants

    reason = "" if constants.HF_HUB_OFFLINE else why_unreachable()
    offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    silenced = logging.root.manager.disable
    constants.HF_HUB_OFFLINE = offline or bool(reason)
    socket.setdefaulttimeout(ANSWER_S)
    if reason:
        logging.disable(logging.ERROR)  # the error below says what these messages say
    try:
        yield
    except (OSError, RuntimeError, ValueError, NamedMaskError) as error:
        if not reason:
            raise
        raise CheckpointError(
            f"{weights}: not in the cache of this machine, and {constants.ENDPOINT} does not "
            f"answer ({reason}). Check the network, or download the weights elsewhere and set "
            "embed.weights to the file."
        ) from error
    finally:
        logging.disable(silenced)
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


def why_unreachable() -> str:
    """Return why the hub does not answer within `ANSWER_S` seconds; "" if it answers."""
    from huggingface_hub import constants, get_session

    answer: Future[object] = Future()

    def ask() -> None:
        try:
            answer.set_result(get_session().head(constants.ENDPOINT, timeout=ANSWER_S))
        except Exception as error:  # noqa: BLE001  (raised again in the thread that waits)
            answer.set_exception(error)

    # a name server that does not answer holds its thread for longer than any timeout
    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answer.exception(ANSWER_S)
    except TimeoutError:
        return f"no answer within {ANSWER_S:g} s"
    return " ".join(str(error).split()) or type(error).__name__ if error else ""
