"""Files of a store that are damaged, gone or another's: refused in one line, and left untouched."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import lab.sweep.store as store_module
from lab.sweep import final_states, run, sweep
from lab.types import BadInput
from tests.processes import digest, drifting, files

AXES = {"lr": [0.1, 0.2], "seed": range(2)}
SETTINGS = {"steps": 9, "every": 1, "layout": {"width": 2, "blocks": 1, "segment": 4}}


def again(store, axes=AXES, **changed):
    return sweep(drifting, axes, **SETTINGS | changed, store=store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "whole"
    return folder, again(folder)


@pytest.fixture
def store(whole, tmp_path):
    """A copy of a finished store of two dispatches, three segments each."""
    return Path(shutil.copytree(whole[0], tmp_path / "store"))


def flipped(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


FILES = ["manifest.json", "runs.npz", "records/00001/0000000004.npz", "states/00000.npz"]


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_refused_or_changes_nothing(file, store, whole):
    refused = 0
    for bit in range(5, 8 * (store / file).stat().st_size, 1499):
        flipped(store / file, bit)
        before = files(store)
        try:
            assert digest(again(store)) == digest(whole[1])
        except BadInput as error:
            refused += 1
            assert str(error).startswith("store: ") and "\n" not in str(error)
            assert files(store) == before
        flipped(store / file, bit)
    assert refused
    assert digest(again(store)) == digest(whole[1])


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("records/00001/0000000004.npz", r"0000000004\.npz is missing"),
        ("records/00001/0000000009.npz", r"0000000009\.npz is missing"),
        ("records/00000", r"0000000009\.npz is missing"),
        ("records", r"0000000009\.npz is missing"),
        ("manifest.json", "has records but no manifest.json"),
        ("runs.npz", "has states but no runs.npz"),
    ],
)
def test_what_is_missing_is_refused_and_the_rest_left_alone(gone, said, store):
    path = store / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = files(store)
    with pytest.raises(BadInput, match=f"^store: [^\n]*{said}[^\n]*$"):
        again(store)
    assert files(store) == before


def test_a_missing_state_is_computed_anew_to_the_same_bytes(store, whole):
    shutil.rmtree(store / "states")
    assert digest(again(store)) == digest(whole[1])
    assert files(store) == files(whole[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("records/00000/0000000004.npz", "records/00000/0000000008.npz"),
        ("records/00000/0000000008.npz", "records/00001/0000000008.npz"),
    ],
    ids=["of two segments", "of two dispatches"],
)
def test_records_that_are_exchanged_are_refused(one, other, store):
    (store / one).rename(store / "held")
    (store / other).rename(store / one)
    (store / "held").rename(store / other)
    with pytest.raises(BadInput, match="is not what was written there"):
        again(store)


def test_a_state_of_another_dispatch_is_refused(store):
    shutil.copy(store / "states/00000.npz", store / "states/00001.npz")
    for call in (lambda: again(store), lambda: again(store, steps=18)):
        with pytest.raises(BadInput, match=r"00001\.npz belongs to other runs or another store"):
            call()


@pytest.mark.parametrize(
    "other", [{"axes": {"lr": [0.1, 0.2], "seed": [0, 7]}}, {"every": 3}], ids=["runs", "cadence"]
)
def test_a_state_of_another_store_is_refused(other, store, tmp_path):
    again(tmp_path / "other", **other)
    shutil.copy(tmp_path / "other/states/00000.npz", store / "states/00000.npz")
    with pytest.raises(BadInput, match=r"00000\.npz belongs to other runs or another store"):
        again(store)


def test_final_states_of_a_damaged_store_are_refused(store, whole):
    data, like = whole[1].assign_attrs(store=str(store)), jnp.zeros(3)
    np.testing.assert_array_equal(final_states(data, like), data.x.isel(step=-1))
    state = store / "states/00001.npz"
    last = whole[1].x.values.reshape(4, 10, 3)[2, -1]  # the first run of the second dispatch
    flipped(state, 8 * state.read_bytes().index(last.tobytes()) + 3)
    with pytest.raises(BadInput, match=r"00001\.npz is damaged"):
        final_states(data, like)
    shutil.rmtree(store)
    with pytest.raises(BadInput, match="is no store any more"):
        final_states(data, like)


@pytest.mark.parametrize("file", ["runs.npz", "states/00001.npz"])
def test_a_file_written_by_another_hand_is_refused(file, store, whole):
    with np.load(store / file) as held:
        arrays = {name: held[name] for name in held.files}
    name = next(name for name in arrays if name in ("leaf0000", "of/lr"))
    np.savez(store / file, **{**arrays, name: arrays[name] + 1})
    data = whole[1].assign_attrs(store=str(store))
    with pytest.raises(BadInput, match="is damaged"):
        final_states(data, jnp.zeros(3))


def failing(code):
    def fails(*_, **__):
        raise OSError(code, "the disk's own words")

    return fails


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_trouble_in_writing_is_one_line_and_the_same_call_goes_on(
    code, tmp_path, whole, monkeypatch
):
    write, left = store_module._write, iter(range(5))

    def filling(path, content):
        if next(left, None) is None:
            failing(code)()
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_write", filling)
        said = "the disk's own words; what was saved is kept, and the same call goes on"
        with pytest.raises(BadInput, match=f"^store: [^\n]*{said}[^\n]*$"):
            again(tmp_path)
    assert digest(again(tmp_path)) == digest(whole[1])
    assert files(tmp_path) == files(whole[0])


def test_on_a_full_disk_no_half_written_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", failing(errno.ENOSPC))
    with pytest.raises(BadInput, match=r"^store: "):
        again(tmp_path)
    assert not files(tmp_path)


def test_trouble_in_reading_is_one_line(store, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EIO))
    with pytest.raises(BadInput, match=r"^store: [^\n]*the disk's own words[^\n]*$"):
        again(store)


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(BadInput, match=r"^store: [^\n]*File name too long[^\n]*$"):
        again(tmp_path / ("a" * 300))


UNWRITABLE = """
import ctypes, os, sys
from lab.types import BadInput
from tests.processes import digest
from tests.test_damage import again
path = sys.argv[1]
if os.getuid() == 0:  # root without its capabilities may write where its files' modes say so
    none = ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    assert none == 0
assert not os.access(path, os.W_OK)
print(digest(again(path)))
try:
    again(path, steps=18)
except BadInput as error:
    print(error)
"""


def test_a_finished_store_is_read_where_nothing_can_be_written(store, whole):
    paths = [store, *store.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = subprocess.run(
            [sys.executable, "-c", UNWRITABLE, str(store)], capture_output=True, text=True
        )
    finally:
        for path in paths:
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    read, refused = done.stdout.splitlines()
    assert read == digest(whole[1])
    assert refused.startswith("store: ") and "Permission denied" in refused


def test_a_finished_store_compiles_nothing(store, monkeypatch):
    monkeypatch.setattr(run, "program", lambda *_: pytest.fail("compiled"))
    again(store)
