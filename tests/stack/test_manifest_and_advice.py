"""The manifest, the advice and the lint."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from headrace.errors import ConfigurationError
from headrace.stack import claims, facts, finding, manifest, sources
from headrace.stack.advise import advise
from headrace.stack.manifest import Rates, Requirements
from headrace.stack.quantity import Duration, Rate, Size

ADR_BLOCK = """\
quality:
  events:
    type: redis-streams
    why: "Consumer groups, already in stack, FOSS (BSD-3)"
    pattern: "XREADGROUP + XACK for exactly-once processing"
"""


def read(folder: Path, text: str) -> manifest.Manifest:
    path = folder / "stack.yaml"
    path.write_text(text)
    return manifest.load(path)


def wanted(rate: str, payload: str = "500B", **more: object) -> Requirements:
    return Requirements(rate=Rates(Rate.parse(rate)), payload=Size.parse(payload), **more)  # type: ignore[arg-type]


def test_the_bare_block_of_the_adr_is_a_manifest_whose_claims_are_noticed(tmp_path: Path) -> None:
    found = claims.lint(read(tmp_path, ADR_BLOCK), facts.load())
    assert [(f.code, f.line, f.severity) for f in found] == [("HR302", 4, "warning"), ("HR301", 5, "error")]


def test_the_schema_takes_it_and_knows_its_keys() -> None:
    schema = manifest.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    events = {"type": "redis-streams", "why": "long enough a reason"}
    jsonschema.validate({"quality": {"events": events}}, schema)
    wrongs: list[dict[str, object]] = [{"quality": {}}, {"quality": {"events": events | {"tpye": "kafka"}}}]
    for wrong in wrongs:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("requirements: {rate: {avg: often}}", "stack.yaml:6: requirements.rate.avg: expected a rate such as 2000/s"),
        ("requirements: {rate: {avg: 0/s}}", "stack.yaml:6: requirements.rate: expected an average rate above 0"),
        (
            "requirements: {rate: {avg: 2000/s, peak: 100/s}}",
            "stack.yaml:6: requirements.rate: expected a peak of at least the average rate, 2,000/s, got 100/s",
        ),
        ("requirements: {groups: 0}", "stack.yaml:6: requirements.groups: Expected `int` >= 1"),
        ("requirments: {}", "stack.yaml:1: the file: Object contains unknown field `requirments`"),
        ("kind: Pile", "expected apiVersion: headrace.dev/v1 and kind: Stack"),
        ("a: [", "not YAML"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, ADR_BLOCK + more + "\n")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("requirements", "choice"),
    [
        (wanted("1000/s", "1KB", retention=Duration.parse("6h")), "redis-streams"),
        (wanted("2000/s", "300B", team=("redis",), ordering="per-key"), "redis-streams"),
        (wanted("100/s", "1KB", retention=Duration.parse("7d")), "kafka"),
        (wanted("5000/s", "1KB", replay="weeks", retention=Duration.parse("30d")), "kafka"),
        (wanted("150000/s", "200B"), "kafka"),
        (wanted("500/s", datacenters=2), "nats-jetstream"),
    ],
)
def test_the_advice_and_what_would_change_it(requirements: Requirements, choice: str) -> None:
    advice = advise(requirements, facts.load())
    assert advice.choice == choice
    assert all(flip.choice != choice for flip in advice.flips)
    assert advise(requirements, facts.load()) == advice


def test_a_tie_is_called_one() -> None:
    advice = advise(wanted("100000/s", "100B", outage=Duration(60)), facts.load())
    assert [(s.system, s.score) for s in advice.systems[:2]] == [("redis-streams", 0.5), ("kafka", 0.5)]
    assert "a tie with kafka: of equals the first of redis-streams, kafka" in advice.why
    assert "a tie" not in advise(wanted("100/s"), facts.load()).why


def test_a_change_is_told_in_whole_numbers() -> None:
    changes = [flip.change for flip in advise(wanted("100/s"), facts.load()).flips]
    assert "180 times the rate: 18,038/s, 72,150/s at the peak" in changes


def test_a_body_that_is_too_large_is_called_so() -> None:
    why = advise(wanted("10/s", "5MB"), facts.load()).why
    assert "bodies of 4.8 MiB, above the limit of 1.0 MiB" in why


def test_code_and_settings_are_looked_through(tmp_path: Path) -> None:
    (tmp_path / "read.rs").write_text("let o = StreamReadOptions::default().block(2000);\n")
    (tmp_path / "fine.rs").write_text("c.set_response_timeout(Duration::from_secs(7)); o.block(2000);\n")
    (tmp_path / "valkey.conf").write_text("\nmaxmemory-policy allkeys-lru\n")
    (tmp_path / "ack.py").write_text('redis.execute_command("XACKDEL", key)\n')
    found = sources.scan(tmp_path, read(tmp_path, ADR_BLOCK), facts.load())
    assert [(f.code, f.path, f.line) for f in found] == [
        ("HR309", "ack.py", 1),
        ("HR311", "read.rs", 1),
        ("HR308", "valkey.conf", 2),
    ]


COMPOSE = (
    "command: valkey-server --appendonly yes --appendfsync always --no-appendfsync-on-rewrite no --maxmemory 1073741824"
)


@pytest.mark.parametrize(
    ("change", "requirements", "expected"),
    [
        (("", ""), "{}", []),
        (("appendonly yes", "appendonly no"), "{}", [("HR314", "error")]),
        (("--appendonly yes", '"--appendonly", "no"'), "{}", [("HR314", "error")]),
        (("appendonly yes", "appendonly no"), "{loss: best-effort}", []),
        (("always", "no"), "{loss: seconds}", [("HR314", "error")]),
        (("always", "everysec"), "{}", [("HR314", "warning")]),
        (("always", "everysec"), "{loss: seconds}", []),
        (("command:", "# appendonly no, appendfsync no, maxmemory 1mb:"), "{}", []),
        (("1073741824", "512mb"), "{}", [("HR303", "error")]),
        (("1073741824", "2gb"), "{}", []),
        (("1073741824", "0"), "{}", []),
        (("", ""), "{rate: {avg: 1000/s}}", [("HR303", "error")]),
    ],
)
def test_settings_are_held_against_the_manifest(
    tmp_path: Path, change: tuple[str, str], requirements: str, expected: list[tuple[str, str]]
) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.replace(*change) + "\n")
    server = "" if "rate" in requirements else "    server: {maxmemory: 1GiB}\n"
    manifest = read(tmp_path, f"{ADR_BLOCK}{server}requirements: {requirements}\n")
    found = sources.scan(tmp_path, manifest, facts.load())
    assert [(f.code, f.severity) for f in found] == expected
    assert all(f.path == "compose.yaml" for f in found)


def test_every_code_has_a_page() -> None:
    for code, title in finding.TITLES.items():
        assert finding.page(code).startswith(f"# {code}: {title}\n")
    with pytest.raises(ConfigurationError, match="no such code"):
        finding.page("HR999")
