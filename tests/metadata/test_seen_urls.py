"""Repeated digests: the first of each, whatever the batches; a memory that does not grow."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.errors import InputError
from namedmask.metadata.seen_urls import SeenUrls

PEAK = """
import json, sys
import numpy as np
from namedmask.metadata import seen_urls
from namedmask.run.machine import peak_rss_mb

seen_urls.CACHE_MB = 8
rng = np.random.default_rng(10**6)
repeated = 0
peaks = []
with seen_urls.SeenUrls() as seen:
    for batch in range(int(sys.argv[1])):
        fresh = rng.bytes(16384 * 10)
        digests = np.frombuffer(fresh, "S10").copy()
        digests[::8] = np.frombuffer(np.random.default_rng(batch // 8).bytes(2048 * 10), "S10")
        repeated += len(seen.find_repeats(digests))
        peaks.append(peak_rss_mb())
print(json.dumps({"repeated": repeated, "peaks": peaks}))
"""


@settings(deadline=None)
@given(st.lists(st.lists(st.binary(min_size=1, max_size=2), max_size=9), max_size=6))
def test_repeats_any_batches_name_all_but_the_first_of_each(batches):
    seen, found, expected = set(), [], []
    with SeenUrls() as repeats:
        for batch in batches:
            digests = np.array([one.rjust(10, b"x") for one in batch], "S10")
            found.append(repeats.find_repeats(digests).tolist())
            places = []
            for place, digest in enumerate(digests.tolist()):
                if digest in seen:
                    places.append(place)
                seen.add(digest)
            expected.append(places)
    assert found == expected


def test_repeats_asked_from_many_threads_in_turn_answer_as_from_one():
    answers = []
    digests = np.array([b"a" * 10], "S10")
    with SeenUrls() as repeats:
        for _ in range(3):
            ask = threading.Thread(
                target=lambda: answers.append(repeats.find_repeats(digests).tolist())
            )
            ask.start()
            ask.join()
    assert answers == [[], [0], [0]]


def test_repeats_on_a_full_disk_name_the_folder_to_change(monkeypatch):
    monkeypatch.setattr("namedmask.metadata.seen_urls.CACHE_MB", 0)
    with SeenUrls() as repeats, pytest.raises(InputError, match="TMPDIR"):
        repeats._database.execute("PRAGMA max_page_count = 8")
        for number in range(50):
            repeats.find_repeats(np.frombuffer(np.random.default_rng(number).bytes(10_000), "S10"))


@pytest.mark.slow
def test_repeats_of_two_million_need_no_more_memory_than_of_one():
    child = [sys.executable, "-c", PEAK, "122"]
    said = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    peaks = said["peaks"]
    assert peaks[-1] < peaks[len(peaks) // 2] + 4, "19 MB more are on disk"
    # of each batch an eighth is of one of 16 sets; the first batch of each set has it as new
    assert said["repeated"] == (122 - 16) * 2048
