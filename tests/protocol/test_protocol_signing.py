"""A signature holds for one message, one key and one purpose."""

import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfl.protocol import signing
from tf_dpfl.protocol.errors import StateError, TaskError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PURPOSES = (signing.MANIFEST_PURPOSE, signing.REQUEST_PURPOSE)


def verified(message, signature, *, purpose=signing.MANIFEST_PURPOSE, key=KEY):
    public = signing.parse_public_key(signing.public_key_hex(key))
    return signing.is_signed(public, message, signature, purpose=purpose)


@given(st.binary(max_size=50))
def test_a_signature_verifies(message):
    signature = signing.sign(KEY, message, purpose=signing.MANIFEST_PURPOSE)
    assert len(signature) == 128
    assert verified(message, signature)


def test_a_signature_for_one_purpose_is_worthless_for_the_other():
    for made, used in (PURPOSES, PURPOSES[::-1]):
        assert not verified(b"m", signing.sign(KEY, b"m", purpose=made), purpose=used)


def test_no_purpose_is_the_beginning_of_another():
    """Else bytes of the message could be moved into the purpose."""
    first, second = PURPOSES
    assert not first.startswith(second) and not second.startswith(first)
    assert first.endswith(b"\0") and first.count(b"\0") == second.count(b"\0") == 1


@given(st.binary(min_size=1, max_size=30), st.data())
def test_any_changed_bit_breaks_it(message, data):
    signature = bytes.fromhex(signing.sign(KEY, message, purpose=PURPOSES[0]))

    def flipped(raw):
        bit = data.draw(st.integers(0, 8 * len(raw) - 1))
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    assert not verified(flipped(message), signature.hex())
    assert not verified(message, flipped(signature).hex())


def test_another_key_does_not_verify():
    other = Ed25519PrivateKey.generate()
    signature = signing.sign(other, b"m", purpose=PURPOSES[0])
    assert verified(b"m", signature, key=other)
    assert not verified(b"m", signature)


@given(st.text(max_size=140))
def test_no_text_for_a_signature_raises(text):
    assert not verified(b"m", text)


def test_a_public_key_survives_a_trip_through_text():
    text = signing.public_key_hex(KEY)
    assert len(text) == 64
    assert signing.parse_public_key(f" {text}\n").public_bytes_raw().hex() == text


@given(st.text(max_size=70))
def test_no_text_for_a_public_key_raises_anything_but_a_task_error(text):
    try:
        signing.parse_public_key(text)
    except TaskError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33, "g" * 64])
def test_a_malformed_public_key_is_a_task_error(text):
    with pytest.raises(TaskError, match="64 hex digits"):
        signing.parse_public_key(text)


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "device.key"
    key = signing.load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = signing.load_or_create_key(path)
    assert signing.public_key_hex(again) == signing.public_key_hex(key)
    assert signing.public_key_hex(signing.load_or_create_key(tmp_path / "k2")) != (
        signing.public_key_hex(key)
    )


def _pem(key, encryption):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        _pem(KEY, serialization.BestAvailableEncryption(b"secret")),
        _pem(generate_private_key(SECP256R1()), serialization.NoEncryption()),
    ],
    ids=["empty", "text", "broken", "encrypted", "another kind"],
)
def test_a_file_without_an_ed25519_key_is_a_state_error(tmp_path, content):
    path = tmp_path / "device.key"
    path.write_bytes(content)
    with pytest.raises(StateError, match="device.key"):
        signing.load_or_create_key(path)
    assert path.read_bytes() == content  # never overwritten by a fresh one


def test_a_folder_in_the_keys_place_is_a_state_error(tmp_path):
    with pytest.raises(StateError, match="cannot be read"):
        signing.load_or_create_key(tmp_path)


def test_identifiers_are_128_fresh_bits():
    first, second = signing.random_id(), signing.random_id()
    assert first != second and len(first) == len(second) == 32
    int(first, 16)
