"""A manifest is read only when it is signed, whole and without contradiction."""

import json
import math
from copy import deepcopy
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol import manifest as m
from tf_dpfl.protocol.errors import PlanError, TaskError
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.plan import plan_from_dict
from tf_dpfl.protocol.signing import REQUEST_PURPOSE, public_key_hex, random_id, sign
from tf_dpfl.protocol.tensors import TensorLayout

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
LAYOUT = TensorLayout(("kernel", "bias"), ((3, 2), (2,)))
MANIFEST = m.Manifest(
    task_id=random_id(),
    plan=plan_from_dict(plan_tree()),
    layout=LAYOUT,
    interface=ExampleInterface(
        (ExampleTensor("x", "float32", (8, 8, 1)),),
        ExampleTensor("y", "int32", ()),
        output_shape=(10,),
    ),
    files={
        m.CLIENT_FILE: m.FileDigest.of(b"client"),
        m.WEIGHTS_FILE: m.FileDigest.of(bytes(LAYOUT.nbytes)),
        m.KERAS_FILE: m.FileDigest.of(b"keras"),
    },
    valid_from_s=1_000,
    valid_until_s=2_000,
    central_epsilon=3.5,
    prior_spending=({"kind": "gaussian_rounds", "rounds": 3},),
)
RAW = m.manifest_to_bytes(MANIFEST)


def verify(raw, signature=None, key=KEY):
    signature = m.sign_manifest(KEY, raw) if signature is None else signature
    return m.verify_manifest(raw, signature, public_key=public_key_hex(key))


def changed(*path, to):
    """The manifest's JSON with the entry at `path` replaced."""
    tree = json.loads(RAW)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return json.dumps(tree).encode()


def removed(*path):
    tree = json.loads(RAW)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(tree).encode()


def test_a_manifest_survives_signing_and_reading():
    assert verify(RAW) == MANIFEST
    assert m.manifest_to_bytes(verify(RAW)) == RAW


def test_no_claim_and_no_noise_survive_too():
    bare = replace(
        MANIFEST,
        central_epsilon=None,
        prior_spending=(),
        plan=plan_from_dict(plan_tree(privacy={"noise_multiplier": 0})),
    )
    assert verify(m.manifest_to_bytes(bare)) == bare


def example_manifest(**changes):
    plan = plan_from_dict(plan_tree(privacy={"unit": "example"}))
    method = m.DpMethod("loop", "layer 'mix' has no sound rule")
    return replace(MANIFEST, **{"plan": plan, "dp_method": method, **changes})


def test_a_manifest_of_examples_says_how_each_is_clipped_and_why():
    manifest = example_manifest()
    assert verify(m.manifest_to_bytes(manifest)) == manifest


@pytest.mark.parametrize(
    "method",
    [None, m.DpMethod("two_pass", "faster"), m.DpMethod("loop", 3)],
    ids=["missing", "unknown", "no reason"],
)
def test_another_way_of_clipping_is_refused(method):
    with pytest.raises(TaskError, match="dp_method"):
        verify(m.manifest_to_bytes(example_manifest(dp_method=method)))


@pytest.mark.parametrize("value", [[], "loop", 1, {}, {"name": "loop"}])
def test_a_malformed_way_of_clipping_is_refused(value):
    tree = json.loads(m.manifest_to_bytes(example_manifest()))
    tree["dp_method"] = value
    with pytest.raises(TaskError, match="dp_method|malformed"):
        verify(json.dumps(tree).encode())


def test_a_user_level_task_has_no_way_of_clipping_examples():
    method = m.DpMethod("loop", "why not")
    with pytest.raises(TaskError, match="dp_method.*does not fit"):
        verify(m.manifest_to_bytes(replace(MANIFEST, dp_method=method)))


def test_a_plan_built_with_integers_for_reals_is_readable():
    privacy = replace(MANIFEST.plan.privacy, clip_norm=1)
    raw = m.manifest_to_bytes(replace(MANIFEST, plan=replace(MANIFEST.plan, privacy=privacy)))
    assert verify(raw).plan.privacy.clip_norm == 1.0


def test_an_uncalibrated_plan_is_never_signed_or_read():
    tree = plan_tree(privacy={"noise_multiplier": None, "target_epsilon": 1.0})
    with pytest.raises(PlanError, match="calibrate_plan"):
        m.manifest_to_bytes(replace(MANIFEST, plan=plan_from_dict(tree)))
    with pytest.raises(TaskError, match="calibrate_plan"):
        verify(changed("plan", to=tree))


