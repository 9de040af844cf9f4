"""The demo: what it prints can be pasted, and shows who sees what."""

import asyncio
import os
import re
import shlex
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio

from gateway.config import Config, read
from gateway.demo import demo_environment, introduction
from schemas import strict_json
from tests.gateway.processes import PATIENCE_S, ROOT, Running, command, free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

INTERNAL = {"lp_id", "lp_name", "created_by_id"}


@dataclass
class Demo:
    """A demo under way, and what it printed to begin with."""

    running: Running
    text: str
    ports: dict[str, str]

    @property
    def lines(self) -> list[str]:
        """The lines to paste."""
        return [line for line in self.text.splitlines() if line.startswith("curl ")]

    @property
    def tokens(self) -> dict[str, tuple[str, str]]:
        """Role to user name and token."""
        found = re.findall(r"^  (admin|service|user) +(\w+) +(\S+)$", self.text, re.MULTILINE)
        return {role: (name, token) for role, name, token in found}

    def url(self, name: str) -> str:
        (url,) = re.findall(rf"^{name} +(http://\S+)", self.text, re.MULTILINE)
        return str(url)


@asynccontextmanager
async def showing(folder: Path, **environ: str) -> AsyncIterator[Demo]:
    """A demo that has said all that it says before anybody asks."""
    ports = dict(zip(("SERVER__PORT", "OPS__PORT"), map(str, free_ports(2)), strict=True))
    async with command(
        "demo", cwd=folder, **{"SERVER__DRAIN_S": "0", **ports, **environ}
    ) as running:
        text = "".join(
            [await running.line("Gateway ")] + [await running.line("") for _ in range(17)]
        )
        yield Demo(running, text, ports)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    async with showing(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest_asyncio.fixture(loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session:
        yield session


async def pasted(line: str) -> tuple[int, Any]:
    """Status and body of the answer to a line, pasted into a shell where there is curl."""
    if shutil.which("bash") and shutil.which("curl"):
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-c", line + " -w '\\n%{http_code}'"),
            env={**os.environ, "no_proxy": "*"},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await shell.communicate()
        body, _, status = out.rpartition(b"\n")
        return int(status), strict_json.parse(body)
    return await sent(line)


async def sent(line: str) -> tuple[int, Any]:
    """The same without a shell."""
    name, silent, *options, url = shlex.split(line)
    assert (name, silent) == ("curl", "-s")
    assert set(options[::2]) == {"-H"}
    headers = dict(header.split(": ") for header in options[1::2])
    async with aiohttp.request("GET", url, headers=headers) as response:
        return response.status, strict_json.parse(await response.read())


# The process.


async def test_it_prints_where_everything_is(demo: Demo, session: aiohttp.ClientSession) -> None:
    api, ops, sandbox = (demo.url(name) for name in ("Gateway", "Operators", "Sandbox ledger"))
    assert api == f"http://127.0.0.1:{demo.ports['SERVER__PORT']}"
    assert ops == f"http://127.0.0.1:{demo.ports['OPS__PORT']}"
    assert f"{api}/docs" in demo.text
    paths = (f"{api}/docs", f"{ops}/status", f"{ops}/health", f"{ops}/metrics", f"{sandbox}/health")
    for url in paths:
        assert (await session.get(url)).status == 200


async def test_it_prints_a_token_good_for_a_day_for_each_role(
    demo: Demo, session: aiohttp.ClientSession
) -> None:
    assert {role: name for role, (name, _) in demo.tokens.items()} == {
        "admin": "admin",
        "service": "settlement",
        "user": "alice",
    }
    for role, (name, token) in demo.tokens.items():
        claims = jwt.decode(token, options={"verify_signature": False})
        assert (claims["username"], claims["role"]) == (name, role)
        assert claims["exp"] - claims["iat"] == 86_400
        headers = {"Authorization": f"Bearer {token}", "username": name}
        response = await session.get(f"{demo.url('Gateway')}/ledger?limit=1", headers=headers)
        assert response.status == 200


async def test_there_are_three_lines_to_paste(demo: Demo) -> None:
    assert len(demo.lines) == 3
    for line, role in zip(demo.lines, ("admin", "user", "service"), strict=True):
        assert demo.tokens[role][1] in line


async def test_the_admins_line_shows_everybodys_rows_with_the_internal_fields(demo: Demo) -> None:
    status, body = await pasted(demo.lines[0])
    assert status == 200
    rows = body["api_data"]
    assert len({row["username"] for row in rows}) > 1
    assert all(set(row) >= INTERNAL for row in rows)
    assert any(row["lp_id"] is not None for row in rows)


async def test_alices_line_shows_her_rows_alone_without_them(demo: Demo) -> None:
    status, body = await pasted(demo.lines[1])
    assert status == 200
    rows = body["api_data"]
    assert rows
    assert {row["username"] for row in rows} == {"alice"}
    assert not any(INTERNAL & set(row) for row in rows)


async def test_the_services_line_shows_the_two_rates_of_the_document(demo: Demo) -> None:
    status, body = await pasted(demo.lines[2])
    assert status == 200
    pairs = {(rate["baseInstrumentCode"], rate["counterInstrumentCode"]) for rate in body}
    assert pairs == {("BRL", "BTC"), ("BTC", "USD")}
    assert len(body) == 2


async def test_each_line_means_the_same_without_a_shell(demo: Demo) -> None:
    for line in demo.lines:
        assert await sent(line) == await pasted(line)


async def test_the_ledger_behind_it_talks_to_the_gateway_alone(
    demo: Demo, session: aiohttp.ClientSession
) -> None:
    sandbox = demo.url("Sandbox ledger")
    assert (await session.get(f"{sandbox}/ledger")).status == 401
    _, token = demo.tokens["admin"]
    headers = {"Authorization": f"Bearer {token}", "username": "admin"}
    assert (await session.get(f"{sandbox}/ledger", headers=headers)).status == 401


async def test_another_one_on_its_port_is_told_and_ends(demo: Demo, tmp_path: Path) -> None:
    async with command("demo", cwd=tmp_path, **demo.ports) as running:
        status, out, err = await running.ended()
    assert status == 1
    assert "in use" in err
    assert "Traceback" not in err
    assert "curl" not in out


async def test_it_takes_its_settings_from_the_folder_and_ends_on_a_signal(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    config = "ledger: {base_url: 'http://127.0.0.1:1'}\nvisibility: {hidden_fields: [status]}\n"
    (tmp_path / "config.yaml").write_text(config)
    async with showing(tmp_path) as demo:
        status, body = await sent(demo.lines[1])
        demo.running.send(signal.SIGTERM)
        ended, _, err = await demo.running.ended()
    assert status == 200
    assert not any("status" in row for row in body["api_data"])
    assert (ended, err) == (0, "")


# Its parts.


def configured(environ: dict[str, str]) -> Config:
    return read(None, demo_environment(environ, 9999, "of-the-demo"))


async def test_whatever_is_configured_its_ledger_is_the_sandbox(tmp_path: Path) -> None:
    credential = tmp_path / "credential"
    credential.write_text("of-another-ledger\n")
    config = configured(
        {
            "GATEWAY_LEDGER__BASE_URL": "https://ledger.internal",
            "GATEWAY_LEDGER__TOKEN": "of-another-ledger",
            "GATEWAY_LEDGER__TOKEN_FILE": str(credential),
            "GATEWAY_AUTH__ALGORITHMS": "RS256",
        }
    )
    assert config.ledger.base_url == "http://127.0.0.1:9999"
    assert config.ledger.token == "of-the-demo"
    assert config.auth.algorithms == ("HS256",)


async def test_its_secret_is_its_own_each_time_unless_one_is_set(tmp_path: Path) -> None:
    first, second = configured({}).auth.secret, configured({}).auth.secret
    assert first is not None
    assert len(first) >= 32
    assert first != second
    path = tmp_path / "secret"
    path.write_text("s" * 40)
    assert configured({"GATEWAY_AUTH__SECRET": "t" * 40}).auth.secret == "t" * 40
    assert configured({"GATEWAY_AUTH__SECRET_FILE": str(path)}).auth.secret == "s" * 40


async def test_the_introduction_names_the_hosts_and_ports_that_are_configured() -> None:
    config = configured(
        {
            "GATEWAY_SERVER__HOST": "gateway.example",
            "GATEWAY_SERVER__PORT": "9090",
            "GATEWAY_OPS__PORT": "9091",
        }
    )
    text = introduction(config, "http://sandbox")
    assert text.count("http://gateway.example:9090") == 5
    assert "http://127.0.0.1:9091 " in text
    assert "http://sandbox " in text
    assert text.isascii()


async def test_the_readme_shows_the_requests_that_it_prints() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    printed = re.findall(r"'(http://\S+)'$", introduction(configured({}), "s"), re.MULTILINE)
    assert len(printed) == 3
    assert re.findall(r"'(http://127\.0\.0\.1:8080/\S+)'$", readme, re.MULTILINE) == printed
