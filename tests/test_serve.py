"""Guards against a live page that shows other numbers than the records, that writes, leaks to a website, or is slow."""

import html
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from lmjax import cli, run_record
from lmjax.errors import InputError
from lmjax.format import number
from lmjax.sweeps import board as boards
from lmjax.sweeps import livepage, serve
from lmjax.sweeps import run as sweep_run
from tests.test_analysis import PLANTED, planted_loss, write_run
from tests.test_sweep import write_sweep

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
EVIL = "x<img src=x onerror=alert(1)>'&"


@pytest.fixture
def workdir(tmp_path):
    """12 finished runs on a planted law, a held-out one, and one of each other status."""
    for N in (20_000, 60_000, 200_000, 600_000):
        for D in (200_000, 1_000_000, 5_000_000):
            write_run(tmp_path / "runs", N, D)
    write_run(tmp_path / "runs", 2_000_000, 10_000_000, held_out=True)
    write_run(tmp_path / "runs", 900_000, 5_000_000, status="diverged")
    (tmp_path / "runs" / EVIL).mkdir()
    facts = {"n_total": 777, "tokens": 888, "flops_exact": 1e12, "steps": 100, "flops_per_step": 1e10}
    record = {"run_id": EVIL, "config": {"model": {}, "objective": {}, "data": {}}, "derived": facts}
    run_record.write_json(tmp_path / "runs" / EVIL / "config.json", record)
    now = {"step": 40, "loss": 3.25, "tokens_per_second": 12e3, "eta_seconds": 90.0, "flops_per_second": 2e9}
    alive = {"status": "running", "host": "elsewhere", "heartbeat": time.time(), **now}
    run_record.write_json(tmp_path / "runs" / EVIL / "status.json", alive)
    (tmp_path / "runs" / EVIL / "log.txt").write_text("one\n<script>two</script>\n")
    torn = write_run(tmp_path / "runs", 7_000, 5_000, status="failed")
    (torn / "status.json").write_text("{")
    return tmp_path / "runs"


@pytest.fixture
def address(workdir):
    with serve.served(workdir, free_port()) as address:
        yield address


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(address, path=""):
    with urllib.request.urlopen(address + path, timeout=20) as answer:
        return answer.read().decode()


