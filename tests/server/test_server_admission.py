"""Who is invited: the sampling that the accounting assumes is the one that happens."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from server_helpers import Device

from server import admission
from server.admission import authenticate, draw_fixed, is_poisson_invited
from tf_dpfl.protocol import wire
from tf_dpfl.protocol.errors import WireError


def test_poisson_sampling_has_the_plans_probability_for_every_device() -> None:
    generator = random.Random(7)
    devices, rounds = [f"{i:032x}" for i in range(20)], 4000
    counts: Counter[str] = Counter()
    cohorts = []
    for _ in range(rounds):
        secret = generator.randbytes(32)
        cohort = [
            d
            for d in devices
            if is_poisson_invited(d, secret=secret, clients_per_round=3, population=20)
        ]
        counts.update(cohort)
        cohorts.append(len(cohort))
    # Five standard deviations of a binomial with q = 0.15.
    tolerance = 5 * (0.15 * 0.85 / rounds) ** 0.5
    for device in devices:
        assert abs(counts[device] / rounds - 0.15) < tolerance
    # Independent coins: the cohort's size varies like a binomial's, not like a fixed draw.
    mean = sum(cohorts) / rounds
    variance = sum((size - mean) ** 2 for size in cohorts) / rounds
    assert abs(variance - 20 * 0.15 * 0.85) < 0.3


def test_poisson_with_probability_one_invites_everybody() -> None:
    for i in range(50):
        assert is_poisson_invited(f"{i:032x}", secret=bytes(32), clients_per_round=9, population=9)


def test_an_invitation_depends_on_the_rounds_secret_alone() -> None:
    def ask(secret: bytes) -> list[bool]:
        return [
            is_poisson_invited(f"{i:032x}", secret=secret, clients_per_round=1, population=2)
            for i in range(64)
        ]

    assert ask(b"a" * 32) == ask(b"a" * 32)
    assert ask(b"a" * 32) != ask(b"b" * 32)


def test_a_token_is_fresh_and_never_reads_as_an_option() -> None:
    tokens = {admission.new_token() for _ in range(300)}
    assert len(tokens) == 300
    for token in tokens:
        assert len(bytes.fromhex(token)) == 16  # "-", as in other encodings, cannot lead it


def test_fixed_draw_has_exactly_the_cohorts_size_and_is_uniform() -> None:
    devices = [f"{i:032x}" for i in range(10)]
    counts: Counter[str] = Counter()
    for seed in range(3000):
        draw = draw_fixed(devices, clients_per_round=4, generator=random.Random(seed))
        assert len(draw) == 4
        counts.update(draw)
    for device in devices:
        assert abs(counts[device] / 3000 - 0.4) < 5 * (0.24 / 3000) ** 0.5
    assert len(draw_fixed(devices, clients_per_round=10)) == 10


def test_a_signature_holds_for_its_device_task_method_path_and_body_only() -> None:
    device, other = Device("task"), Device("task")
    headers = device.headers("PUT", "/v1/rounds/1/update", b"body")

    def ask(headers: dict[str, str], **changes: str) -> tuple[str, str]:
        request = {"task_id": "task", "method": "PUT", "path": "/v1/rounds/1/update", **changes}
        keys = {d.id: d.key.public_key() for d in (device, other)}
        return authenticate(headers, key_of=keys.get, **request)

    assert ask(headers) == (device.id, headers[wire.DIGEST_HEADER])
    for change in ({"task_id": "b"}, {"method": "POST"}, {"path": "/v1/rounds/2/update"}):
        with pytest.raises(WireError) as refusal:
            ask(headers, **change)
        assert refusal.value.status == 401
    for header, value in (
        (wire.DEVICE_HEADER, other.id),
        (wire.DEVICE_HEADER, "0" * 32),
        (wire.DIGEST_HEADER, "0" * 64),
        (wire.SIGNATURE_HEADER, "0" * 128),
    ):
        with pytest.raises(WireError) as refusal:
            ask({**headers, header: value})
        assert refusal.value.status == 401
    for header in (wire.DEVICE_HEADER, wire.DIGEST_HEADER, wire.SIGNATURE_HEADER):
        for value in ("", "x", headers[header].upper() + "A", "é" * 64):
            with pytest.raises(WireError) as refusal:
                ask({**headers, header: value})
            assert refusal.value.status == 400
