"""`headrace stack` and `headrace explain`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from headrace.cli import advise
from headrace.stack import finding, manifest
from tests.cli.shell import say
from tests.servers import Server, require

ADR_BLOCK = """\
quality:
  events:
    type: redis-streams
    why: "Consumer groups, already in stack, FOSS (BSD-3)"
    pattern: "XREADGROUP + XACK for exactly-once processing"
requirements: {rate: {avg: 100/s}, payload: 1KB, retention: 7d}
"""
FLAGS = ("--rate", "2000/s", "--payload", "300B", "--team", "redis", "--ordering", "per-key")


def written(folder: Path, text: str) -> str:
    return written_as(folder / "stack.yaml", text)


def written_as(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_advice_from_flags_is_a_manifest_that_the_lint_takes(tmp_path: Path) -> None:
    said = say("stack", "advise", *FLAGS, "--adr", str(tmp_path / "docs" / "adr.md"))
    assert said.code == 0
    assert said.out.startswith("redis-streams: ")
    assert "# Events of this service: redis-streams" in (tmp_path / "docs" / "adr.md").read_text()
    block = said.out[said.out.index("quality:") :]
    again = say("stack", "lint", written(tmp_path, block))
    assert (again.code, again.out) == (0, "")


def test_advice_from_a_manifest_and_flags_before_it(tmp_path: Path) -> None:
    path = written(tmp_path, ADR_BLOCK)
    of_file = json.loads(say("stack", "advise", "--from", path, "--json").out)
    assert of_file["choice"] == "kafka"
    assert of_file["load"]["rate"] == 100
    of_flags = json.loads(say("stack", "advise", "--from", path, "--retention", "1h", "--json").out)
    assert of_flags["choice"] == "redis-streams"


def test_when_nothing_fits_the_exit_code_says_so() -> None:
    said = say("stack", "advise", "--rate", "10/s", "--payload", "32MB")
    assert said.code == 1
    assert "rabbitmq fails on body" in said.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--payload", "large"), "--payload: expected a size such as 600B, 4KB or 16GiB, got 'large'"),
        (("--peak", "10/s"), "--peak: say --rate, too"),
        (("--rate", "2000/s", "--peak", "100/s"), "expected a peak of at least the average rate, 2,000/s, got 100/s"),
        (("--rate", "0/s"), "expected an average rate above 0"),
        (("--from", "nowhere.yaml"), "nowhere.yaml: there is no such file"),
    ],
)
def test_what_cannot_be_meant(words: tuple[str, ...], says: str) -> None:
    said = say("stack", "advise", *words)
    assert said.code == 2
    assert says in said.err


def test_the_flags_take_what_the_manifest_takes() -> None:
    hints = get_type_hints(manifest.Requirements)
    flags = {
        "ordering": advise._ORDERING,
        "replay": advise._REPLAY,
        "loss": advise._LOSS,
        "licence": advise._LICENCE,
    }
    assert {name: get_args(hints[name]) for name in flags} == flags


def test_findings_in_every_form(tmp_path: Path) -> None:
    path = written(tmp_path, ADR_BLOCK)
    text = say("stack", "lint", path)
    assert text.code == 1
    assert f"{path}:5: HR301 error: " in text.out
    found = json.loads(say("stack", "lint", path, "--format", "json").out)
    assert [f["code"] for f in found] == ["HR302", "HR301", "HR303"]
    assert f"::error file={path},line=5,title=HR301::" in say("stack", "lint", path, "--format", "github").out
    sarif: Any = json.loads(say("stack", "lint", path, "--format", "sarif").out)
    assert [r["ruleId"] for r in sarif["runs"][0]["results"]] == ["HR302", "HR301", "HR303"]


def test_the_schema_and_the_pages() -> None:
    assert json.loads(say("stack", "schema").out) == json.loads(json.dumps(manifest.schema()))
    assert say("explain", "hr301").out.startswith("# HR301: ")
    assert all(code in say("explain").out for code in finding.TITLES)
    assert say("explain", "HR999").code == 2


def test_a_live_server_is_held_against_the_manifest(tmp_path: Path) -> None:
    require("valkey")
    block = """\
