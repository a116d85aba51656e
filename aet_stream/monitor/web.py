"""The addresses that the monitor answers at. Files are found by series id; nothing that a client sends becomes part of a path."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from aet_stream.config import Monitor
from aet_stream.errors import StoreError
from aet_stream.monitor import frames, report, words
from aet_stream.monitor.live import VIEWERS, Live, Viewer
from aet_stream.monitor.metrics import Metrics
from aet_stream.monitor.origin import Entrance
from aet_stream.monitor.security import Guard, refused
from aet_stream.monitor.series_cache import FILM_PICTURES, FILM_PICTURES_OF_ONE, KINDS, PLANES, Row, series_id
from aet_stream.naming import shown

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
IMMUTABLE = "private, max-age=86400, immutable"
IMAGES_AT_ONCE = 24
EVENTS = "/api/v1/events"


class Web:
    """Answers from what `live` knows."""

    def __init__(self, settings: Monitor, live: Live, metrics: Metrics, token: str) -> None:
        self._settings = settings
        self._live = live
        self._metrics = metrics
        self._token = token
        self._entrance = Entrance(settings)
        self._images = asyncio.Semaphore(IMAGES_AT_ONCE)
        # All files of the page, read once: names from outside are looked up here and never opened.
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in TYPES}

    def app(self) -> Starlette:
        one, frame = "/api/v1/series/{series}", "/api/v1/series/{series}/frames/{number}"
        routes: list[Route | WebSocketRoute] = [
            Route("/", self._page),
            Route("/login", self._login),
            Route("/static/{name}", self._static),
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics_text),
            Route("/status.json", self._status_json),
            Route("/api/v1/state", self._state),
            Route("/api/v1/doctor", self._doctor),
            Route("/api/v1/series", self._series_list),
            Route(one, self._series),
            Route(one + "/summary.csv", self._summary_csv),
            Route(one + "/report.html", self._report),
            Route(one + "/volume/{plane}", self._plane),
            Route(one + "/atoms", self._atoms),
            Route(one + "/atoms.xyz", self._atoms_xyz),
            Route(one + "/film/{which}", self._film),
            Route(frame + "/film/{which}", self._film),
            Route(frame + "/thumb.png", self._thumb),
            Route(frame + "/difference", self._difference),
            Route(frame + "/{kind}.tiff", self._tiff),
            Route(frame + "/{kind}", self._frame),
            WebSocketRoute(EVENTS, self._events),
            Route(EVENTS, self._why_no_events),
        ]
        middleware = [Middleware(Guard, settings=self._settings, token=self._token)]
        app = Starlette(routes=routes, middleware=middleware, exception_handlers={StoreError: _not_found})
        app.router.redirect_slashes = False  # to an absolute address, as we see it and not the browser
        return app

    # -- the page ---------------------------------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        return self._file("index.html")

    async def _login(self, request: Request) -> Response:
        if not self._token:
            return RedirectResponse("./", 303)
        page = self._file("login.html")
        if "wrong" in request.query_params:
            return Response(bytes(page.body).replace(b" hidden", b"", 1), media_type=page.media_type)
        return page

    async def _static(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            return refused(404, "no such file")
        return Response(self._files[name], media_type=TYPES[Path(name).suffix], headers={"cache-control": "no-cache"})

    # -- for machines -----------------------------------------------------------------------------------------------------------

    async def _livez(self, request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def _readyz(self, request: Request) -> Response:
        """Without a token only whether, not why."""
        troubles = words.troubles(self._live.status, self._live.silence_s())
        why = "; ".join(troubles) if not self._token else "not ready"
        return PlainTextResponse(f"{why}\n" if troubles else "ready\n", 503 if troubles else 200)

    async def _metrics_text(self, request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _status_json(self, request: Request) -> Response:
        silence_s = self._live.silence_s()
        if not self._live.heard_at:
            return _json({"daemon": "the hub has not been heard yet"}, 503)
        answer: dict[str, Any] = {**msgspec.to_builtins(self._live.status), "age_s": round(silence_s, 2)}
        if silence_s > words.STALE_S:
            answer["daemon"] = f"the hub has not been heard for {silence_s:.0f} s"
        return _json(answer, 503 if silence_s > words.STALE_S else 200)

    async def _state(self, request: Request) -> Response:
        return _json(self._live.state())

    async def _doctor(self, request: Request) -> Response:
        if self._live.doctor is None:
            return refused(404, "not examined yet: `aet-stream doctor` says it at once")
        return _json(self._live.doctor)

    async def _events(self, socket: WebSocket) -> None:
        """The whole state first, then what happens; the client has nothing to say."""
        if reason := self._full():
            await socket.send_denial_response(refused(503, reason))
            return
        await socket.accept()
        viewer = Viewer()
        self._live.viewers.add(viewer)
        listening = asyncio.ensure_future(_until_gone(socket))
        try:
            await socket.send_text(_text(self._live.snapshot()))
            while True:
                waiting = asyncio.ensure_future(viewer.next())
                done, _ = await asyncio.wait({waiting, listening}, return_when=asyncio.FIRST_COMPLETED)
                if waiting not in done:
                    waiting.cancel()
                    return
                await socket.send_text(_text(waiting.result()))
        except (WebSocketDisconnect, RuntimeError):
            return  # gone in the middle of a message
        finally:
            self._live.viewers.discard(viewer)
            listening.cancel()

    def _full(self) -> str:
        full = len(self._live.viewers) >= VIEWERS
        return f"{VIEWERS} pages are open already, and more are not served: close some" if full else ""

    async def _why_no_events(self, request: Request) -> Response:
        """For a page whose WebSocket was not opened: a browser tells nobody why. Its Referer says where it is."""
        foreign = self._entrance.foreign_page(request.scope, request.headers.get("referer"))
        proxy = "what comes here is no WebSocket: a proxy in between has to pass on the headers Upgrade and Connection, in HTTP/1.1"
        return refused(426, f"{foreign or self._full() or proxy} (docs/monitor.md)", upgrade="websocket")

    # -- series -----------------------------------------------------------------------------------------------------------------

    async def _series_list(self, request: Request) -> Response:
        """Every series on disk, the latest first, with what the hub says of it."""
        said = {row.name: asdict(row) for row in self._live.status.series}
        names = await self._live.read(self._live.cache.names)
        return _json([{**said.get(name, {}), "id": series_id(name), "name": shown(name)} for name in names])

    async def _series(self, request: Request) -> Response:
        return _json(await self._live.series(request.path_params["series"]))

    async def _summary_csv(self, request: Request) -> Response:
        found = await self._live.series(request.path_params["series"])
        columns = list(dict.fromkeys(key for row in found["rows"] for key in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows({key: _harmless(value) for key, value in row.items()} for row in found["rows"])
        return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=_download(f"{found['id']}.csv"))

    async def _report(self, request: Request) -> Response:
        name = await self._live.read(lambda: self._live.cache.name_of(request.path_params["series"]))
        page = await self._live.read(
            lambda: report.of_series(self._live.cache, name, self._live.limits, self._live.status if self._live.heard_at else None)
        )
        return Response(page, media_type=TYPES[".html"], headers={"content-security-policy": report.CSP})

    # -- images -----------------------------------------------------------------------------------------------------------------

    async def _row(self, request: Request) -> tuple[str, Row]:
        wanted, said = request.path_params["series"], request.path_params["number"]
        cache = self._live.cache
        if not re.fullmatch(r"[0-9]{1,9}", said):
            raise StoreError("no such projection")
        number, edition = int(said), request.query_params.get("edition", "")
        if edition and not re.fullmatch(r"[0-9]{1,4}", edition):
            raise StoreError("no such edition")

        def find() -> tuple[str, Row]:
            name = cache.name_of(wanted)
            row = cache.row(name, number)
            return name, cache.in_edition(name, row, int(edition)) if edition else row

        return await self._live.read(find)

    async def _frame(self, request: Request) -> Response:
        kind, factor = request.path_params["kind"], request.query_params.get("bin", "1")
        if kind not in KINDS or factor not in map(str, frames.BINS):
            raise StoreError("no such image")
        async with self._images:
            name, row = await self._row(request)
            encoded = await self._live.read(lambda: self._live.cache.encoded(name, row, kind, int(factor)))
        return _image(
            encoded,
            f"{row['clean_crc32']}-{kind}-{factor}",
            fixed=request.query_params.get("v") == str(row["clean_crc32"]),
            request=request,
        )

    async def _difference(self, request: Request) -> Response:
        """Of a projection: what it shows, and what it would show in the edition that is named."""
        async with self._images:
            name, other = await self._row(request)
            cache = self._live.cache
            return _json(await self._live.read(lambda: cache.difference(name, cache.row(name, other["number"]), other)))

    async def _plane(self, request: Request) -> Response:
        plane = request.path_params["plane"]
        if plane not in PLANES:
            raise StoreError("no such slice")
        cache = self._live.cache
        name = await self._live.read(lambda: cache.name_of(request.path_params["series"]))
        encoded = await self._live.read(lambda: cache.plane(name, plane))
        return _image(encoded, "", fixed=False, request=request)

    async def _atoms(self, request: Request) -> Response:
        cache = self._live.cache
        body = await self._live.read(lambda: cache.atom_places(cache.name_of(request.path_params["series"])))
        return Response(body, media_type="application/octet-stream", headers={"cache-control": "no-cache"})

    async def _atoms_xyz(self, request: Request) -> Response:
        cache, wanted = self._live.cache, request.path_params["series"]
        body = await self._live.read(lambda: cache.atom_file(cache.name_of(wanted), ".xyz"))
        return Response(body, media_type="chemical/x-xyz", headers=_download(f"{wanted}.xyz"))

    async def _film(self, request: Request) -> Response:
        """A picture of the film: of the series, or of what it says of one projection."""
        which, said, cache = request.path_params["which"], request.path_params.get("number"), self._live.cache
        if which not in (FILM_PICTURES if said is None else FILM_PICTURES_OF_ONE):
            raise StoreError("no such picture")
        if said is None:
            name, number = await self._live.read(lambda: cache.name_of(request.path_params["series"])), None
        else:
            name, row = await self._row(request)
            number = int(row["number"])
        encoded = await self._live.read(lambda: cache.film_encoded(name, which, number))
        return _image(encoded, "", fixed=False, request=request)

    async def _thumb(self, request: Request) -> Response:
        name, row = await self._row(request)
        png = await self._live.read(lambda: frames.grey_png(self._live.cache.small(name, row)))
        fixed = request.query_params.get("v") == str(row["clean_crc32"])
        return Response(png, media_type="image/png", headers={"cache-control": IMMUTABLE if fixed else "no-cache"})

    async def _tiff(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in KINDS:
            raise StoreError("no such image")
        async with self._images:
            name, row = await self._row(request)
            size_nm = row.get("pixel_size_nm") or float("nan")
            about = f"{kind}, tilt {row['tilt_deg']:+.2f} deg, {row['path']}[{row['image']}], {row.get('model', '')}"
            body = await self._live.read(
                lambda: frames.tiff(
                    self._live.cache.image(name, row, kind), pixel_size_nm=size_nm, description=about.encode("ascii", "replace").decode()
                )
            )
        return Response(body, media_type="image/tiff", headers=_download(f"{row['number']:06d}_{kind}.tif"))


def _image(encoded: frames.Encoded, tag: str, *, fixed: bool, request: Request) -> Response:
    """Pixels with what is needed to read them. An address with the right checksum (`v`) never shows anything else."""
    headers = {
        "x-shape": f"{encoded.shape[0]},{encoded.shape[1]}",
        "x-dtype": encoded.dtype,
        "x-range": f"{encoded.offset!r},{encoded.scale!r}",
        "cache-control": IMMUTABLE if fixed else "no-cache",
    }
    if tag:
        headers["etag"] = f'"{tag}"'
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
    return Response(encoded.body, media_type="application/octet-stream", headers=headers)


async def _until_gone(socket: WebSocket) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, KeyError):
        while True:
            await socket.receive_text()


async def _not_found(request: Request, error: Exception) -> Response:
    return refused(404, shown(str(error)))


def _download(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _harmless(cell: Any) -> Any:
    """A text that a spreadsheet would run as a formula is kept a text (OWASP, "CSV Injection"); numbers stay numbers."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _json(value: Any, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), code, media_type="application/json")
