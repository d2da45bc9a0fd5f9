"""Files of states: round trips, crashes, damage, and files made to harm."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import graph, make, normal, refreshed, same

from dgl_dmns.files import read_state, write_arrays, write_state

STATE = {
    "half": normal(3, 2).half(),
    "bfloat": normal(4).bfloat16(),
    ("a", "b", "c"): [1, 2.5, None, True, "word", (torch.zeros(0, 3), {7: float("inf")})],
    "scalar": torch.tensor(3),
}


def test_round_trip(tmp_path: Path) -> None:
    write_state(tmp_path / "state", STATE)
    found = read_state(tmp_path / "state")
    assert same(found, STATE)
    assert found["bfloat"].dtype == torch.bfloat16
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_what_cannot_be_written_is_named_and_leaves_the_file_before(tmp_path: Path) -> None:
    write_state(tmp_path / "state", {"a": 1})
    with pytest.raises(TypeError, match=r"state\['b'\]\[0\]: expected tensors, numbers, .* set"):
        write_state(tmp_path / "state", {"b": [{1, 2}]})
    assert read_state(tmp_path / "state") == {"a": 1}
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_state(tmp_path / "other")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    write_state(path, STATE)
    whole = path.read_bytes()
    if data.draw(st.booleans(), label="cut"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        flip = 1 << data.draw(st.integers(0, 7))
        damaged = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    path.write_bytes(damaged)
    try:
        found = read_state(path)
    except ValueError as error:
        found = str(error)
    if isinstance(found, str):
        assert "not a complete file of a state" in found
    else:  # a bit that carries nothing, such as a date in the archive
        assert same(found, STATE)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_no_code_is_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    pickled = tmp_path / "pickle"
    pickled.write_bytes(pickle.dumps(Harm(str(victim))))
    objects = tmp_path / "objects.npz"
    np.savez(objects, format=np.array([Harm(str(victim))], dtype=object))
    for path in (pickled, objects):
        with pytest.raises(ValueError, match="not a complete file of a state"):
            read_state(path)
    assert not victim.exists()


WRITER = """
import sys, torch
from dgl_dmns.files import write_state
path, version = sys.argv[1], 0
while True:
    version += 1
    write_state(path, {"version": version, "x": torch.full((200_000,), float(version))})
    print(version, flush=True)
"""


def test_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for delay in (1, 3, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(delay):
            done = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = read_state(path)
        assert found["version"] >= done
        assert bool((found["x"] == found["version"]).all())


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "state[1].ckpt"  # with a letter that has a meaning in patterns
    killed = "import os, signal, sys\nfrom dgl_dmns.files import write_state\n"
    killed += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    killed += "write_state(sys.argv[1], {})"
    for place in (path, path, tmp_path / "state1.ckpt"):
        done = subprocess.run([sys.executable, "-c", killed, str(place)], check=False)
        assert done.returncode == -signal.SIGKILL
    first, second = sorted(tmp_path.glob(".state[[]1].ckpt.*.part"))
    (other,) = tmp_path.glob(".state1.ckpt.*.part")
    hours_ago = first.stat().st_mtime - 7200
    for old in (first, other):
        os.utime(old, (hours_ago, hours_ago))
    write_state(path, {"a": 1})
    # The second may still be written to, and the other belongs to another path.
    assert sorted(tmp_path.iterdir()) == sorted([path, second, other])


def test_a_full_disk_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_state(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_state(path, {"a": 2})
    monkeypatch.undo()
    assert read_state(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_file_that_does_not_fit_leaves_the_sampler_as_it_was(tmp_path: Path) -> None:
    sampler = refreshed("dmns", graph())
    before = sampler.state_dict()
    # Made to look right, with less inside, or with other things.
    less = {**before, "table": {"ids": before["table"]["ids"]}, "random": torch.zeros(3)}
    for harm in ({"sampler": "DMNSSampler"}, less):
        write_state(tmp_path / "harm", harm)
        with pytest.raises(ValueError, match="path: not the state of|state: expected a t"):
            sampler.load(tmp_path / "harm")
        assert same(sampler.state_dict(), before)


@pytest.mark.parametrize(
    "harm", ["out of range", "negative", "known edges", "wide ids", "rows", "turns", "version"]
)
def test_a_table_made_to_look_right_is_refused(tmp_path: Path, harm: str) -> None:
    sampler = refreshed("dmns", graph())
    before, state = sampler.state_dict(), sampler.state_dict()
    table = state["table"]
    live = table["ids"][1]
    if harm == "out of range":
        table["ids"][0, 3, 1] = 40
    elif harm == "negative":
        live[0, 0] = -1
    elif harm == "known edges":
        src, dst = graph().edges()
        live[table["start"][src[0]], 0] = dst[0]
    elif harm == "wide ids":
        table["ids"] = table["ids"].long()
    elif harm == "rows":
        table["start"] -= 1
    elif harm == "turns":
        state["asked"] = torch.zeros(3, dtype=torch.uint8)
    else:
        table["counter"].fill_(-2)
    write_state(tmp_path / "harm", state)
    with pytest.raises(ValueError, match="^state: "):
        sampler.load(tmp_path / "harm")
    assert same(sampler.state_dict(), before)


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, {"zeros": torch.zeros(1 << 20)})
    with np.load(path) as archive:
        np.savez_compressed(tmp_path / "bomb.npz", **archive)
    with pytest.raises(ValueError, match="would take .* bytes, more than"):
        read_state(tmp_path / "bomb.npz")


def test_a_file_packed_again_with_another_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, {"x": torch.zeros(5)})
    with np.load(path) as archive:
        arrays = {**archive, "t0": np.ones(5, dtype=np.float32)}
    np.savez(tmp_path / "other.npz", **arrays)  # the archive's own checksums fit
    with pytest.raises(ValueError, match="its checksum does not fit its content"):
        read_state(tmp_path / "other.npz")


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    write_state(inside / "state", {"a": 1})
    with zipfile.ZipFile(inside / "state", "a") as archive:
        archive.writestr("../evil.npy", b"x")
    with pytest.raises(ValueError, match="not a complete file of a state"):
        read_state(inside / "state")
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "state"]


@pytest.mark.parametrize("state", [{}, {"model": 1}, None, [1], "x"])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"^state: .*state_dict"):
        make("dmns", graph()).load_state_dict(state)


class Full(io.FileIO):
    """A file on a disk with room for 200 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 200:
            raise OSError(28, "No space left on device")
        return super().write(data) or 0


def test_a_disk_that_fills_up_is_one_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with Full(tmp_path / "a.npz", "w") as file, pytest.raises(OSError, match=r"No space.*a\.npz"):
        write_arrays(file, {"one": np.zeros(9), "two": np.zeros(900)}, compressed=False)
    gc.collect()
    assert not printed
