"""The benchmark of the protocols reads what LoadGen and perf_analyzer wrote, and notices answers that are not right."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from bench.loadgen.logs import compare, pack, read, unpack
from bench.protocols.perf_analyzer import input_data, rows
from bench.servers import Missing

# Lines of summaries that LoadGen 6.0.17 wrote.
SERVER = """
Completed samples per second    : 140.95
Result is : INVALID
Scheduled samples per second : 141.55
50.00 percentile latency (ns)   : 8537341
90.00 percentile latency (ns)   : 8717535
99.00 percentile latency (ns)   : 10234215
99.90 percentile latency (ns)   : 11661408
"""
SINGLE = """
90.0th percentile latency (ns) : 8473852
Result is : VALID
QPS w/ loadgen overhead         : 118.52
QPS w/o loadgen overhead        : 119.19
50.00 percentile latency (ns)   : 8408184
90.00 percentile latency (ns)   : 8473999
99.00 percentile latency (ns)   : 8557326
"""
OFFLINE = """
Samples per second: 471.988
Result is : VALID
50.00 percentile latency (ns)   : 945241457
90.00 percentile latency (ns)   : 1687943432
99.00 percentile latency (ns)   : 1847709352
"""
FIRST = ([5, 3, 1, 2, 4], [0.5, 0.25, 0.125, 0.0625, 0.03125])
SECOND = ([9, 3, 1, 2, 4], [0.5, 0.25, 0.125, 0.0625, 0.03125])


def test_a_summary_is_read() -> None:
    row = read(SERVER, "Server", "grpc")
    assert (row.valid, row.per_s, row.p50_ms, row.p90_ms, row.p99_ms) == (False, 140.95, 8.537341, 8.717535, 10.234215)
    row = read(SINGLE, "SingleStream", "http")
    assert (row.valid, row.per_s, row.p50_ms, row.p90_ms, row.p99_ms) == (True, 118.52, 8.408184, 8.473999, 8.557326)
    row = read(OFFLINE, "Offline", "grpc")
    assert (row.valid, row.per_s, row.p50_ms) == (True, 471.988, None)  # a latency of Offline is a place in the queue
    with pytest.raises(Missing, match="SingleStream over grpc has no result"):
        read("No warnings encountered during test.\n", "SingleStream", "grpc")


def test_an_answer_survives_the_log() -> None:
    assert unpack(pack(FIRST)) == FIRST


def test_answers_that_belong_to_other_samples_are_noticed() -> None:
    first, second = pack(FIRST).hex(), pack(SECOND).hex()
    right = [{"seq_id": 0, "qsl_idx": 1, "data": second}, {"seq_id": 1, "qsl_idx": 0, "data": first}]
    assert compare(right, [FIRST, SECOND]) == []
    exchanged = [{**right[0], "data": first}, {**right[1], "data": second}]
    assert len(compare(exchanged, [FIRST, SECOND])) == 2
    assert compare(right[:1], [FIRST, SECOND]) == ["1 answers, of 1 different samples, to 2 samples"]
    assert compare([right[0], right[0]], [FIRST, SECOND]) == ["2 answers, of 1 different samples, to 2 samples"]
    empty = [right[0], {**right[1], "data": ""}]  # what is handed over for a query that failed
    assert len(compare(empty, [FIRST, SECOND])) == 1


def test_perf_analyzer_is_given_tensors_and_its_table_is_read() -> None:
    given = json.loads(input_data([b"abc", b"de"]))["data"]
    # perf_analyzer sends the bytes as they are: an element of BYTES begins with its length.
    assert base64.b64decode(given[0]["image"]["b64"]) == struct.pack("<I", 3) + b"abc"
    assert base64.b64decode(given[1]["image"]["b64"]) == struct.pack("<I", 2) + b"de"
    head = "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    head += "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
    head += "Avg latency,request/response,response wait"
    line = "2,59.9215,14,825,1000,1500,3000,500,3,6720,7497,8009,9548,6843,17,6790"
    (row,) = rows(f"{head}\n{line}\n", "gRPC", 0.0)
    assert (row.concurrency, row.per_s, row.p50_us, row.p90_us, row.p99_us) == (2, 59.9215, 6720, 7497, 9548)
    assert (row.queue_us, row.input_us, row.infer_us, row.output_us, row.around_us) == (1000, 1500, 3000, 500, 825)
