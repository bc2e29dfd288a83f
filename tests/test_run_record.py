"""The record of a run under damage, foreign files, links and file systems without locks: other runs remain readable."""

import contextlib
import errno
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings

import pytest
from jax._src import compiler

from lmjax import cli, locks, process, run_record
from lmjax.errors import InputError
from tests.conftest import ROOT, small

RECORD = {
    "run_id": "decoder-1k-1ktok-0123456789",
    "config": {"model": {"family": "decoder"}, "objective": {"name": "causal_lm"}, "data": {}},
    "derived": {"family": "decoder", "n_total": 1000},
    "data": {},
    "objective_version": "1",
}


def write_run(workdir, name="good", status=None, **parts):
    run_dir = workdir / name
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({**RECORD, **parts}))
    (run_dir / "status.json").write_text(json.dumps({"status": "done", **(status or {})}))
    (run_dir / "summary.json").write_text(json.dumps({"loss": 2.0}))
    return run_dir


# -- Locks


def test_a_reader_never_keeps_a_trainer_from_starting(tmp_path):
    """Readers share the lock for a moment to see whether a run is alive; a run started in that moment waits for it."""
    stop = threading.Event()

    def look():
        while not stop.is_set():
            run_record.is_locked(tmp_path)

    with run_record.Lock(tmp_path):
        pass
    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(300):
            with run_record.Lock(tmp_path):
                assert run_record.is_locked(tmp_path) is True
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert run_record.is_locked(tmp_path) is False


def test_a_run_in_use_is_refused_at_once_and_names_its_owner(tmp_path):
    with run_record.Lock(tmp_path):
        began = time.monotonic()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on "), run_record.Lock(tmp_path):
            pass
        assert time.monotonic() - began < 0.5


