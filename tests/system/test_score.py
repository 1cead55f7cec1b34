"""`xgboost-server score` and `inspect` as processes: pipes, signals, terminals, disks and memory."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.serving import CANCER, IRIS, ROOT, running_server, wait_until

COMMAND = [sys.executable, "-m", "service.cli"]
ROW = b"6.8,2.8,4.8,1.4\n"
Process = subprocess.Popen[bytes]


def score(*arguments: object, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, "score", str(IRIS), *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, cwd=ROOT, timeout=60, check=False)


@contextmanager
def scoring(*arguments: object) -> Iterator[Process]:
    """A run that reads from a pipe which stays open; what starts the tests may have it ignore a closed terminal (nohup)."""
    command = [
        "env",
        "--default-signal=HUP",
        *COMMAND,
        "score",
        str(IRIS),
        "-",
        "--format",
        "csv",
        *map(str, arguments),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_part(process: Process, folder: Path) -> Path:
    """The half file beside the output, once scoring is under way."""
    assert process.stdin is not None
    process.stdin.write(ROW * 20_000)
    process.stdin.flush()
    wait_until(lambda: any(folder.iterdir()))
    (part,) = folder.iterdir()
    return part


def test_a_filter_in_a_pipe() -> None:
    done = score("-", "--format", "csv", data=ROW * 3)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"score\n1.0\n1.0\n1.0\n", b"")


def test_a_column_that_is_kept_twice_is_kept_once() -> None:
    data = b"id,sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\na," + ROW
    done = score("-", "--format", "csv", "--keep", "id", "--keep", "id", data=data)
    assert (done.returncode, done.stdout) == (0, b"id,score\na,1.0\n")


def test_a_command_line_that_is_not_right_is_the_shells_exit_code_2() -> None:
    for arguments in ((), ("rows.csv", "--to", "xlsx"), ("rows.csv", "--margins")):
        assert score(*arguments).returncode == 2


def test_an_arrow_stream_goes_through_pipes() -> None:
    """From one run into the next format and back."""
    arrow = score("-", "--format", "csv", "--to", "arrow", data=ROW * 3)
    assert arrow.returncode == 0
    fault = score("-", "--format", "arrow", data=arrow.stdout)
    assert b"unknown: 'score'" in fault.stderr


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    with scoring("-o", out) as process:
        part = wait_for_part(process, tmp_path)
        assert part.name.startswith(".scores.csv.")
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.read_bytes() == b"score\n" + b"1.0\n" * 20_000
    assert list(tmp_path.iterdir()) == [out]
    assert out.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_what_was_there_stays_until_there_is_something_better(tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("what was there before")
    done = score("-", "--format", "csv", "-o", out, data=ROW * 100_000 + b"x,1,1,1\n")
    assert done.returncode == 1
    assert done.stderr == b"xgboost-server: standard input: line 100001, column 1: expected a number, got text\n"
    assert out.read_text() == "what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize(
    ("number", "suffix"), [(signal.SIGINT, "csv"), (signal.SIGTERM, "parquet"), (signal.SIGHUP, "arrow")]
)
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals, suffix: str) -> None:
    """No half file, no traceback, and the exit code of the signal."""
    with scoring("-o", tmp_path / f"scores.{suffix}") as process:
        wait_for_part(process, tmp_path)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == b""
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_honoured(tmp_path: Path) -> None:
    """A closed terminal does not end what was started to outlive it."""
    command = ["nohup", *COMMAND, "score", str(IRIS), "-", "--format", "csv", "-o", str(tmp_path / "scores.csv")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        wait_for_part(process, tmp_path)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert (tmp_path / "scores.csv").exists()


def test_a_reader_that_has_enough_ends_it_without_a_word() -> None:
    run = f"yes 6.8,2.8,4.8,1.4 | {sys.executable} -m service.cli score {IRIS} - --format csv | head -n 2"
    command = ["bash", "-c", f'{run}; echo "${{PIPESTATUS[@]}}"']
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout.split() == [b"score", b"1.0", b"141", b"141", b"0"]
    assert done.stderr == b""


def test_a_device_is_written_to_and_not_replaced() -> None:
    assert score("-", "--format", "csv", "-o", "/dev/null", data=ROW).returncode == 0
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_a_fault_in_one_line() -> None:
    done = score("-", "--format", "csv", "-o", "/dev/full", data=ROW)
    assert (done.returncode, done.stderr) == (1, b"xgboost-server: /dev/full: No space left on device\n")


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert score("-", "--format", "csv", "-o", tmp_path / "link.csv", data=ROW).returncode == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "score\n1.0\n"


def test_a_file_is_not_scored_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROW)
    done = score(path, "-o", path)
    assert (done.returncode, path.read_bytes()) == (1, ROW)
    assert b"is the file to be scored" in done.stderr


# Terminals.


def run_in_terminal(arguments: list[str], columns: int = 80, stdout: int | None = None) -> tuple[int, str]:
    """Exit code, and what a terminal of that width was sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([*COMMAND, *arguments], stdin=slave, stdout=stdout or slave, stderr=slave, cwd=ROOT)
    os.close(slave)
    said = b""
    while True:
        try:
            said += os.read(master, 65536)
        except OSError:  # EIO: the last one who had it open is gone
            break
    os.close(master)
    return process.wait(60), said.decode()


