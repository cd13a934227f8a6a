"""Records of CSV and TSV: no line is lost, whatever its quotes; good files are read as written."""

import csv
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.errors import InputError
from namedmask.metadata import records
from namedmask.metadata.records import Grammar, read_records

COMMA, TAB = Grammar(","), Grammar("\t")


def read(text, grammar=COMMA):
    lines = io.StringIO(text, newline="").readlines()
    return list(read_records(lines, grammar, "a.csv"))


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("a,b", ["a", "b"]),
        ("", [""]),
        (",", ["", ""]),
        (",,b", ["", "", "b"]),
        ('"a","b"\r\n', ["a", "b"]),
        ('"a,1",b\n', ["a,1", "b"]),
        ('"",""', ["", ""]),
        ('"""",""""""', ['"', '""']),
        ('"say ""hi""",b', ['say "hi"', "b"]),
        ('"Big" dog,b', ["Big dog", "b"]),
        ('6" pipe,5"', ['6" pipe', '5"']),
        ('"two\nlines",b', ["two\nlines", "b"]),
        ('"a" "b",c', ['a "b"', "c"]),
        ("a\0b,c", ["a\0b", "c"]),
    ],
)
def test_split_comma_separated_record_gives_its_fields(line, fields):
    assert COMMA.split(line) == fields
    assert Grammar(";").split(line.replace(",", ";")) == [one.replace(",", ";") for one in fields]


def test_split_tab_separated_record_keeps_its_quotes():
    assert TAB.split('"a cat\t"b"\r\n') == ['"a cat', '"b"']


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('u,"a cat\nv,"dog" and\n', [False, True]),  # `dog` is behind a quote that closes nothing
        ('u,"a cat\nv,b\nw,"c"\n', [False, True, True]),
        ('u,"a\nb",c\nv,"x\n,"y"\n', [True, False, True]),
        ('u,"a","b\nc"d\n', [False, True]),
        ('"x","a\nb","c\nd"e\nf\n', [False, False, True, True]),
        ('u,"a\n\n\nb"\n', [True]),
        ('u,"a\r\nb"\r\nv\r\n', [True, True]),
        ('u,"a\nb"', [True]),
        ('u,"say ""hi""\nto me"\n', [True]),
        ('u,"",""\nv,"a"\n', [True, True]),
    ],
)
def test_records_quotes_over_line_ends_are_whole_or_broken(text, whole):
    found = read(text)
    assert "".join(record.text for record in found) == text
    assert [record.is_whole for record in found] == whole


def test_records_tabs_have_one_record_per_line():
    text = 'url\tcaption\nu\t"a cat\nv\tdog" and\n"\n""\n'
    assert [record.text for record in read(text, TAB)] == text.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('url,caption\nu,"a cat\nv,dog\nw,x\n', 2),
        ('"', 1),
        ('url,caption\nu,"two\nlines"\nv,"', 4),
        ('a\nu,"two\nlines","open\nuntil\nthe end', 3),
        ('u,"a\nv,"b"\nw,"c', 3),
    ],
)
def test_records_field_that_is_never_closed_is_refused_with_its_line(text, line):
    with pytest.raises(InputError, match=rf"'a\.csv', line {line}: .* never closed"):
        read(text)


def test_records_field_that_outgrows_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    with pytest.raises(InputError, match="line 1: "):
        read('"\n' + "x,y\n" * 300 + '"\n')


def test_records_line_that_is_too_long_is_one_broken_record():
    found = list(read_records(['u,"a\n', None, "v,b\n"], COMMA, "a.csv"))
    assert [record[:2] for record in found] == [
        ('u,"a\n', False), (None, False), ("v,b\n", True),
    ]  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.text(st.sampled_from('ab",\n\r;é\0'), max_size=60), st.sampled_from(",;\t|"))
def test_records_any_text_keeps_every_line_or_is_refused(text, separator):
    grammar = Grammar(separator)
    try:
        found = read(text, grammar)
    except InputError as error:
        assert "never closed" in str(error)
        assert '"' in text
        return
    assert "".join(record.text for record in found) == text
    for record in found:
        joined = separator.join(grammar.split(record.text))
        assert len(joined) <= len(record.text)
        if '"' not in record.text or separator == "\t":
            assert joined == record.text.rstrip("\r\n")


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from('ab",\né'), max_size=30))
def test_records_both_ways_to_split_agree(text):
    try:
        found = read(text)
    except InputError:
        return
    for record in found:
        if record.is_whole:  # a return keeps the csv module out
            inner = record.text.rstrip("\n")
            fields = COMMA.split(inner.replace("\n", "\r") + ",\r,")
            assert [field.replace("\r", "\n") for field in fields] == [
                *COMMA.split(inner),
                "\n",
                "",
            ]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ROWS = st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=8)


@settings(deadline=None, max_examples=300)
@given(ROWS, st.sampled_from(",;|"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_records_what_a_csv_writer_writes_is_read_back(rows, separator, quoting):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\r\n").writerows(rows)
    grammar = Grammar(separator)
    found = read(file.getvalue(), grammar)
    assert all(record.is_whole for record in found)
    assert [grammar.split(record.text) for record in found] == rows


@pytest.mark.parametrize(
    "text", ['"' * 200_001, '","' * 60_000, '"a""' * 60_000, '"x","y\n' * 60_000, '"\n' * 60_001]
)
def test_records_hostile_quotes_take_linear_time(text):
    began = time.monotonic()
    try:
        for record in read(text):
            COMMA.split(record.text)
    except InputError:
        pass
    assert time.monotonic() - began < 10
