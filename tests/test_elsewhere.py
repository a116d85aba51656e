"""The page from elsewhere, in a real browser: the log-in, other addresses, TLS, a link in a wiki, a reverse proxy, several monitors.

The names under `.example` are known to this browser alone: all of them are this computer.
"""

from __future__ import annotations

import logging
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aet_stream.monitor.monitor import Monitor
from tests.browser import Browser, Page, chromium
from tests.harness import wait_for
from tests.proxy import PRINTED, certificate, free_port, nginx, serving, site
from tests.test_monitor import fetch
from tests.test_store import filled

pytestmark = pytest.mark.timeout(400)
FLAGS = ("--host-resolver-rules=MAP wiki.example 127.0.0.1, MAP *.example 127.0.0.2", "--ignore-certificate-errors")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile"), *FLAGS) as found:
        yield found


@pytest.fixture(autouse=True)
def _tidy(browser: Browser) -> Iterator[None]:
    """Every test begins as a stranger, and ends without any page's complaint that it has not looked at."""
    yield
    said = [(page.run("1"), page.errors) for page in browser.pages]
    if browser.pages:
        browser.pages[0].command("Network.clearBrowserCookies")
    browser.close_pages()
    assert not [errors for _, errors in said if errors]


class Scene:
    """Monitors of one series, each with a token of its own, and the proxy before some of them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, ExitStack()
        self.pem = certificate(folder, "DNS:lab.example", "DNS:microscope.example")
        filled(folder / "out", 3)
        self.tokens: dict[str, str] = {}

    def serve(self, name: str, *words: str) -> Monitor:
        token = self._folder / f"{name}.token"
        always = (f"monitor.token_file={token}", "monitor.token=always")
        found = self._open.enter_context(serving(self._folder / "out", *always, *words))
        self.tokens[name] = token.read_text().strip() if token.exists() else ""
        return found

    def proxy(self, servers: str) -> None:
        self._open.enter_context(nginx(self._folder / "nginx", servers))

    def close(self) -> None:
        self._open.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    found = Scene(tmp_path_factory.mktemp("scene"))
    try:
        yield found
    finally:
        found.close()


BEHIND = ('monitor.names=["lab.example"]', 'monitor.trusted_proxies=["127.0.0.0/8"]')


@pytest.fixture(scope="module")
def addresses(scene: Scene) -> dict[str, str]:
    """Where a browser finds each monitor; what begins with `lab` is behind nginx, set up as the documentation prints it, or nearly."""
    cert, key = scene.pem
    named = ("monitor.host=127.0.0.2", 'monitor.names=["microscope.example"]')
    own = {
        "loopback": scene.serve("loopback", f"monitor.port={free_port()}"),
        "named": scene.serve("named", *named),
        "tls": scene.serve("tls", *named, f"monitor.tls_cert={cert}", f"monitor.tls_key={key}"),
    }
    found = {name: monitor.url.replace("127.0.0.2", "microscope.example") for name, monitor in own.items()}
    port = free_port("127.0.0.2")
    taken = scene.serve("lab", *BEHIND).url
    kept = scene.serve("lab kept", *BEHIND, "monitor.base_path=/deep/kept").url
    unaware = scene.serve("unaware", "monitor.token=auto").url
    servers = PRINTED.replace("listen 443", f"listen 127.0.0.2:{port}").replace("http://127.0.0.1:8571/", f"{taken}/")
    servers = servers.replace("/etc/ssl/certs/lab.example.pem", str(cert)).replace("/etc/ssl/private/lab.example.key", str(key))
    location = re.search(r"    location .*?    }\n", servers, re.DOTALL)[0]  # type: ignore[index]

    def like(path: str, old: str = "", new: str = "", to: str = taken) -> str:
        """The printed location, nearly."""
        return re.sub(old or "$^", new, location.replace(taken, to).replace("/aet/", f"/{path}/"))

    more = [
        location.replace(f"{taken}/", kept).replace("/aet/", "/deep/kept/"),
        like("unaware", to=unaware),
        like("foreign", "proxy_http", "proxy_set_header Host $http_host; proxy_http", to=unaware),
        like("mute", ".*X-Forwarded.*"),
        like("deaf", ".*(?:Upgrade|Connection).*"),
    ]
    scene.proxy(servers.replace(location, location + "".join(more)))
    found |= {f"lab {name}": f"https://lab.example:{port}/{name}/" for name in ("unaware", "foreign", "mute", "deaf")}
    return {**found, "lab": f"https://lab.example:{port}/aet/", "lab kept": f"https://lab.example:{port}/deep/kept/"}


def log_in(page: Page, address: str, token: str) -> None:
    """As a person does: open it, type the token, press Enter."""
    page.open(address)
    page.wait("!!document.querySelector('form')", what="the form")
    page.run("document.getElementById('token').focus()")
    page.command("Input.insertText", text=token)
    page.press("Enter", code=13)


def show(page: Page) -> None:
    """Choose the series (without a hub, none is the newest) and wait for its pixels, its thumbnails, and news over the socket."""
    page.command("Page.bringToFront")  # nothing is painted where nobody sees it
    page.wait("!!document.querySelector('#series-list button')", what="the list of series")
    page.run("document.querySelector('#series-list button').click()")
    page.wait("window.aet.painted > 0 && aet.seq > 0", what="pixels and news")
    page.wait("[...document.querySelectorAll('.tile img')].filter((i) => i.complete && i.naturalWidth).length === 3", what="thumbnails")


def forget(page: Page) -> None:
    """Complaints that were meant to be; and leave, before there are more."""
    page.open("about:blank")
    page.wait("location.href === 'about:blank'")
    page.errors.clear()


def cookies(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.command("Network.getCookies")["cookies"]
    return found


@pytest.mark.parametrize("where", ["loopback", "named", "tls", "lab", "lab kept"])
def test_a_browser_logs_in(browser: Browser, scene: Scene, addresses: dict[str, str], where: str) -> None:
    """A wrong token is told, the right one opens the page with pixels and news, and again later: Secure with TLS, the proxy's too."""
    page = browser.page()
    log_in(page, addresses[where], "x" * 43)
    page.wait("location.search === '?wrong' && document.body.innerText.includes('That was another token')", what="word of the wrong token")
    log_in(page, addresses[where], scene.tokens[where])
    show(page)
    assert page.run("location.href") == addresses[where].rstrip("/") + "/"
    encrypted = addresses[where].startswith("https:")
    (cookie,) = cookies(page)
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Lax", encrypted)
    assert scene.tokens[where] not in cookie["value"]
    painted = page.run("aet.painted")
    page.open(addresses[where])
    page.wait(f"window.aet?.seq > 0 && aet.painted < {painted}", what="the page again, without a question")