@pytest.mark.parametrize("position", range(0, len(RAW), 97))
def test_any_changed_byte_breaks_the_signature(position):
    tampered = bytearray(RAW)
    tampered[position] ^= 1
    with pytest.raises(TaskError, match="signature"):
        verify(bytes(tampered), m.sign_manifest(KEY, RAW))


def test_another_key_another_purpose_and_no_signature_are_refused():
    other = Ed25519PrivateKey.generate()
    for signature in (
        m.sign_manifest(other, RAW),
        sign(KEY, RAW, purpose=REQUEST_PURPOSE),
        "",
        "x",
    ):
        with pytest.raises(TaskError, match="signature"):
            verify(RAW, signature)
    with pytest.raises(TaskError, match="signature"):
        verify(RAW, key=other)
    with pytest.raises(TaskError, match="public key"):
        m.verify_manifest(RAW, m.sign_manifest(KEY, RAW), public_key="00")


def test_an_oversized_manifest_is_refused_before_it_is_looked_at():
    raw = b" " * (m.LARGEST_MANIFEST_BYTES + 1)
    with pytest.raises(TaskError, match="more than the"):
        m.verify_manifest(raw, "", public_key="")


@pytest.mark.parametrize("version", [None, 0, 1, 3, "2", 2.0, True, [2]])
def test_another_version_is_refused(version):
    with pytest.raises(TaskError, match="version"):
        verify(changed("version", to=version))


@pytest.mark.parametrize(
    "path",
    [
        *((key,) for key in json.loads(RAW)),
        ("privacy", "central_epsilon"),
        ("privacy", "noise_multiplier"),
        ("files", "client.tflite"),
        ("files", "weights.bin", "size"),
        ("files", "weights.bin", "sha256"),
        ("plan", "privacy"),
        ("layout", 0, "shape"),
    ],
    ids=str,
)
def test_every_entry_is_needed(path):
    with pytest.raises(TaskError):
        verify(removed(*path))


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("task_id",), ["", "../../etc", "a/b", "a\nb", ".hidden", "x" * 129, 7, None]),
        (("interface",), [None, [], {}, "x", {"inputs": []}]),
        (("interface", "inputs"), [[], None, "x", [None], [{"name": "y"}]]),
        (("interface", "inputs", 0, "name"), ["", "y", 3, None]),
        (("interface", "inputs", 0, "dtype"), ["float64", "", None, 3, []]),
        (("interface", "inputs", 0, "shape"), [[0], [1.5], [True], "88", 8, None, {"a": 1}]),
        (("interface", "target", "name"), ["x", "z", None]),
        (("interface", "output_shape"), [[0], [-1], [1.0], [True], 10, None, [10**400]]),
        (("interface", "random_values"), [-1, 1.0, True, "3", None, 10**400]),
        (("valid_from_s",), [0, -5, 1.5, True, None, 2000, 10**400]),
        (("valid_until_s",), [0, 999, 1000, "2000", None]),
        (("files", "client.tflite"), [None, 3, [], {}]),
        (("files", "client.tflite", "size"), [0, -1, 1.0, True, "6", 10**400]),
        (("files", "client.tflite", "sha256"), ["", "0" * 63, "A" * 64, "g" * 64, 5, None]),
        (("files", "weights.bin", "size"), [31, 33]),
        (("privacy", "central_epsilon"), [-1, "3", True, [], 10**400]),
        (("prior_spending",), [None, 3, [3], [[["a", 1]]], [None], ["ab"]]),
        (("layout",), [[], None, [{"name": "a", "shape": [10**400]}]]),
        (("plan",), [None, [], 3, "plan", {}]),
    ],
    ids=str,
)
def test_malformed_values_are_task_errors(path, values):
    for value in values:
        with pytest.raises(TaskError) as caught:
            verify(changed(*path, to=value))
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_claim_of_no_number_is_refused(text):
    raw = RAW.replace(b'"central_epsilon":3.5', b'"central_epsilon":' + text.encode())
    assert raw != RAW
    with pytest.raises(TaskError):
        verify(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [("noise_multiplier", 9.0), ("noise", "server"), ("clip_norm", 0.1), ("delta", 1e-9)],
)
def test_a_summary_that_contradicts_the_plan_is_refused(key, value):
    with pytest.raises(TaskError, match="contradicts its plan"):
        verify(changed("privacy", key, to=value))