requirements: {rate: {avg: 10/s, peak: 1000000/s}}
quality:
  events:
    type: redis-streams
    why: because we run it already
    streams: [{name: orders}, {name: bills}]
    outgrow: {to: kafka, when: [MEMORY, retention > 7d, datacenters > 1]}
"""
    roomy, tight, odd = (
        written_as(tmp_path / f"{n}.yaml", block.replace("MEMORY", condition))
        for n, condition in enumerate(("memory > 1GiB", "memory > 1KB", "patience > 3"))
    )
    with Server("valkey") as server:
        absent = say("stack", "check", roomy, "--url", server.url, "--seconds", "1")
        assert (absent.code, "no topic orders, bills" in absent.err) == (2, True)
        assert say("publish", "orders", json.dumps({"text": "x" * 3_000}), "--url", server.url).code == 0
        fits = say("stack", "check", roomy, "--url", server.url, "--seconds", "1", "--json")
        rows = {row["what"]: row for row in json.loads(fits.out)}
        assert (fits.code, [r["what"] for r in rows.values() if r["says"]]) == (0, ["topic bills"])
        assert rows["events unaccounted for"]["now"] == "0"
        outgrown = say("stack", "check", tight, "--url", server.url, "--seconds", "1")
        assert outgrown.code == 1
        assert "outgrown: kafka" in outgrown.out
        wrong = say("stack", "check", odd, "--url", server.url, "--seconds", "1")
        assert (wrong.code, "got 'patience > 3'" in wrong.err) == (2, True)


def _of_the_guide() -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "stacks.md").read_text(encoding="utf-8")
    return re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_every_manifest_of_the_guide_is_whole(tmp_path: Path) -> None:
    require("valkey")
    assert len(_of_the_guide()) == 3
    with Server("valkey") as server:
        assert say("publish", "orders", "{}", "--url", server.url).code == 0
        for block in _of_the_guide():
            path = written(tmp_path, block)
            linted = say("stack", "lint", path)
            assert all("HR301" in line for line in linted.out.splitlines()), linted.out
            checked = say("stack", "check", path, "--url", server.url, "--seconds", "1")
            assert checked.code == 0, checked.err
            unnamed = "streams:" not in block
            assert ("the manifest names no streams: all that the server has were looked at" in checked.out) == unnamed


def test_a_server_without_topics_cannot_be_looked_at(tmp_path: Path) -> None:
    require("valkey")
    with Server("valkey") as server:
        said = say("stack", "check", written(tmp_path, _of_the_guide()[0]), "--url", server.url, "--seconds", "1")
        assert (said.code, "the server has no topics; is it the right one?" in said.err) == (2, True)


def test_a_server_that_is_nearly_full_is_told_of(tmp_path: Path) -> None:
    require("valkey")
    path = written(tmp_path, _of_the_guide()[2])
    with Server("valkey") as server:
        assert say("publish", "orders", "{}", "--url", server.url).code == 0
        used = int(re.findall(r"used_memory:(\d+)", server.command("INFO", "memory").decode())[0])
        for percent, code in ((50, 0), (90, 1)):
            server.command("CONFIG", "SET", "maxmemory", used * 100 // percent)
            said = say("stack", "check", path, "--url", server.url, "--seconds", "1")
            assert (said.code, "more than 80% of its maxmemory" in said.out) == (code, code == 1), said.out


def test_what_an_event_costs_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    require("valkey")
    facts = tmp_path / "facts.toml"
    with Server("valkey") as server:
        said = say("stack", "calibrate", "--url", server.url, "--events", "2000", "--write", str(facts))
        assert said.code == 0, said.err
        assert server.command("KEYS", "*") in ([], ())
    advice = json.loads(say("stack", "advise", *FLAGS, "--facts", str(facts), "--json").out)
    assert advice["facts"]["server"].startswith("Valkey ")
    assert 0.5 < advice["facts"]["small_memory_bytes"] / advice["facts"]["small_body_bytes"] < 3
