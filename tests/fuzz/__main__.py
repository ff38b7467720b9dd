"""``python -m tests.fuzz``: mutations of valid requests against a started server. Exit status 1: faults."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import home
from tests.fuzz.campaign import Campaign, call_from
from tests.fuzz.sending import GrpcConnection, HttpConnection


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first request: to go on, or to repeat some")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop sending after so long")
    parser.add_argument("--concurrency", type=int, default=12)
    parser.add_argument("--out", type=Path, help="folder of the report and of the requests that were wrong")
    parser.add_argument("--replay", type=Path, nargs="+", help="send the requests of these files, and nothing else")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    options = parser.parse_args()
    settings = dict(text.split("=", 1) for text in options.set)
    folder = options.out or Path(tempfile.mkdtemp(prefix="ekiben-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    with home.asked_server(Path(tempfile.mkdtemp(prefix="server-", dir=folder)), **settings) as server:
        with server.client() as client:
            document = client.get("/openapi.json").json()
            known = home.fill(client)
        campaign = Campaign(server, known, document, options.seed, folder)
        if options.replay:
            return asyncio.run(_replay(campaign, options.replay))
        report = campaign.run(options.first, options.count, options.minutes, options.concurrency)
    text = report.text()
    (folder / f"report-{options.seed}.txt").write_text(text + "\n")
    print(text)
    print(f"files: {folder}")
    return 1 if report.violations else 0


async def _replay(campaign: Campaign, files: list[Path]) -> int:
    """Send each request and show its answer, and the log if it says more."""
    server = campaign.server
    host, _, port = server.url.removeprefix("http://").partition(":")
    wrong = 0
    for file in files:
        record = json.loads(file.read_text())
        if "target" not in record:
            print(f"{file.name}: {record['what'][:300]}: no request")
            continue
        call = call_from(record)
        start = len(server.logs())
        connection = GrpcConnection(server.grpc) if call.method == "GRPC" else HttpConnection(host, int(port))
        answer = await connection.send(call, "replay")
        time.sleep(0.5)
        print(f"{file.name}: {call.route} -> {answer.status} {answer.broken or answer.body[:300]!r}")
        print(server.logs()[start:][-6000:])
        wrong += bool(answer.broken) or (isinstance(answer.status, int) and answer.status in (500, 502))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