def test_a_local_target_is_told_to_readers_that_know_no_plans():
    asking = {"noise_multiplier": 900.0, "target_local_epsilon": 8.0}
    plan = plan_from_dict(plan_tree(privacy=asking, tuning={"how": "as ever", "data": "public"}))
    raw = m.manifest_to_bytes(replace(MANIFEST, plan=plan))
    assert verify(raw).plan == plan
    assert json.loads(raw)["privacy"]["target_local_epsilon"] == 8.0
    assert "target_local_epsilon" not in json.loads(RAW)["privacy"]  # nor in older tasks
    tree = json.loads(raw)
    tree["privacy"]["target_local_epsilon"] = 4.0
    with pytest.raises(TaskError, match="contradicts its plan"):
        verify(json.dumps(tree).encode())


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"1", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a":NaN}'],
)
def test_what_is_no_manifest_is_a_task_error(raw):
    with pytest.raises(TaskError):
        verify(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _paths(tree, prefix=()):
    yield prefix
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from _paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


@settings(max_examples=300)
@given(path=st.sampled_from([p for p in _paths(json.loads(RAW)) if p]), value=JSON)
def test_no_entry_raises_anything_but_a_task_error(path, value):
    raw = changed(*path, to=deepcopy(value))
    try:
        manifest = verify(raw)
    except TaskError:
        return
    # Whatever is accepted can be written again: no NaN, no infinity got in.
    assert verify(m.manifest_to_bytes(manifest)) == manifest


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_task_error(raw):
    with pytest.raises(TaskError):
        verify(raw)


@pytest.mark.parametrize(
    ("now", "valid"), [(999, False), (1000, True), (1999.9, True), (2000, False)]
)
def test_validity_is_half_open(now, valid):
    if valid:
        MANIFEST.check_validity(now)
    else:
        with pytest.raises(TaskError, match="the task"):
            MANIFEST.check_validity(now)


def test_a_clock_without_a_time_is_never_valid():
    with pytest.raises(TaskError):
        MANIFEST.check_validity(math.nan)


def test_a_files_size_and_digest_are_both_checked():
    digest = m.FileDigest.of(b"abc")
    digest.check("f", b"abc")
    with pytest.raises(TaskError, match="4 bytes"):
        digest.check("f", b"abcd")
    with pytest.raises(TaskError, match="SHA-256"):
        digest.check("f", b"abd")


def test_a_manifest_says_once_more_that_noise_is_correlated():
    """For readers that do not know plans; where it is not, older tasks stay as they are."""
    assert "mechanism" not in json.loads(RAW)["privacy"]
    privacy = {"noise": "server", "mechanism": "banded"}
    tree = plan_tree(clients={"sampling": "min_separation"}, privacy=privacy)
    correlated = replace(MANIFEST, plan=plan_from_dict(tree))
    raw = m.manifest_to_bytes(correlated)
    assert json.loads(raw)["privacy"]["mechanism"] == "banded"
    assert verify(raw) == correlated


def test_a_manifest_says_once_more_that_the_clip_norm_adapts():
    assert not {"adaptive_clipping", "clip_count_stddev"} & json.loads(RAW)["privacy"].keys()
    plan = plan_from_dict(plan_tree(privacy={"adaptive_clipping": True}))
    adapting = replace(MANIFEST, plan=plan)
    raw = m.manifest_to_bytes(adapting)
    tree = json.loads(raw)
    assert tree["privacy"]["adaptive_clipping"] is True
    assert tree["privacy"]["clip_count_stddev"] == 2.5
    assert verify(raw) == adapting
    del tree["privacy"]["adaptive_clipping"]
    with pytest.raises(TaskError, match="contradicts its plan"):
        m.parse_manifest(json.dumps(tree).encode())


@pytest.mark.parametrize("clipping", ["per_layer", "value"])
def test_a_manifest_says_once_more_that_updates_are_clipped_in_parts(clipping):
    """An older reader knows no such key of a plan, and refuses the task."""
    assert "clipping" not in json.loads(RAW)["privacy"]
    parts = replace(MANIFEST, plan=plan_from_dict(plan_tree(privacy={"clipping": clipping})))
    raw = m.manifest_to_bytes(parts)
    tree = json.loads(raw)
    assert tree["privacy"]["clipping"] == tree["plan"]["privacy"]["clipping"] == clipping
    assert verify(raw) == parts
    del tree["privacy"]["clipping"]
    with pytest.raises(TaskError, match="contradicts its plan"):
        m.parse_manifest(json.dumps(tree).encode())