def test_everything_behind_a_proxy_is_below_its_path(browser: Browser, scene: Scene, addresses: dict[str, str]) -> None:
    """Every request of the page, its downloads and links, whether the proxy takes the path away or not; the path without its last / too."""
    for where in ("lab", "lab kept"):
        page = browser.page()
        log_in(page, addresses[where], scene.tokens[where])
        show(page)
        links = page.run("[...document.querySelectorAll('a[href]')].map((a) => a.href).filter((a) => !a.includes('#'))")
        assert {Path(link).name for link in links} >= {"raw.tiff", "clean.tiff", "summary.csv", "report.html", "status.json", "metrics"}
        answers = page.run(f"Promise.all({links}.map((link) => fetch(link).then((answer) => answer.status)))")
        assert answers == [503 if link.endswith("status.json") else 200 for link in links]  # there is no hub to have a status
        page.errors.clear()
        below = addresses[where].removeprefix("https://")
        assert all(request.partition("://")[2].startswith(below) for request in page.requests if not request.startswith(("data:", "blob:")))
        page.open(addresses[where].removesuffix("/"))
        page.wait(f"window.aet?.seq > 0 && location.href === {addresses[where]!r}", what="the page")


def test_a_link_in_a_wiki_finds_its_reader_known_and_a_form_there_reaches_nothing(
    browser: Browser, scene: Scene, addresses: dict[str, str]
) -> None:
    """Another site's link arrives logged in; its form with the right token, its WebSocket and its script are refused."""
    url, token = addresses["named"], scene.tokens["named"]
    words = (
        f"<a href='{url}/'>our microscope</a>"
        f"<form method=post action='{url}/login'><input name=token value='{token}'><button>go</button></form>"
    )
    page = browser.page()
    log_in(page, url, token)
    show(page)
    with site(words) as port:
        page.open(f"http://wiki.example:{port}/")
        page.wait("!!document.querySelector('a')")
        page.run("document.querySelector('a').click()")
        page.wait(f"window.aet?.seq > 0 && location.href === '{url}/'", what="the page")
        page.open(f"http://wiki.example:{port}/")
        page.wait("!!document.querySelector('a')")
        assert page.run(f"fetch('{url}/api/v1/state', {{ credentials: 'include' }}).then(() => 'read', () => 'refused')") == "refused"
        socket = f"new Promise((end) => {{ const s = new WebSocket('{url.replace('http', 'ws')}/api/v1/events');"
        assert page.run(socket + " s.onopen = () => end('read'); s.onerror = () => end('refused'); })") == "refused"
        page.run("document.querySelector('button').click()")
        page.wait("document.body.innerText.includes('a page of \"http://wiki.example')", what="the refusal")
        forget(page)