def ask(address, path="/", method="GET", host=None):
    """(status, headers, body) of a request whose path and Host are sent as they are."""
    where = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(where, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for value in [where] if host is None else [host] if host else []:
        connection.putheader("Host", value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read().decode()
    connection.close()
    return found


def settled(address):
    """The content of the page once its law is fitted."""
    for _ in range(200):
        if "(fitting)" not in (page := get(address, "?part")) and "fitting the finished" not in page:
            return page
        time.sleep(0.1)
    raise AssertionError(f"no fit after 20 s: {page[:2000]}")


def table_rows(page):
    """{run: its cells as text} of the table of cells."""
    found = {}
    for line in re.findall(r"<tr class=\w+>.*?</tr>", page):
        cells = [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?</td>", line)]
        found[html.unescape(re.search(r"title='(.*?)'", line)[1])] = cells
    return found


def test_the_page_says_what_the_records_say(workdir, address):
    page = settled(address)
    rows = table_rows(page)
    assert set(rows) == {path.name for path in workdir.iterdir()}
    done = rows["decoder-20000-200000"]
    assert done[1:9] == ["done", "", "20k", "200k", "2.8e10", "100/100", "", f"{planted_loss(20_000, 200_000):.4f}"]
    assert rows["decoder-2000000-10000000"][0].endswith("(held out)")
    assert rows[EVIL][1:] == ["running", "", "777", "888", "1e12", "40/100", "3.2500", "", "12k", "1m30s", ""]
    assert rows["decoder-900000-5000000"][1] == "diverged" and rows["decoder-7000-5000"][1] == "unreadable"
    assert "status.json is corrupt" in rows["decoder-7000-5000"][-1]
    assert list(rows)[:3] == [EVIL, "decoder-900000-5000000", "decoder-7000-5000"]  # what needs attention
    for words in ("<b>13</b> done", "<b>1</b> running", "<b>1</b> diverged", "<b>1</b> unreadable"):
        assert words in page
    # the law of the 12 finished runs that are not held out, and the fits of fewer
    stages = re.findall(r"<tr><td>(\d+)</td>((?:<td>[\d.e-]+</td>)+)</tr>", page)
    assert [int(size) for size, _ in stages] == [6, 7, 8, 10, 11, 12][-len(stages) :]
    assert re.findall(r"<td>(.*?)</td>", stages[-1][1]) == [number(value) for value in PLANTED.values()]
    assert "The one held-out run (up to" in page and page.count("<polyline") == 14 + 5


def test_a_run_has_a_page_with_the_end_of_its_log(address):
    page = get(address, "run/" + urllib.request.quote(EVIL))
    assert "&lt;script&gt;two&lt;/script&gt;" in page and "40 of 100" in page
    assert "<polyline" in get(address, "run/decoder-900000-5000000")


def test_nothing_in_a_record_becomes_html(address):
    for path in ("", "run/" + urllib.request.quote(EVIL)):
        page = get(address, path)
        assert "<img" not in page and "<script>alert" not in page and "<script>two" not in page
        assert html.escape(EVIL) in page and page.count("<script>") == 1
    policy = ask(address)[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_only_get_from_this_machine_is_answered(address):
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"):
        assert ask(address, method=method)[0] == 405
    port = address.rstrip("/").rpartition(":")[2]
    for host, code in {
        f"localhost:{port}": 200,
        "localhost:9000": 200,  # forwarded by ssh
        "evil.example": 403,
        f"127.0.0.1.evil.example:{port}": 403,
        "[::1": 403,
        "": 403,
    }.items():
        assert ask(address, host=host)[0] == code, host


def test_no_path_leaves_the_folder(tmp_path, workdir, address):
    secret = tmp_path / "secret"
    write_run(tmp_path / "other", 1_000, 2_000).rename(secret)
    (workdir / "linked").symlink_to(secret)
    (workdir / "decoder-20000-200000" / "log.txt").symlink_to(secret / "config.json")
    linked = workdir / "decoder-60000-200000" / "metrics.jsonl"
    linked.unlink()
    linked.symlink_to(secret / "metrics.jsonl")
    for path in (
        "/run/../../secret",
        "/run/..%2f..%2fsecret",
        "/run/linked",
        "/../secret/config.json",
        "/run/",
        "/run//",
    ):
        assert ask(address, path)[0] == 404, path
    rows = table_rows(settled(address))
    assert "linked" not in rows and rows["decoder-60000-200000"][1] == "unreadable"
    assert "log.txt" not in get(address, "run/decoder-20000-200000")


def test_only_what_changed_is_read_again(workdir, monkeypatch):
    read = []
    for name in ("read_metrics", "read_json", "read_record"):
        call = getattr(run_record, name)
        monkeypatch.setattr(run_record, name, lambda path, call=call, **more: read.append(path) or call(path, **more))
    board = boards.Board(workdir)
    monkeypatch.setattr(board.law, "update", lambda done: None)
    board.refresh()
    assert len(read) > 3 * 14
    running = workdir / EVIL / "status.json"
    for expected in (0, 1):
        read.clear()
        board.read_at = float("-inf")
        rows = board.refresh()
        assert {path.parent for path in read} <= {running.parent, running.parent / run_record.NOTES}
        assert rows[EVIL]["step"] == 40 + 5 * expected
        run_record.write_json(running, {**run_record.read_json(running), "step": 45})


def test_a_refusal_is_shown_as_text(workdir, address):
    for path in [*workdir.glob("decoder-*-200000"), *workdir.glob("decoder-*-5000000")]:
        shutil.rmtree(path)
    page = settled(address)
    assert "could not be fitted: " in page and "class='reading refused'" in page


def test_an_error_of_the_fit_is_shown_too(tmp_path, monkeypatch):
    """The page went on to say that no run has finished yet."""
    law = boards.Law(tmp_path, {})
    monkeypatch.setattr(law, "_fits", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        law._fit()
    assert law.error.startswith("the fit failed (ZeroDivisionError: division by zero)") and not law.busy


def test_a_thousand_cells_are_read_and_drawn_in_well_under_a_second(tmp_path):
    first = write_run(tmp_path, 20_000, 200_000, status="failed")
    names = [f"decoder-{20_000 + i}-200000" for i in range(1, 1000)]
    for name in names:
        (tmp_path / name).mkdir()
        for file in first.iterdir():
            os.link(file, tmp_path / name / file.name)
    board = boards.Board(tmp_path)
    board.refresh()
    board.read_at, began = float("-inf"), time.process_time()
    assert livepage.overview(board, board.refresh()).count("<tr class=failed>") == 1000
    assert time.process_time() - began < 1.0


def test_ticks_are_round():
    assert livepage.ticks(1.4, 5.6) == [2, 3, 4, 5] and livepage.ticks(4e4, 3e7) == [1e5, 1e6, 1e7]
    assert livepage.ticks(2e5, 2.2e6) == [2e5, 5e5, 1e6, 2e6] and boards.log_spaced(1000, 4).tolist() == [0, 9, 99, 999]


def test_the_page_lasts_as_long_as_the_sweep(tmp_path, capsys):
    """Cells without a directory are shown too; the server ends with the sweep."""
    sweep, port, seen = write_sweep(tmp_path, "[{'train.seed': 0}, {'train.seed': 1}]"), free_port(), []

    class Worker:
        def __init__(self, place, cells, command):
            shutil.rmtree(tmp_path / "runs" / cells[0].run.run_id)  # as before its first start
            seen.append(get(f"http://127.0.0.1:{port}/"))
            for cell in cells:
                cell.run_dir.mkdir(exist_ok=True)
                run_record.write_json(cell.run_dir / "status.json", {"status": "failed", "message": "no luck"})

        def poll(self):
            return 1

        def terminate(self):
            raise AssertionError

    assert sweep_run.sweep(str(sweep), tmp_path / "runs", {}, 1, False, launch=Worker, port=port) == 1
    assert f"live page http://127.0.0.1:{port}/" in capsys.readouterr().out
    assert "<b>2</b> pending" in seen[0] and len(table_rows(seen[0])) == 2
    with pytest.raises(urllib.error.URLError):
        get(f"http://127.0.0.1:{port}/")


def test_ctrl_c_ends_the_page_of_a_directory(workdir, capsys):
    port = free_port()

    def stop():
        for _ in range(100):
            try:
                get(f"http://127.0.0.1:{port}/")
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        time.sleep(0.3)  # until it waits
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore it
    threading.Thread(target=stop, daemon=True).start()
    try:
        assert cli.main(["runs", str(workdir), "--serve", str(port)]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "live page http://127.0.0.1" in capsys.readouterr().out


def test_bad_input(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        for words, message in {
            ("runs", str(tmp_path), "--serve", str(busy)): f"cannot listen on port {busy}",
            ("runs", str(tmp_path), "--serve", "99999"): "cannot listen on port 99999",
            ("runs", str(tmp_path / "none"), "--serve"): "no directory",
            ("runs", str(tmp_path), "--serve", "--watch"): "leave out --records, --watch",
            ("sweep", "configs/tiny.py", "--serve", "--dry-run"): "lmjax runs DIR --serve",
            ("sweep", "configs/tiny.py", "--serve", "--launcher", "slurm"): "lmjax runs DIR --serve",
        }.items():
            assert cli.main(list(words)) == 64 and message in capsys.readouterr().err, words
    with pytest.raises(InputError, match="no directory"), serve.served(tmp_path / "none"):
        pass
    with serve.served(tmp_path) as one, serve.served(tmp_path) as two:  # without a port, any that is free
        assert one != two and "No runs in this directory yet" in get(two)


@pytest.mark.skipif(BROWSER is None, reason=f"no browser: expected one of {', '.join(NAMES)} on the path")
def test_a_browser_renews_the_page_under_its_policy(tmp_path, workdir, monkeypatch):
    asked = []

    class Counting(serve.Handler):
        def do_GET(self):
            asked.append(self.path)
            if asked.count("/?part") == 2:  # a change between two renewals
                run_record.write_json(workdir / EVIL / "status.json", {"status": "failed", "message": "seen <b>"})
                self.server.board.read_at = float("-inf")
            super().do_GET()

    monkeypatch.setattr(serve, "Handler", Counting)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=8000", "--window-size=1200,900", "--dump-dom"]
    with serve.served(workdir, free_port()) as address:
        settled(address)
        asked.clear()
        done = subprocess.run([BROWSER, *options, address], capture_output=True, text=True, timeout=120, check=True)
    assert asked[0] == "/" and asked.count("/?part") >= 2
    assert "Content Security Policy" not in done.stderr and "CONSOLE" not in done.stderr
    assert "live, read at" in done.stdout and "seen &lt;b&gt;" in done.stdout
