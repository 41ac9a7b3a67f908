"""The codec of a log, without a disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestate.errors import UnsupportedError
from purestate.store._record import EMPTY_HEAD, BadLineError, Record, decode, encode, seal, torn_tail, unseal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(st.text(), VALUES, max_size=4)


def chain(bodies: list[dict]) -> list[Record]:
    records: list[Record] = []
    for body in bodies:
        records.append(encode(len(records), records[-1].digest if records else EMPTY_HEAD, "train", body))
    return records


def text(records: list[Record]) -> bytes:
    return b"".join(record.line + b"\n" for record in records)


SMALL = chain([{"loss": 0.5}, {"loss": 0.25, "best": True}, {}])


@given(st.lists(BODIES, max_size=4))
def test_what_is_encoded_is_decoded(bodies):
    records = chain(bodies)
    found = list(decode(text(records)))
    assert found == records
    assert [record.body for record in found] == bodies
    assert [(record.seq, record.kind) for record in found] == [(i, "train") for i in range(len(bodies))]
    assert [record.prev for record in found] == [EMPTY_HEAD, *(record.digest for record in found)][: len(found)]


def test_the_line_is_the_documented_one():
    assert SMALL[0].line.decode() == (
        '{"digest":"' + SMALL[0].digest + '","prev":"' + "0" * 64 + '","seq":0,"kind":"train","body":{"loss":0.5}}'
    )
    assert SMALL[0].digest == "90dea68aa4de2655c24abdbab94abc3b635e8c2aadc591cb9c318e031e2e27cb"


def test_a_truncated_log_is_a_prefix():
    data = text(SMALL)
    for length in range(len(data) + 1):
        part = data[:length]
        whole = part[: len(part) - torn_tail(part)]
        assert list(decode(whole)) == SMALL[: data[:length].count(b"\n")]


def test_a_flipped_byte_is_noticed_wherever_it_is():
    data = text(SMALL)
    for position in range(len(data)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            whole = bytes(damaged[: len(damaged) - torn_tail(bytes(damaged))])
            if len(whole) < len(damaged):  # only the last line may count as torn
                assert list(decode(whole)) == SMALL[:-1]
                continue
            with pytest.raises(BadLineError) as caught:
                list(decode(whole))
            assert caught.value.number in (1 + data[:position].count(b"\n"), 2 + data[:position].count(b"\n"))


def test_a_flip_before_the_last_line_is_never_a_torn_tail():
    data = text(SMALL)
    for position in range(data.index(SMALL[-1].line)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        with pytest.raises(BadLineError):
            list(decode(bytes(damaged[: len(damaged) - torn_tail(bytes(damaged))])))


@pytest.mark.parametrize(
    "lines",
    [[1, 0, 2], [0, 2], [1, 2], [0, 0, 1, 2], [0, 1, 1, 2], [2]],
    ids=["swapped", "dropped", "beheaded", "doubled first", "doubled", "alone"],
)
def test_lines_that_are_each_whole_must_be_in_their_places(lines):
    with pytest.raises(BadLineError):
        list(decode(text([SMALL[i] for i in lines])))


def test_a_forged_line_breaks_the_next_one():
    forged = encode(1, SMALL[0].digest, "train", {"loss": 0.0})
    with pytest.raises(BadLineError) as caught:
        list(decode(text([SMALL[0], forged, SMALL[2]])))
    assert caught.value.number == 3


def test_a_crash_that_leaves_zeros_leaves_a_torn_tail():
    data = text(SMALL[:2])
    assert torn_tail(data + b"\0" * 50) == 50
    assert torn_tail(data + SMALL[2].line[:9] + b"\0" * 20 + b"}\n") == 31
    assert torn_tail(data) == torn_tail(b"") == 0
    assert torn_tail(b"\0\n") == 2


def test_a_whole_line_whose_newline_changed_is_not_torn():
    assert torn_tail(text(SMALL)[:-1] + b"!") == 0


@pytest.mark.parametrize("body", [{"a": (1,)}, {"a": {1: 2}}, {"a": float("inf")}, {"a": float("nan")}, {"a": object()}, {2: 1}])
def test_a_body_that_json_would_change_is_refused(body):
    with pytest.raises(UnsupportedError, match="body of a record"):
        encode(0, EMPTY_HEAD, "train", body)


@pytest.mark.parametrize("kind", ["", "Train", 'a"', "a b", "1a", "é"])
def test_a_kind_is_a_word(kind):
    with pytest.raises(UnsupportedError, match="kind of a record"):
        encode(0, EMPTY_HEAD, kind, {})


@given(BODIES)
def test_what_is_sealed_is_unsealed(body):
    import json

    line = seal(json.dumps({"body": body}, separators=(",", ":")).encode()[1:])
    assert unseal(line) == {"body": body}
    for position in range(0, len(line), 7):
        damaged = bytearray(line)
        damaged[position] ^= 0x04
        assert unseal(bytes(damaged)) is None


@pytest.mark.parametrize("body", [{"of": 1, "n": 5, "x": 2}, {"of": 1, "n": 5}, {"n": 5, "of": 1}, {"of": 1, "a": 0, "n": 5}])
def test_leading_numbers_are_those_of_the_body(body):
    record = encode(0, EMPTY_HEAD, "epoch", body)
    assert record.leading("of", "n") == (1, 5)
    assert record.body == body
    assert record.leading("of", "n") == (1, 5)
    with pytest.raises(KeyError):
        record.leading("of", "m")
