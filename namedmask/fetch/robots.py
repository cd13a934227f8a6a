"""The robots.txt of a site: which urls this program may fetch and learn from, and how often.

RFC 9309 says which group applies. Protego matches the paths of its rules: the longest rule counts,
`*` and `$` are wildcards, and spellings with different escapes are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from protego import Protego

from namedmask.fetch.politeness import SIGNALS, TDM_FIELD, agent_of, preference_of
from namedmask.schema.status import OPTED_OUT_TDM, ROBOTS_TXT

ROBOTS_BYTES = 500 * 1024
"""Number of bytes of a robots.txt that are read, the minimum that RFC 9309 requires."""

_AGENT_LINE = re.compile(r"user[- ]?agent[ \t]*[: \t][ \t]*([\w.*-]+).*", re.IGNORECASE)
_RULE = re.compile(
    r"(allow|di\w{4,6}w|crawl[- ]delay|request[- ]rate|visit[- ]time"
    rf"|{'|'.join(SIGNALS)}|{TDM_FIELD})[ \t]*[: \t][ \t]*(.*)",
    re.IGNORECASE,
)


class SiteRules:
    """The rules of one robots.txt for one program; `delay_s` is its Crawl-delay in seconds."""

    def __init__(self, text: str, agent: str) -> None:
        rules = rules_for(text, agent)
        self._crawling = _parsed(f"{field}: {value}" for field, value in rules)
        rate = self._crawling.request_rate("*")
        self.delay_s = max(
            self._crawling.crawl_delay("*") or 0.0, rate.seconds / rate.requests if rate else 0.0
        )
        self._signals = [
            (status, _of_signal(key, forbidden, [value for name, value in rules if name == field]))
            for field, (key, forbidden, status) in SIGNALS.items()
            if any(name == field for name, _ in rules)
        ]
        self._is_reserved = (TDM_FIELD, "1") in rules

    def status_of(self, target: str, honor_opt_out: bool) -> str:
        """Return the status of a url that the rules forbid, or "".

        `target` is the path with the query. If `honor_opt_out` is false, only the rules about
        fetching count, and none about machine learning.
        """
        url = f"http://site{target}"
        if not self._crawling.can_fetch(url, "*"):
            return ROBOTS_TXT
        if honor_opt_out:
            for status, allowed in self._signals:
                if not allowed.can_fetch(url, "*"):
                    return status
        return OPTED_OUT_TDM if honor_opt_out and self._is_reserved else ""


def rules_for(text: str, agent: str) -> list[tuple[str, str]]:
    """Return the (field, value) of the rules for `agent`; if no group names it, of those for `*`.

    Groups of one name are one group. A name is a whole product token, in any case.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    agents: list[str] = []
    has_rules = False
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if named := _AGENT_LINE.fullmatch(line):
            agents = [] if has_rules else agents
            has_rules = False
            agents.append(named[1].lower().strip("*") or "*")
            groups.setdefault(agents[-1], [])
        elif rule := _RULE.fullmatch(line):
            has_rules = True
            for name in set(agents) & {agent, "*"}:
                groups[name].append((rule[1].lower(), rule[2]))
    return groups.get(agent, groups.get("*", []))


def _of_signal(key: str, forbidden: str, values: Iterable[str]) -> Protego:
    """Return rules that disallow the paths whose preference forbids machine learning.

    A value may begin with the path that it is for. Of equal paths, the one that forbids counts.
    """
    allowed: dict[str, bool] = {}
    for value in values:
        path, preferences = "/", value
        if value.startswith("/"):
            path, _, preferences = value.replace("\t", " ").partition(" ")
        if preference := preference_of(preferences, key):
            allowed[path] = allowed.get(path, True) and preference != forbidden
    return _parsed(f"{'Allow' if yes else 'Disallow'}: {path}" for path, yes in allowed.items())


def _parsed(lines: Iterable[str]) -> Protego:
    return Protego.parse("\n".join(("User-agent: *", *lines)))


@lru_cache(16)
def site_rules(robots_txt: bytes, user_agent: str) -> SiteRules:
    """Return the rules of a robots.txt for the program with this user agent."""
    return SiteRules(robots_txt.decode("utf-8-sig", "replace"), agent_of(user_agent))


def may_fetch(robots_txt: bytes, user_agent: str, target: str) -> bool:
    """Return whether a robots.txt allows this program to fetch `target`, a path with its query."""
    return site_rules(robots_txt, user_agent).status_of(target, False) != ROBOTS_TXT
