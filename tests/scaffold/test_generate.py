"""New services: what is generated, and what is refused with nothing written."""

from __future__ import annotations

import ast
import datetime as dt
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from headrace import ConfigurationError, testing
from headrace.backends.redis.node import load_script
from headrace.scaffold import generate, service
from headrace.scaffold.folder import Folder
from headrace.scaffold.generate import Rendering
from headrace.scaffold.name import check_name
from headrace.scaffold.render import File
from headrace.stack import claims, facts, manifest
from headrace.stack.manifest import StackType
from headrace.stack.quantity import Duration

TODAY = dt.date(2026, 11, 28)
PYTHON: tuple[StackType, ...] = ("python-worker", "python-fastapi")
RUST: tuple[StackType, ...] = ("rust-axum", "rust-grpc")
ORDERED = """
metadata: {name: x, description: 'Sells "things"', owner: team-a}
requirements: {rate: {avg: 2000/s}, payload: 600B, retention: 90min, ordering: per-key}
quality:
  events: {type: redis-streams, why: because we run it already, pattern: XREADGROUP}
"""

CASES = [*((kind, text) for kind in PYTHON for text in ("", ORDERED)), *((kind, "") for kind in RUST)]


def rendering(
    kind: StackType = "python-worker", name: str = "shop", text: str = "", folder: Path | None = None
) -> Rendering:
    read = None
    if text and folder is not None:
        (folder / "given.yaml").write_text(text)
        read = manifest.load(folder / "given.yaml")
    return generate.rendered(service.describe(name, kind, "redis-streams", read, TODAY))


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_every_file_is_what_it_says(tmp_path: Path, kind: StackType, text: str) -> None:
    files = rendering(kind, "shop-2", text, tmp_path).files
    for path, file in files.items():
        content = file.data.decode()
        assert "[[ " not in content, path
        assert "[% " not in content, path
        assert not content or content.endswith("\n"), path
        if path.endswith(".py"):
            ast.parse(content)
        elif path.endswith((".yaml", ".yml")):
            assert [one for one in yaml.safe_load_all(content) if one is not None], path
        elif path.endswith(".toml"):
            tomllib.loads(content)
    assert ("src/shop_2/handlers.py" if kind in PYTHON else "src/orders.rs") in files


def test_scripts_and_vectors_are_the_products_own() -> None:
    files = rendering("rust-axum").files
    for path, file in files.items():
        if path.endswith(".lua"):
            assert file.data.decode() == load_script(Path(path).stem).text
        elif path.startswith("tests/golden/"):
            assert file.data == (Path(testing.__file__).parent / "golden" / Path(path).name).read_bytes()
    count = [sum(path.startswith(folder) for path in files) for folder in ("src/headrace/scripts/", "tests/golden/")]
    assert count == [10, 6]


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_the_manifest_reads_back_and_claims_nothing_that_is_not_so(tmp_path: Path, kind: StackType, text: str) -> None:
    made = rendering(kind, "shop", text, tmp_path)
    generate.create(made, tmp_path / "shop")
    read = manifest.load(tmp_path / "shop" / "stack.yaml")
    assert claims.lint(read, facts.load()) == []
    again = generate.rendered(service.of_project(read, kind))
    changed = {p for p, f in again.files.items() if made.files[p].data != f.data and not f.seeded}
    assert not changed, "what is generated follows from the manifest"
    if text:
        assert read.requirements.retention == Duration(5_400)
        assert read.metadata is not None
        assert read.metadata.description == 'Sells "things"'
        assert b"partitions=16" in made.files["src/shop/topics.py"].data
        assert b"ORDERED = True" in made.files["src/shop/topics.py"].data


