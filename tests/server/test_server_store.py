"""The durable sum, the store's transitions, and databases that are refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from server_helpers import dyadic

from server import aggregation, enrolments
from server.aggregation import CLOSED, CONFLICT, COUNTED, MOST_PARTIALS, REPEATED, Upload, fold
from server.blobs import BlobStore
from server.rounds import OPEN, Round
from server.store import Computed, Store
from tf_dpfl.protocol.errors import StateError, WireError

SIZE = 5


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "server.sqlite", create=True)
    yield store
    store.close()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def open_round(store: Store, number: int = 1) -> Round:
    round_ = Round(number, 0, OPEN, bytes(32), None, 0.0, 1e12)
    store.open_round(round_)
    return round_


def upload(device: int, vector: np.ndarray, digest: str = "d") -> Upload:
    return Upload(f"{device:032x}", f"{digest}{device}", vector)


def total(store: Store, blobs: BlobStore, number: int = 1) -> np.ndarray:
    return aggregation.total(blobs, store.partials(number), size=SIZE)


def test_the_sum_is_exact_over_many_folds_repeats_and_merges(store, blobs) -> None:
    open_round(store)
    generator = np.random.default_rng(1)
    vectors = [dyadic(generator, SIZE) for _ in range(3 * MOST_PARTIALS + 4)]
    for device, vector in enumerate(vectors):
        again = upload(device // 2, vectors[device // 2])
        outcomes = fold(store, blobs, round_number=1, uploads=[upload(device, vector), again])
        assert outcomes[0] == COUNTED
        assert outcomes[1] == REPEATED
        assert len(store.partials(1)) <= MOST_PARTIALS + 1
    np.testing.assert_array_equal(total(store, blobs), np.sum(vectors, axis=0, dtype=np.float64))
    assert sum(partial.reports for partial in store.partials(1)) == len(vectors)


def test_a_device_counts_once_in_one_fold_and_its_first_bytes_stay(store, blobs) -> None:
    open_round(store)
    one = np.ones(SIZE, np.float32)
    uploads = [upload(1, one), upload(1, one), upload(1, 2 * one, "e"), upload(2, one)]
    outcomes = fold(store, blobs, round_number=1, uploads=uploads)
    assert outcomes == [COUNTED, REPEATED, CONFLICT, COUNTED]
    np.testing.assert_array_equal(total(store, blobs), 2 * one)
    assert fold(store, blobs, round_number=1, uploads=uploads) == [
        REPEATED, REPEATED, CONFLICT, REPEATED,
    ]  # fmt: skip
    np.testing.assert_array_equal(total(store, blobs), 2 * one)


def test_a_round_takes_no_more_than_its_reports(store, blobs) -> None:
    open_round(store)
    one = np.ones(SIZE, np.float32)
    uploads = [upload(device, one) for device in range(4)]
    assert fold(store, blobs, round_number=1, uploads=uploads[:1], most_reports=2) == [COUNTED]
    outcomes = fold(store, blobs, round_number=1, uploads=uploads, most_reports=2)
    assert outcomes == [REPEATED, COUNTED, CLOSED, CLOSED]
    np.testing.assert_array_equal(total(store, blobs), 2 * one)


def test_closed_and_unknown_rounds_take_nothing(store, blobs) -> None:
    open_round(store)
    assert store.charge(1, reports=0, mechanism={})
    for number in (1, 2):
        vector = np.ones(SIZE, np.float32)
        assert fold(store, blobs, round_number=number, uploads=[upload(1, vector)]) == [CLOSED]
        assert store.report_digests(number) == {}


def test_a_crash_before_the_commit_leaves_nothing(store, blobs, monkeypatch) -> None:
    open_round(store)

    def fail(vector: np.ndarray) -> str:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(blobs, "put_vector", fail)
        with pytest.raises(OSError, match="disk full"):
            fold(store, blobs, round_number=1, uploads=[upload(1, np.ones(SIZE, np.float32))])
    assert store.report_digests(1) == {}
    assert store.partials(1) == []


def test_every_transition_happens_once(store, blobs) -> None:
    open_round(store)
    fold(store, blobs, round_number=1, uploads=[upload(1, np.ones(SIZE, np.float32))])
    assert not store.charge(1, reports=0, mechanism={})  # another count than the durable one
    assert not store.abort(1, reports=0, reason="", ends_task=False)
    for _ in range(3):
        assert store.charge(1, reports=1, mechanism={"a": 1})
    assert store.charges() == [{"a": 1}]
    assert store.abort(1, reports=1, reason="too late", ends_task=True)
    assert store.ended() is None
    for model in ("first", "second"):
        store.record_computed(1, Computed(model, "o", {"round": 1}))
    assert store.computed(1).weights_blob == "first"
    assert store.released_rounds() == 0
    for reason in ("one", "two"):
        store.record_released(1, ends_task=reason)
    assert store.released_rounds() == 1
    assert store.ended() == "one"
    assert store.partials(1) == []
    assert store.unfinished_round() is None


def test_an_aborted_round_forgets_its_sum(store, blobs) -> None:
    open_round(store)
    fold(store, blobs, round_number=1, uploads=[upload(1, np.ones(SIZE, np.float32))])
    store.abort(1, reports=1, reason="few", ends_task=False)
    assert store.partials(1) == []
    assert store.charges() == []
    assert store.blobs_in_use() == set()


def test_a_token_admits_one_key(store) -> None:
    enrolments.add_tokens(store, ["t1", "t2", "t3"])

    def enroll(token: str, device: str, population: int = 2) -> None:
        enrolments.enroll(
            store, token_digest=token, device_id=device, public_key=device, population=population
        )

    enroll("t1", "a")
    enroll("t1", "a")
    for token in ("t1", "unknown"):
        with pytest.raises(WireError) as refusal:
            enroll(token, "b")
        assert refusal.value.status == 403
    enroll("t2", "b")
    with pytest.raises(WireError, match="places"):
        enroll("t3", "c")
    assert enrolments.device_keys(store) == {"a": "a", "b": "b"}
    enrolments.add_tokens(store, ["t1"])  # known: stays used
    with pytest.raises(WireError):
        enroll("t1", "c", population=9)


def test_commits_are_durable_and_in_wal_mode(store) -> None:
    with store.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_unusable_databases_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(StateError, match=match):
            Store(path, create=True)

    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database, but long enough to be looked at" * 100)
    refused(garbage, "not a usable database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE things (a)")
    connection.close()
    refused(other, "another program")
    newer = tmp_path / "newer.sqlite"
    Store(newer, create=True).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version=4")
    connection.close()
    refused(newer, "schema version 4")
    damaged = tmp_path / "damaged.sqlite"
    store = Store(damaged, create=True)
    enrolments.add_tokens(store, [f"{i:064x}" for i in range(2000)])
    store.close()
    raw = bytearray(damaged.read_bytes())
    raw[8192:40960] = bytes(40960 - 8192)
    damaged.write_bytes(raw)
    refused(damaged, "database")
    with pytest.raises(StateError, match="no server state"):
        Store(tmp_path / "absent.sqlite", create=False)


def test_a_damaged_blob_is_refused(blobs, tmp_path: Path) -> None:
    name = blobs.put_vector(np.arange(3.0))
    np.testing.assert_array_equal(blobs.get_vector(name, size=3), [0, 1, 2])
    with pytest.raises(StateError):
        blobs.get_vector(name, size=4)
    (tmp_path / "blobs" / name).write_bytes(bytes(24))
    with pytest.raises(StateError, match="damaged"):
        blobs.get(name)
    with pytest.raises(StateError, match="cannot be read"):
        blobs.get("0" * 64)
