"""What the owner of an image asks of those who fetch it."""

from __future__ import annotations

from collections.abc import Iterable

OPT_OUTS = frozenset(("noai", "noimageai", "noml"))


def opted_out(tags: Iterable[str], user_agent: str) -> bool:
    """Return whether X-Robots-Tag values ask all agents, or this one, to leave the image alone.

    A value is `noai, noindex` or `agent: noai`; a named agent holds for what follows it.
    """
    ours = user_agent.split("/")[0].strip().lower()
    for tag in tags:
        agent = ""
        for part in tag.lower().split(","):
            name, colon, word = part.rpartition(":")
            agent = name.strip() if colon else agent
            if word.strip() in OPT_OUTS and agent in ("", "*", ours):
                return True
    return False