@pytest.mark.parametrize("text", ["", ORDERED], ids=["plain", "ordered"])
@pytest.mark.parametrize("name", ["shop", "a" + "-b" * 31])
@pytest.mark.parametrize("kind", PYTHON)
def test_the_code_is_linted_and_formatted_whatever_the_name(
    tmp_path: Path, kind: StackType, name: str, text: str
) -> None:
    generate.create(rendering(kind, name, text, tmp_path), tmp_path / "service")
    for words in (("check",), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        said = subprocess.run(ruff, cwd=tmp_path / "service", capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout


def test_the_same_service_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate.create(rendering(), tmp_path / name)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "../up",
            "/etc",
            "a/b",
            "Shop",
            "shop_1",
            "1shop",
            "-shop",
            "shop-",
            "größe",
            "shop\n",
            "shop.",
            "a" * 64,
        ),
        *("class", "match", "json", "test", "service", "core", "headrace", "async", "msgspec", "pytest"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name: "):
        check_name(name)


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", "a//b", "", ".", "a/."])
def test_nothing_is_written_outside(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigurationError, match="inside the project"):
        Folder(tmp_path / "project").write(path, File(b"x"))
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside, project = tmp_path / "outside", tmp_path / "project"
    outside.mkdir()
    project.mkdir()
    (project / "src").symlink_to(outside)
    (project / "README.md").symlink_to(outside / "README.md")
    for path in ("src/a.py", "README.md"):
        with pytest.raises(ConfigurationError, match="symbolic link"):
            Folder(project).write(path, File(b"x"))
    with pytest.raises(ConfigurationError, match="symbolic link"):
        generate.add(rendering(), project)
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    "there", ["README.md", "src/shop/app.py", "src", ".headrace/lock.json", "tests/test_service.py"]
)
def test_nothing_is_written_over_a_file(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConfigurationError, match="already; nothing was written"):
        generate.add(rendering(), tmp_path)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine"]


def test_a_folder_with_something_in_it_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine").write_text("mine")
    with pytest.raises(ConfigurationError, match="--into"):
        generate.create(rendering(), tmp_path / "shop")
    assert [p.name for p in (tmp_path / "shop").iterdir()] == ["mine"]


def test_it_can_be_added_to_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    generate.add(rendering(), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "src" / "shop" / "app.py").is_file()


def test_a_service_that_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Folder.write

    def full(self: Folder, path: str, file: File) -> None:
        if path == "stack.yaml":
            raise OSError(28, os.strerror(28))
        write(self, path, file)

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(ConfigurationError, match="No space"):
        generate.create(rendering(), tmp_path / "shop")
    assert not list(tmp_path.iterdir())


def test_there_is_no_kafka_yet() -> None:
    with pytest.raises(ConfigurationError, match="--events kafka: there are no templates for it yet"):
        generate.rendered(service.describe("shop", "python-worker", "kafka", None, TODAY))


def test_an_advice_for_another_system_is_said(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(
        "requirements: {rate: {avg: 2000/s}, retention: 30d, datacenters: 3}\nquality: {events: {type: kafka, why: it was asked for}}\n"
    )
    described = service.describe(
        "shop", "python-worker", "redis-streams", manifest.load(tmp_path / "stack.yaml"), TODAY
    )
    assert described.differs.startswith("kafka: ")
    assert described.decided.type == "redis-streams"
    assert "asked for; the advice is kafka" in described.decided.why


@pytest.mark.parametrize("bad", ['a"; import os', "a\\n", "[[ 7 * 7 ]]", "größe", "a" * 129, ""])
@pytest.mark.parametrize("what", ["name", "group"])
def test_a_name_that_would_be_code_is_refused(tmp_path: Path, what: str, bad: str) -> None:
    stream = {"name": "orders", "group": "g", what: bad}
    block = {"quality": {"events": {"type": "redis-streams", "why": "it was asked for", "streams": [stream]}}}
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(block))
    if (what, bad) == ("group", ""):
        return  # then it is the service's name
    with pytest.raises(ConfigurationError):
        read = manifest.load(tmp_path / "stack.yaml")
        generate.rendered(service.describe("shop", "python-worker", "redis-streams", read, TODAY))


def test_a_description_is_data_wherever_it_goes(tmp_path: Path) -> None:
    text = """Sells \'things\' "cheap\"\"\" [[ 7 * 7 ]] \\n; {{ x }} # größe"""
    (tmp_path / "stack.yaml").write_text(
        yaml.safe_dump(
            {
                "metadata": {"name": "x", "description": text},
                "quality": {"events": {"type": "redis-streams", "why": "it was asked for"}},
            }
        )
    )
    files = generate.rendered(
        service.describe("shop", "python-worker", "redis-streams", manifest.load(tmp_path / "stack.yaml"), TODAY)
    ).files
    assert tomllib.loads(files["pyproject.toml"].data.decode())["project"]["description"] == text


def test_a_description_of_several_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(
        'metadata: {name: x, description: "a\\n[project]"}\nquality: {events: {type: redis-streams, why: it was asked for}}\n'
    )
    described = service.describe(
        "shop", "python-worker", "redis-streams", manifest.load(tmp_path / "stack.yaml"), TODAY
    )
    with pytest.raises(ConfigurationError, match="description: expected one line"):
        generate.rendered(described)


def given(tmp_path: Path, streams: str, kind: StackType = "python-worker") -> Rendering:
    (tmp_path / "given.yaml").write_text(
        "quality:\n  storage: {type: postgres, why: it is there already}\n"
        "  events:\n    type: redis-streams\n    why: because we run it already\n" + streams
    )
    read = manifest.load(tmp_path / "given.yaml")
    return generate.rendered(service.describe("shop", kind, "redis-streams", read, TODAY))


STREAMS = """\
    server: {engine: redis, maxmemory: 2GiB}
    scaling: {minReplicas: 3}
    streams:
      - name: trades
        partitions: 4
        key: order_id
        group: desk
        retention: {maxage: 6h}
        consumer: {timeout: 500ms, lease: 60s, maxDeliveries: 2, concurrency: 7, ordered: true}
"""


def test_what_the_manifest_says_is_what_is_generated(tmp_path: Path) -> None:
    files = {path: file.data.decode() for path, file in given(tmp_path, STREAMS).files.items()}
    topics = files["src/shop/topics.py"]
    for line in (
        'GROUP = "desk"',
        "ORDERED = True",
        "RETRY = Retry(attempts=2)",
        "TIMEOUT_S = 0.5",
        "LANES = 7",
        "app = Headrace(lease_s=60)",
        'orders = app.topic("trades", OrderPlaced, key="order_id", partitions=4, retain_events=8000000, retain_s=21600)',
    ):
        assert line in topics.splitlines(), topics
    assert "minReplicaCount: 3" in files["deploy/scaling.yaml"]
    assert "redis-server --appendonly yes" in files["compose.yaml"]
    assert f"--maxmemory {2 * 2**30}" in files["compose.yaml"]
    assert yaml.safe_load(files["stack.yaml"])["quality"]["storage"]["type"] == "postgres"
    assert "because we run it already" in files["docs/adr/0001-events.md"]


@pytest.mark.parametrize("kind", RUST)
def test_a_rust_service_does_what_the_manifest_says(tmp_path: Path, kind: StackType) -> None:
    files = {path: file.data.decode() for path, file in given(tmp_path, STREAMS, kind).files.items()}
    declared = """\
pub const ORDERS: Topic = {
    let mut topic = Topic::new("trades");
    topic.partitions = 4;
    topic.retain_events = 8_000_000;
    topic.retain = Duration::from_secs(21_600);
    topic
};
/// Where those that were accepted go.
pub const ACCEPTED: Topic = {
    let mut topic = Topic::new("orders.accepted");
    topic.cap_events = 1_100_000;
    topic.keep_for_first_group = false;
    topic
};

"""
    topics = files["src/topics.rs"]
    assert declared in topics, topics
    for line in (
        'pub const GROUP: &str = "desk";',
        "pub const ORDERED: bool = true;",
        'pub const LEASE_SECONDS: &str = "60";',
        'pub const HANDLER_TIMEOUT_SECONDS: &str = "0.5";',
        'pub const ATTEMPTS: &str = "2";',
        'pub const CONCURRENCY: &str = "7";',
    ):
        assert line in topics.splitlines(), topics
    assert ".with_key(order.order_id.as_str())" in files["src/api.rs"]
    assert "subscription.ordered = topics::ORDERED;" in files["src/lib.rs"]


@pytest.mark.parametrize(
    ("rates", "options"),
    [
        ("rate: {avg: 500/s}, retention: 6h", ", cap_events=16875000, retain_events=13500000, retain_s=21600)"),
        (
            "rate: {avg: 500/s}, retention: 6h, ordering: per-key",
            ", partitions=16, retain_events=843750, retain_s=21600)",
        ),
        ("rate: {avg: 0.5/d, peak: 1/h}, ordering: per-key", ", partitions=16, retain_events=48000)"),
        ("ordering: global", 'key="customer", retain_events=770000)'),
    ],
)
def test_what_is_required_is_kept(tmp_path: Path, rates: str, options: str) -> None:
    (tmp_path / "given.yaml").write_text(
        f"requirements: {{{rates}}}\nquality: {{events: {{type: redis-streams, why: because we run it already}}}}\n"
    )
    read = manifest.load(tmp_path / "given.yaml")
    made = generate.rendered(service.describe("shop", "python-worker", "redis-streams", read, TODAY))
    topics = made.files["src/shop/topics.py"].data.decode()
    assert options in topics, topics
    (tmp_path / "again.yaml").write_bytes(made.files["stack.yaml"].data)
    assert manifest.load(tmp_path / "again.yaml").requirements == read.requirements


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("key: order_id", "key: country"), "the sample's event has customer and order_id"),
        (("name: trades", "name: orders.accepted"), "expected one with the role consume"),
        (("maxage: 6h", "maxlen: 1000000000000000000"), "retain_events"),
    ],
)
def test_what_cannot_be_generated_is_said(tmp_path: Path, changes: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        given(tmp_path, STREAMS.replace(*changes))


def test_an_addition_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Folder.write

    def full(self: Folder, path: str, file: File) -> None:
        if path == "stack.yaml":
            raise OSError(28, os.strerror(28))
        write(self, path, file)

    monkeypatch.setattr(Folder, "write", full)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigurationError, match="what was written is removed"):
        generate.add(rendering(), tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["mine"]
