"""Whatever arrives is a checked message or a WireError with a status."""

import contextlib
import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfl.protocol import wire
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.tensors import vector_to_bytes

DIGEST = "ab" * 32
TRAIN = wire.Checkin("train", round_number=3, weights_sha256=DIGEST, closes_in_s=9.5)
ADAPTING = replace(TRAIN, clip_norm=0.1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def trip(message):
    raw = json.dumps(message.to_json()).encode()
    return type(message).from_json(wire.parse_json(raw, what="test"))


@pytest.mark.parametrize(
    "message",
    [
        wire.Enrollment(token="12345678", public_key=DIGEST),
        wire.Checkin("done"),
        wire.Checkin("wait", retry_after_s=2.5),
        TRAIN,
        ADAPTING,
    ],
)
def test_messages_survive_the_wire(message):
    assert trip(message) == message


def test_answers_hold_only_what_their_state_needs():
    assert wire.Checkin("done").to_json() == {"state": "done"}
    assert set(wire.Checkin("wait", retry_after_s=1).to_json()) == {"state", "retry_after_s"}
    # Byte for byte what it was before clip norms could adapt.
    assert json.dumps(TRAIN.to_json()) == (
        '{"state": "train", "round_number": 3, "weights_sha256": "' + DIGEST + '", '
        '"closes_in_s": 9.5}'
    )
    assert ADAPTING.to_json() == {**TRAIN.to_json(), "clip_norm": 0.1}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state": st.sampled_from(["train", "wait", "done"]) | JSON,
            "round_number": JSON,
            "weights_sha256": st.just(DIGEST) | JSON,
            "retry_after_s": JSON,
            "closes_in_s": JSON,
            "clip_norm": JSON,
        },
    )
)
def test_no_answer_raises_anything_but_a_wire_error(tree):
    try:
        answer = wire.Checkin.from_json(tree)
    except WireError:
        return
    assert answer.state in ("train", "wait", "done")
    assert math.isfinite(answer.retry_after_s) and math.isfinite(answer.closes_in_s)
    assert trip(answer) == answer


@given(st.fixed_dictionaries({}, optional={"token": JSON, "public_key": JSON}))
def test_no_enrollment_raises_anything_but_a_wire_error(tree):
    with contextlib.suppress(WireError):
        assert trip(wire.Enrollment.from_json(tree)).to_json() == tree


@pytest.mark.parametrize("number", [0, -1, 1.0, True, "1", None, math.nan, 10**400])
def test_a_round_number_is_a_positive_integer(number):
    with pytest.raises(WireError, match="round_number"):
        wire.Checkin.from_json({**TRAIN.to_json(), "round_number": number})


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e9, True, "5", None, 10**400])
def test_a_wait_is_a_finite_time(seconds):
    with pytest.raises(WireError, match="retry_after_s"):
        wire.Checkin.from_json({"state": "wait", "retry_after_s": seconds})


@pytest.mark.parametrize(
    "clip_norm", [0, -1, math.nan, math.inf, -math.inf, 1e38, True, "1", None, 10**400]
)
def test_a_clip_norm_is_a_finite_number_above_zero(clip_norm):
    with pytest.raises(WireError, match="clip_norm"):
        wire.Checkin.from_json({**TRAIN.to_json(), "clip_norm": clip_norm})


@pytest.mark.parametrize("token", ["1234567", "x" * 129, None, 12345678, ["12345678"]])
def test_a_token_has_8_to_128_characters(token):
    with pytest.raises(WireError, match="token"):
        wire.Enrollment.from_json({"token": token, "public_key": DIGEST})


@pytest.mark.parametrize("key", ["", "AB" * 32, "ab" * 31, "zz" * 32, DIGEST + "\n", 5, None])
def test_a_key_is_64_lower_case_hex_digits(key):
    with pytest.raises(WireError, match="public_key"):
        wire.Enrollment.from_json({"token": "12345678", "public_key": key})
    assert not wire.is_hex(key, digits=64)


def test_the_version_must_be_spoken():
    wire.check_version(str(wire.WIRE_VERSION))
    for header in (None, "", "0", "2", "1.0", " 1", "x" * 10_000):
        with pytest.raises(WireError) as caught:
            wire.check_version(header)
        assert caught.value.status == 400 and len(str(caught.value)) < 300


@given(st.binary(max_size=300))
def test_no_json_body_raises_anything_but_a_wire_error(raw):
    try:
        assert isinstance(wire.parse_json(raw, what="body"), dict)
    except WireError as error:
        assert error.status == 400


@pytest.mark.parametrize("raw", [b"[" * 60_000, b"[]", b"null", b"9" * 5000, b'"a"'])
def test_a_body_that_is_no_object_is_refused(raw):
    with pytest.raises(WireError, match="body"):
        wire.parse_json(raw, what="body")


def test_an_oversized_body_is_refused_unread():
    with pytest.raises(WireError) as caught:
        wire.parse_json(b"{" * (wire.LARGEST_JSON_BYTES + 1), what="body")
    assert caught.value.status == 413


def test_signed_requests_differ_in_every_part():
    parts = {"task_id": "t", "method": "GET", "path": "/v1/x", "digest": DIGEST}
    messages = {wire.request_message(**parts)}
    for name in parts:
        messages.add(wire.request_message(**{**parts, name: "other"}))
    assert len(messages) == 5
    assert wire.weights_path(3) != wire.update_path(3) != wire.update_path(4)


def upload(vector):
    raw = vector_to_bytes(vector)
    return raw, hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_an_update_survives_the_wire(kind):
    vector = np.array([1.5, -2.0, 0.0], np.float32)
    raw, digest = upload(vector)
    np.testing.assert_array_equal(wire.decode_update(kind(raw), size=3, digest=digest), vector)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_with_a_value_that_is_no_number_is_refused(bad):
    raw, digest = upload(np.array([0.0, bad], np.float32))
    with pytest.raises(WireError) as caught:
        wire.decode_update(raw, size=2, digest=digest)
    assert caught.value.status == 422


def test_an_update_of_another_length_or_digest_is_refused():
    raw, digest = upload(np.ones(4, np.float32))
    for body, claimed in ((raw[:-1], digest), (raw + b"\0", digest), (raw, DIGEST), (b"", digest)):
        with pytest.raises(WireError) as caught:
            wire.decode_update(body, size=4, digest=claimed)
        assert caught.value.status == 400


def test_a_giant_claimed_size_allocates_nothing():
    """Pitfall 9: a small body that claims to be 15 GiB."""
    with pytest.raises(WireError, match="needs"):
        wire.decode_update(bytes(128), size=4 * 10**9, digest=DIGEST)


@given(st.binary(max_size=64), st.integers(0, 20), st.text(max_size=70))
def test_no_update_raises_anything_but_a_wire_error(raw, size, digest):
    for claimed in (digest, hashlib.sha256(raw).hexdigest()):
        try:
            vector = wire.decode_update(raw, size=size, digest=claimed)
        except WireError:
            continue
        assert vector.shape == (size,) and np.isfinite(vector).all()
