"""Guards against ids outside the vocabulary, a stale cache, wrong dtypes and damaged files: each is a clear error."""

import concurrent.futures
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, small

from lmjax import locks
from lmjax.data import dataset, files, pipeline, store, tokenizers
from lmjax.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setenv("LMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(f"Document {i} says: " + "hello world, " * (i + 1))
    return folder


def config_of(text, **overrides):
    return small(data__sources=(f"files:{text}/*.txt",), **overrides)


def only_store(cache) -> pathlib.Path:
    (path,) = (cache / "stores").glob("[!.]*")
    return path


def reseal(path, change):
    """Rewrites a manifest with a valid seal, as a buggy writer would."""
    record = json.loads((path / "manifest.json").read_text())
    change(record["manifest"])
    record["sha256"] = store._manifest_hash(record["manifest"])
    (path / "manifest.json").write_text(json.dumps(record))


def test_layout_and_manifest(cache, text):
    data = pipeline.prepare(config_of(text))
    opened, eos = data.stores[0], data.tokenizer.specials.eos
    texts = sorted(path.read_text() for path in text.iterdir())
    found = []
    for split in ("train", "validation"):
        tokens, offsets = opened.tokens(split), opened.offsets(split)
        assert tokens.dtype == np.uint16 and offsets.dtype == np.int64
        assert (np.flatnonzero(tokens == eos) == offsets).all() and tokens[0] == tokens[-1] == eos
        documents = [tokens[a + 1 : b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        found += [data.tokenizer.decode(ids) for ids in documents]
        sizes = [len(data.tokenizer.decode(ids).encode()) for ids in documents]
        assert opened.document_bytes(split).tolist() == sizes
        assert opened.count(split, "bytes") == sum(sizes)
        assert opened.count(split, "documents") == len(documents) > 0
        assert opened.count(split) == len(tokens)
    assert sorted(found) == texts
    manifest = opened.manifest
    assert manifest["vocab_size"] == data.tokenizer.vocab_size and manifest["max_id"] == eos
    assert manifest["tokenizer"]["hash"] == data.tokenizer.hash
    assert json.loads(json.dumps(data.manifest)) == data.manifest
    for name, facts in manifest["files"].items():
        assert files.file_sha256(opened.path / name) == facts["sha256"]


def test_a_second_prepare_reads_nothing_again(cache, text, monkeypatch):
    first = pipeline.prepare(config_of(text))
    monkeypatch.setattr(files, "read", lambda *_: pytest.fail("the source was read again"))
    second = pipeline.prepare(config_of(text))
    assert second.digest == first.digest and second.manifest == first.manifest


def test_warm_prepare_of_a_corpus_is_fast_and_light():
    """In a new process: no TFDS, no JAX, no tokenizer library, under a second. A cold one needs no TensorFlow."""
    pipeline.prepare(small(data__sources=("kjv",)))
    assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
    script = (
        "import sys, time; from lmjax import config; "
        "c = config.load('configs/default.py', {'data.sources': ('kjv',), 'data.num_sentinels': 8}); "
        "from lmjax.data.dataset import prepare; t = time.perf_counter(); prepare(c); t = time.perf_counter() - t; "
        "names = ('tensorflow_datasets', 'jax', 'tiktoken', 'tokenizers', 'pyarrow', 'tensorflow'); "
        "print(t, *(m for m in names if m in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    warm = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert warm.returncode == 0 and "preparing" not in warm.stderr, warm.stderr
    seconds, *imported = warm.stdout.split()
    assert imported == [] and float(seconds) < 1.0


def test_another_source_tokenizer_or_split_is_another_store(cache, text):
    digests = {pipeline.prepare(config_of(text)).digest}
    paths = [only_store(cache)]
    digests.add(pipeline.prepare(config_of(text, data__validation_fraction=0.3)).digest)
    digests.add(pipeline.prepare(config_of(text, data__num_sentinels=9)).digest)
    digests.add(pipeline.prepare(config_of(text, data__tokenizer="bpe", data__vocab_size=300)).digest)
    (text / "00.txt").write_text("another text")
    digests.add(pipeline.prepare(config_of(text)).digest)
    (text / "99.txt").write_text("one more document")
    digests.add(pipeline.prepare(config_of(text)).digest)
    assert len(digests) == 6
    assert len(list((cache / "stores").glob("[!.]*"))) == 6 and paths[0].is_dir()


def test_content_decides_not_names_or_times(cache, text):
    """A touched file is the same data, a copied folder too; an edit that keeps the size is not."""
    digest = pipeline.prepare(config_of(text)).digest
    os.utime(text / "01.txt", (1, 1))
    assert pipeline.prepare(config_of(text)).digest == digest
    copy = text.parent / "copy"
    copy.mkdir()
    for path in text.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert pipeline.prepare(config_of(copy)).digest == digest
    assert len(list((cache / "stores").glob("[!.]*"))) == 1
    swapped = (text / "02.txt").read_text().replace("hello", "jello")
    (text / "02.txt").write_text(swapped)
    assert pipeline.prepare(config_of(text)).digest != digest


@pytest.mark.parametrize("name", ["train.tokens", "validation.tokens", "train.offsets.npy", "train.bytes.npy"])
@pytest.mark.parametrize("fault", ["truncated", "changed", "missing", "longer"])
def test_damaged_files_are_named_with_the_remedy(cache, text, name, fault):
    pipeline.prepare(config_of(text))
    path = only_store(cache)
    raw = (path / name).read_bytes()
    if fault == "truncated":
        (path / name).write_bytes(raw[:-2])
    elif fault == "longer":
        (path / name).write_bytes(raw + b"\0\0")
    elif fault == "changed":
        (path / name).write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    else:
        (path / name).unlink()
    with pytest.raises(InputError) as caught:
        pipeline.prepare(config_of(text))
    assert name in str(caught.value) and f"delete the folder {path}" in str(caught.value)
    assert any(name in row["error"] for row in store.list_stores())
    for file in path.iterdir():  # the remedy works
        file.unlink()
    path.rmdir()
    pipeline.prepare(config_of(text))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"manifest": {}, "sha256": "0"}', '{"sha256": "0"}'])
def test_damaged_manifests(cache, text, content):
    pipeline.prepare(config_of(text))
    (only_store(cache) / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json.*delete the folder"):
        pipeline.prepare(config_of(text))


def test_an_edited_manifest(cache, text):
    pipeline.prepare(config_of(text))
    manifest = only_store(cache) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents": 2', '"documents": 3'))
    with pytest.raises(InputError, match="was changed after it was written"):
        pipeline.prepare(config_of(text))


def test_ids_outside_the_vocabulary_other_formats_and_other_tokenizers(cache, text):
    data = pipeline.prepare(config_of(text))
    path = only_store(cache)
    reseal(path, lambda manifest: manifest.update(max_id=data.tokenizer.vocab_size))
    with pytest.raises(InputError, match=f"holds id {data.tokenizer.vocab_size}, its vocabulary has"):
        store.open_store(path, data.tokenizer)
    reseal(path, lambda manifest: manifest.update(max_id=1, format=99))
    with pytest.raises(InputError, match="expected store format 1, got 99"):
        store.open_store(path, data.tokenizer)
    reseal(path, lambda manifest: manifest.update(format=store.FORMAT))
    with pytest.raises(InputError, match="another tokenizer"):
        store.open_store(path, tokenizers.Bytes(99))
    reseal(path, lambda manifest: manifest.update(dtype="uint32"))
    with pytest.raises(InputError, match="size and token count disagree"):
        store.open_store(path, data.tokenizer)


def test_the_first_id_too_many_is_refused_before_step_0(cache, text):
    data = pipeline.prepare(config_of(text))
    with pytest.raises(InputError, match="model.vocab_size"):
        dataset.check_vocabulary(data, data.tokenizer.vocab_size - 1)


def test_large_vocabularies_use_four_bytes(cache, text):
    data = pipeline.prepare(config_of(text, data__num_sentinels=70_000))
    assert data.stores[0].tokens("train").dtype == np.uint32
    assert data.tokenizer.decode(data.stores[0].tokens("train")[:3]).startswith("<eos>")


INTERRUPT = """
import os, sys
from lmjax import config
from lmjax import locks
from lmjax.data import store
from lmjax.data.dataset import prepare
if sys.argv[3] == "before the manifest":
    store._file_facts = lambda path: os._exit(9)
else:
    locks._rename = lambda partial, folder: os._exit(9)
prepare(config.load("configs/default.py", {"data.sources": (sys.argv[1],), "data.seq_len": 16}))
"""


@pytest.mark.parametrize("when", ["before the manifest", "before the rename"])
def test_an_interrupted_build_is_never_taken_for_a_finished_one(cache, text, when):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    source = f"files:{text}/*.txt"
    killed = subprocess.run([sys.executable, "-c", INTERRUPT, source, "", when], cwd=ROOT, env=environment)
    assert killed.returncode == 9
    assert list((cache / "stores").glob(".*.partial-*")) and not list((cache / "stores").glob("[!.]*"))
    assert store.list_stores() == []
    pipeline.prepare(small(data__sources=(source,), data__num_sentinels=32))
    assert not list((cache / "stores").glob(".*.partial-*"))
    store.open_store(only_store(cache))


def test_a_full_disk_leaves_nothing_behind(cache, text, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store._SplitWriter, "add", full)
        with pytest.raises(InputError, match=r"No space left on device.*LMJAX_CACHE"):
            pipeline.prepare(config_of(text))
    assert store.list_stores() == [] and not list((cache / "stores").glob(".*.partial-*"))
    pipeline.prepare(config_of(text))


def test_an_unwritable_cache(text, monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE", str(text / "00.txt" / "cache"))
    with pytest.raises(InputError, match="LMJAX_CACHE"):
        pipeline.prepare(config_of(text))


def test_file_systems_without_locks(cache, text, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "locks not supported")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    assert pipeline.prepare(config_of(text)).digest == pipeline.prepare(config_of(text)).digest


def test_losing_the_race_uses_the_winners_store(cache, text, monkeypatch):
    """Without locks, two builders finish; the second finds the first's folder in its way and takes it."""
    rename = locks._rename

    def late(partial, folder):
        shutil.copytree(partial, folder)  # the winner's
        rename(partial, folder)

    monkeypatch.setattr(locks, "_rename", late)
    pipeline.prepare(config_of(text))
    assert store.open_store(only_store(cache))


def test_few_documents_still_leave_one_to_hold_out(cache, tmp_path):
    """2 % of three documents is none: the nearest one is held out, always the same."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    config = small(data__sources=(f"files:{tmp_path}/*.txt",))
    data = pipeline.prepare(config)
    assert [data.stores[0].count(split, "documents") for split in store.SPLITS] == [2, 1]


def test_held_out_share_and_stability_under_growth(cache, tmp_path):
    """Adding text moves no document from one split to the other."""
    held_out = []
    for count in (400, 800):
        lines = (json.dumps({"text": f"document {i}"}) + "\n" for i in range(count))
        (tmp_path / "a.jsonl").write_text("".join(lines))
        config = small(data__sources=(f"files:{tmp_path}/a.jsonl",), data__validation_fraction=0.1)
        opened = pipeline.prepare(config).stores[0]
        tokens, offsets = opened.tokens("validation"), opened.offsets("validation")
        held_out.append({bytes(tokens[a + 1 : b].tolist()) for a, b in zip(offsets[:-1], offsets[1:], strict=True)})
    assert held_out[0] < held_out[1]
    assert 0.06 < len(held_out[1]) / 800 < 0.15


@pytest.fixture
def large(cache, text, monkeypatch):
    """A store of which all files count as large, and as settled; the names of the files that are hashed."""
    pipeline.prepare(config_of(text))
    monkeypatch.setattr(store, "_ALWAYS_HASHED", 0)
    monkeypatch.setattr(store, "_SETTLED", -60)
    hashed, real = [], files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda file: hashed.append(file.name) or real(file))
    return only_store(cache), hashed


def test_large_files_are_hashed_again_only_when_touched(large, monkeypatch):
    """Not even by a copy that keeps size and time, which has another inode; and not if they have just been written."""
    path, hashed = large
    store.open_store(path)  # leaves the stamps
    (path / "train.offsets.npy.checked").write_bytes(b"\xff torn")
    for expected in ([*store._FILES], ["train.offsets.npy"], []):
        assert sorted(hashed) == sorted(expected)
        hashed.clear()
        store.open_store(path)
    os.utime(path / "train.tokens", (1, 1))
    shutil.copy2(path / "train.bytes.npy", path.parent / "copy")
    (path.parent / "copy").rename(path / "train.bytes.npy")
    monkeypatch.setattr(store, "_SETTLED", 60)
    for _ in range(2):
        store.open_store(path)
        assert sorted(hashed) == ["train.bytes.npy", "train.tokens"]
        hashed.clear()


@pytest.mark.parametrize("fault", ["changed, same size and time", "not writable", "a link"])
def test_a_stamp_never_hides_damage(large, tmp_path, monkeypatch, fault):
    """Whatever the stamp says of the file before, or if there can be none."""
    path, _ = large
    store.open_store(path)
    file, stamp = path / "train.tokens", path / "train.tokens.checked"
    raw, before = file.read_bytes(), file.stat()
    file.write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size == before.st_size
    if fault == "not writable":
        monkeypatch.setattr(locks, "open_lock", lambda _: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    elif fault == "a link":
        (tmp_path / "thesis").write_text("mine")
        stamp.unlink()
        stamp.symlink_to(tmp_path / "thesis")
    with pytest.raises(InputError, match="a symbolic link" if fault == "a link" else r"train\.tokens: its content has"):
        store.open_store(path)
    assert fault != "a link" or (tmp_path / "thesis").read_text() == "mine"


def test_of_many_processes_that_start_at_once_one_hashes(large, monkeypatch):
    """The others wait for it: as many reads of a large store over a network take minutes."""
    path, hashed = large
    hash_file = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda file: time.sleep(0.02) or hash_file(file))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # a lock file belongs to who opened it, process or thread
        assert len(list(pool.map(store.open_store, [path] * 4))) == 4
    assert sorted(hashed) == sorted(store._FILES)


def test_list_stores(cache, text):
    pipeline.prepare(config_of(text))
    pipeline.prepare(small(data__sources=("copy:3000",)))
    rows = {row["name"]: row for row in store.list_stores()}
    assert set(rows) == {f"files:{text}/*.txt", "copy:3000"}
    row = rows[f"files:{text}/*.txt"]
    assert row["documents"] == 30 and row["tokenizer"] == "bytes" and not row["error"]
    assert row["tokens"] == row["bytes"] + 32  # an eos per document and one more per split
    assert row["size"] > 2 * row["tokens"] and row["path"].endswith(row["digest"])


def test_a_damaged_trained_tokenizer(cache, text):
    config = config_of(text, data__tokenizer="bpe", data__vocab_size=300)
    pipeline.prepare(config)
    (folder,) = (cache / "tokenizers").glob("[!.]*")
    artefact = folder / "tokenizer.json"
    artefact.write_text(artefact.read_text().replace('"h"', '"\u0120h"', 1))
    with pytest.raises(InputError, match="tokenizer"):
        pipeline.prepare(config)


def test_a_tokenizer_file_of_ones_own(cache, text, tmp_path):
    texts = [path.read_text() for path in sorted(text.iterdir())]
    tokenizers.train_bpe(texts, 320, 4).save(tmp_path / "mine")
    config = config_of(text, data__tokenizer=str(tmp_path / "mine" / "tokenizer.json"))
    data = pipeline.prepare(config)
    assert data.tokenizer.name == "bpe" and data.manifest["vocab_size"] == data.tokenizer.vocab_size
    found = sorted(
        data.tokenizer.decode(opened.tokens(split)[a + 1 : b])
        for opened in data.stores
        for split in store.SPLITS
        for a, b in zip(opened.offsets(split)[:-1], opened.offsets(split)[1:], strict=True)
    )
    assert found == sorted(texts)
    with pytest.raises(InputError, match="data.tokenizer"):
        pipeline.prepare(config_of(text, data__tokenizer="bite"))


def test_the_trained_tokenizer_has_not_seen_held_out_text(cache, tmp_path):
    lines = [json.dumps({"text": f"document {i} plain words and more words"}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = dataset.sources.resolve(f"files:{tmp_path}/a.jsonl", "text", 0, cache)
    trained = list(dataset._training_texts([source], 0.2))
    held_out = [
        text
        for split, _, text in store.split_documents(source, store.split_bound(source, 0.2))
        if split == "validation"
    ]
    assert held_out and not set(trained) & set(held_out)
    assert len(trained) + len(held_out) == 300