def test_a_refusal_names_the_setting_that_would_allow_it(
    browser: Browser, scene: Scene, addresses: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """On the page and in the log: an unknown name, a proxy that is not trusted or says nothing, one that lets no WebSocket through."""
    caplog.set_level(logging.INFO)
    page = browser.page()

    def says(words: str) -> None:
        found = page.wait(f"document.body?.innerText.includes({words!r}) && document.body.innerText", what=words)
        wait_for(lambda: words in caplog.text, what=f"{words} in {caplog.text}")
        assert found

    page.open(addresses["lab foreign"])
    says('set monitor.names = ["lab.example"]')
    page.open(addresses["lab unaware"])
    says('and set monitor.trusted_proxies = ["127.0.0.1"]')
    log_in(page, addresses["lab mute"], scene.tokens["lab"])
    says("let the proxy at 127.0.0.1 send X-Forwarded-Host and X-Forwarded-Proto")
    log_in(page, addresses["lab deaf"], scene.tokens["lab"])
    says("a proxy in between has to pass on the headers Upgrade and Connection")
    forget(page)


def test_what_is_refused_is_in_the_log_with_its_reason_and_no_secret(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong token, a name that is none of ours, an address that nothing is at: once a minute each, and never a token."""
    caplog.set_level(logging.INFO)
    url = scene.serve("asked").url
    bearer, wrong = {"Authorization": f"Bearer {scene.tokens['asked']}"}, "x" * 43
    for _ in range(3):
        assert fetch(f"{url}/api/v1/series/nonsense?token={wrong}", **bearer)[0] == 404
        assert fetch(f"{url}/", Host="evil.example")[0] == 400
        assert fetch(f"{url}/metrics", Authorization=f"Bearer {wrong}")[0] == 401
        form = urllib.request.Request(f"{url}/login", f"token={wrong}".encode(), {"Origin": url})
        with urllib.request.urlopen(form, timeout=15) as answer:
            assert answer.url.endswith("/login?wrong")
    said = [f"{record.levelname} {record.message}" for record in caplog.records if record.name.endswith("security")]
    assert [line for line in said if "a new token" not in line] == [
        "INFO 127.0.0.1 asked for /api/v1/series/nonsense: 404, no such series",
        'WARNING 127.0.0.1 asked for /: 400, this monitor does not answer to the name "evil.example": '
        'if people reach it under that name, set monitor.names = ["evil.example"]',
        "INFO 127.0.0.1 asked for /metrics: 401, a token is needed: Authorization: Bearer TOKEN",
        "WARNING 127.0.0.1 asked for /login: 403, a wrong token",
    ]
    assert wrong not in caplog.text


def test_several_monitors_on_one_host_log_nobody_out(browser: Browser, scene: Scene, addresses: dict[str, str]) -> None:
    """Two on one host and one behind a proxy, two tabs each: all are logged in at once, stay so, and no tab has a complaint."""
    second = scene.serve("second", f"monitor.port={free_port()}").url
    wanted = {"loopback": addresses["loopback"], "second": second, "lab": addresses["lab"]}
    for name, url in wanted.items():
        log_in(browser.page(), url, scene.tokens[name])
    for page in browser.pages:
        page.wait("window.aet?.seq > 0", what="the page")
    for url in wanted.values():
        browser.page(url)
    for page in browser.pages:
        page.wait("window.aet?.seq > 0", what="the page")
        page.run("window.old = true; location.reload()")
    for page in browser.pages:
        page.wait("!window.old && window.aet?.seq > 0 && !location.href.includes('login')", what="the page again")
    for page in browser.pages[:3]:
        show(page)
    assert len(browser.pages) == 6