@pytest.fixture
def many_rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROW * 50_000)
    return path


def test_a_terminal_sees_how_far_it_is(many_rows: Path, tmp_path: Path) -> None:
    code, said = run_in_terminal(["score", str(IRIS), str(many_rows), "-o", str(tmp_path / "scores.csv")])
    assert code == 0
    assert "100%" in said
    assert "8,192 rows" in said
    assert "50,000 rows scored in " in said.splitlines()[-1]
    shown = [line for part in said.split("\n") for line in part.split("\r")]
    assert max(map(len, shown)) <= 80


def test_rows_from_a_pipe_are_counted_as_well(tmp_path: Path) -> None:
    """There is no whole to have a share of."""
    source = tmp_path / "pipe"
    os.mkfifo(source)
    with subprocess.Popen(["sh", "-c", f"yes 6.8,2.8,4.8,1.4 | head -n 20000 > {source}"]):
        arguments = ["score", str(IRIS), str(source), "--format", "csv", "-o", str(tmp_path / "scores.csv")]
        code, said = run_in_terminal(arguments)
    assert code == 0
    assert "8,192 rows" in said
    assert "%" not in said


def test_quiet_is_quiet(many_rows: Path, tmp_path: Path) -> None:
    arguments = ["score", "--quiet", str(IRIS), str(many_rows), "-o", str(tmp_path / "scores.csv")]
    assert run_in_terminal(arguments) == (0, "")


def test_scores_on_a_terminal_have_no_bar_between_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROW * 2)
    assert run_in_terminal(["score", str(IRIS), str(path)]) == (0, "score\r\n1.0\r\n1.0\r\n")


def test_nothing_is_shown_where_there_is_no_terminal(many_rows: Path, tmp_path: Path) -> None:
    done = score(many_rows, "-o", tmp_path / "scores.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_bytes_are_kept_off_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROW)
    code, said = run_in_terminal(["score", str(IRIS), str(path), "--to", "arrow"])
    assert (code, "arrow is not for terminals" in said) == (1, True)


def test_a_half_drawn_bar_is_ended_before_the_fault_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROW * 20_000 + b"1,2,3\n")
    code, said = run_in_terminal(["score", str(IRIS), str(path), "-o", str(tmp_path / "scores.csv")])
    assert code == 1
    assert said.splitlines()[-1].startswith("xgboost-server: ")


def test_inspect_fits_a_terminal_and_is_plain_elsewhere() -> None:
    """Bold titles and no line beyond the edge on a terminal; no escape codes in a file."""
    code, said = run_in_terminal(["inspect", str(CANCER)])
    assert code == 0
    assert "\x1b[1m" in said
    assert max(len(line) for line in said.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()) <= 80
    plain = subprocess.run([*COMMAND, "inspect", str(CANCER)], capture_output=True, cwd=ROOT, timeout=60, check=True)
    assert b"\x1b" not in plain.stdout


# The same numbers as a server that runs.


def test_a_file_gets_the_scores_that_the_server_gives(tmp_path: Path) -> None:
    """The text itself is the same."""
    rng = np.random.default_rng(4)
    rows = [[round(float(value), 4) for value in row] for row in rng.uniform(0, 8, (200, 30))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    command = [*COMMAND, "score", str(CANCER), str(path), "--to", "csv"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True)
    with running_server(SCORER_MODEL=str(CANCER)) as server:
        answer = server.request("/predict", str(rows).encode())
    assert answer.body == b'{"prediction":[%b]}' % b",".join(done.stdout.split()[1:])


# Any size.

MEMORY = """
import resource, sys
from service.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak_of(*arguments: object) -> int:
    """Largest resident memory in bytes."""
    command = [sys.executable, "-c", MEMORY, "score", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=True, timeout=600)
    return int(done.stderr.split()[-1]) * 1024


def write_large(path: Path, count: int, names: list[str]) -> None:
    """So many rows of doubles; Parquet in one single group of rows."""
    values = np.random.default_rng(5).uniform(0, 9, (10_000, len(names))).round(7)
    if path.suffix in (".csv", ".jsonl"):
        form = "[%s]\n" if path.suffix == ".jsonl" else "%s\n"
        block = "".join(form % ",".join(map(repr, row)) for row in values.tolist())
        with path.open("w") as file:
            file.writelines(block for _ in range(count // len(values)))
        return
    table = pyarrow.concat_tables([pyarrow.table(dict(zip(names, values.T, strict=True)))] * (count // len(values)))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=count)
        return
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "arrow"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path, suffix: str) -> None:
    """200 MB of numbers, 35 times the small one."""
    names = json.loads((CANCER.parent / "golden.json").read_text())["feature_names"]
    peaks = []
    for count in (20_000, 700_000):
        path = tmp_path / f"{count}.{suffix}"
        write_large(path, count, names)
        peaks.append(peak_of(CANCER, path, "-o", tmp_path / f"scores.{suffix}"))
    assert peaks[1] - peaks[0] < 48 * 2**20, peaks