def test_file_systems_without_locks(tmp_path, monkeypatch, capsys):
    """A run trains with a warning; whether it is alive is then told by its heartbeat."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    run_dir = write_run(tmp_path, status={"status": "running", "heartbeat": time.time(), "host": os.uname().nodename})
    assert run_record.status_of(run_dir)["status"] == "preempted"  # with locks: nobody holds it
    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with run_record.Lock(run_dir):
        assert "has no locks" in capsys.readouterr().err
        assert run_record.is_locked(run_dir) is None
    assert run_record.status_of(run_dir)["status"] == "running"
    (run_dir / "status.json").write_text(json.dumps({"status": "running", "heartbeat": time.time() - 300}))
    assert run_record.status_of(run_dir)["status"] == "preempted"


@pytest.mark.parametrize("ahead", [-300, 300])
def test_a_killed_run_of_a_host_with_a_wrong_clock_does_not_run_for_ever(tmp_path, ahead):
    run_dir = write_run(tmp_path, status={"status": "running", "heartbeat": time.time() + ahead, "host": "elsewhere"})
    assert run_record.status_of(run_dir)["status"] == "preempted"


def test_lock_files_do_not_follow_links(tmp_path):
    """A link planted at the place of a lock must not make the process write to or empty the file it points to."""
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(victim)
    with (
        pytest.raises(InputError, match="expected a lock file, got a symbolic link"),
        run_record.Lock(tmp_path / "run"),
    ):
        pass
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / ".abc.lock").symlink_to(victim)
    with pytest.raises(InputError, match="symbolic link"), locks.built_once(tmp_path / "stores" / "abc"):
        pass
    assert victim.read_text() == "years of work"
    (tmp_path / "other" / "lock").mkdir(parents=True)
    with pytest.raises(InputError, match="expected a lock file, got a directory"), run_record.Lock(tmp_path / "other"):
        pass


def test_a_folder_is_built_once_and_leftovers_of_killed_builders_are_removed(tmp_path):
    (tmp_path / ".corpus.partial-killed").mkdir()
    with locks.built_once(tmp_path / "corpus") as partial:
        assert not (tmp_path / ".corpus.partial-killed").exists()
        (partial / "text").write_text("abc")
    with locks.built_once(tmp_path / "corpus") as partial:
        assert partial is None
    with contextlib.suppress(ZeroDivisionError), locks.built_once(tmp_path / "other"):
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["corpus"]


def test_an_embedded_corpus_cleans_up_after_a_killed_preparation(tmp_path):
    from lmjax.data import tfds_text

    leftover = tmp_path / ".code.partial-killed"
    leftover.mkdir()
    shutil.copy(__file__, leftover)
    key, text = next(tfds_text.embedded("code", tmp_path / "code"))
    assert key and text and not leftover.exists() and not list(tmp_path.glob("*partial*"))


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    run_dir = write_run(tmp_path)
    (run_dir / ".status.json.12345").write_text("{")
    with run_record.Lock(run_dir):
        assert not list(run_dir.glob(".status.json.*"))


# -- Damaged records


DAMAGED = [
    {"config": [1]},
    {"config": {"objective": {}, "data": {}}},  # no model
    {"derived": "x"},
    {"data": None},
    {"run_id": 5},
]


@pytest.mark.parametrize("parts", DAMAGED)
def test_a_malformed_record_leaves_the_other_runs_readable(tmp_path, capsys, parts):
    write_run(tmp_path)
    write_run(tmp_path, "bad", **parts)
    table = run_record.read_runs(tmp_path).set_index("run_id")
    assert table.status.to_dict() == {"good": "done", "bad": "unreadable"}
    assert "bad/config.json: expected JSON objects" in table.message["bad"]
    assert "warning: bad cannot be read" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "unreadable" in capsys.readouterr().out
    with pytest.raises(InputError, match="expected JSON objects"):
        run_record.read_record(tmp_path / "bad")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("status.json", '{"status": "done", "attempts": "x"}', "expected a number for 'attempts', got 'x'"),
        ("status.json", '{"status": "resting"}', "unknown status 'resting'"),
        ("status.json", "[]", "expected a JSON object, got list"),
        ("summary.json", '{"loss": 1.', "is corrupt"),
    ],
)
def test_a_damaged_status_or_summary_is_named_and_leaves_the_other_runs_readable(tmp_path, name, text, message):
    write_run(tmp_path)
    (write_run(tmp_path, "bad") / name).write_text(text)
    table = run_record.read_runs(tmp_path).set_index("run_id")
    assert table.status.to_dict() == {"good": "done", "bad": "unreadable"}
    assert message in table.message["bad"] and name in table.message["bad"]


def test_a_run_removed_while_its_directory_is_read_is_left_out(tmp_path, capsys, monkeypatch):
    """It ended the table of all runs with a KeyError."""
    found = [write_run(tmp_path), tmp_path / "removed"]
    monkeypatch.setattr(run_record, "find_runs", lambda workdir: found)
    assert list(run_record.read_runs(tmp_path).run_id) == ["good"]
    assert "left out" in (said := capsys.readouterr().err) and "removed" in said


def test_a_folder_of_another_program_is_left_out(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    assert list(run_record.read_runs(tmp_path).run_id) == ["good"]
    assert "left out" in capsys.readouterr().err and "gpt2 is not a run" not in capsys.readouterr().out


# -- The process


def test_a_process_ends_at_once_although_threads_of_a_failed_save_are_left(tmp_path):
    """Orbax's threads would keep it, and so its slot in a sweep or a cluster, for five minutes."""
    program = (
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "from lmjax import cli\n"
        "cli.main = lambda: print('said') or 1\n"
        "cli.run()"
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stdout == "said\n" and time.monotonic() - began < 40


def test_a_truncated_compiled_program_is_removed_when_jax_warns_about_it(tmp_path, monkeypatch):
    """JAX never replaces it: every start would warn and compile again."""
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
    for name in ("jit_step-0a1b-cache", "jit_step-0a1b-atime", "jit_stepping-0a1b-cache"):
        (tmp_path / name).write_bytes(b"cut short")
    process._remove_unreadable_programs(tmp_path)
    process._remove_unreadable_programs(tmp_path)  # once is enough
    text = "Error reading persistent compilation cache entry for"
    assert text in inspect.getsource(compiler._cache_read)  # JAX's own words
    warnings.showwarning(f"{text} 'jit_step': ValueError: truncated", UserWarning, "compiler.py", 1)
    warnings.showwarning("something else", UserWarning, "compiler.py", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_stepping-0a1b-cache"]
    assert len(shown) == 2


def test_a_comment_is_not_a_number():
    with pytest.raises(InputError, match="got '5#6'"):
        small(duration__steps="5#6")
