"""Keys for workers on other computers: each computer has one, in a file of its owner's; the relay has a list of those it lets in.

A key is 32 bytes of Curve25519 (CURVE, as ZeroMQ has it), written as 64 hexadecimal digits. The public part may be shown to everybody.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import zmq
from zmq.utils import z85

from aet_stream.config import Config
from aet_stream.errors import ConfigError
from aet_stream.transport import run_folder

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII)
_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """Of one computer."""

    public: str
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> Key:
        return cls(z85.decode(zmq.curve_public(z85.encode(secret))).hex(), secret)


def public_key(text: str) -> str:
    """What a person has given as a public key.

    Raises
    ------
    ConfigError : it is none
    """
    if not _KEY.fullmatch(key := text.strip().lower()):
        raise ConfigError(f"{text!r:.80}: a public key is 64 hexadecimal digits, as `aet-stream keys show` prints them")
    return key


def make_key(path: Path) -> Key:
    """A new key in a new file that only its owner may read.

    Raises
    ------
    ConfigError : there is a file already, or none can be made
    """
    public, secret = (z85.decode(part) for part in zmq.curve_keypair())
    content = (
        f"# The secret key of this computer for aet-stream: nobody else may read it.\n# Its public part: {public.hex()}\n{secret.hex()}\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} is there already: remove it first if a new key is wanted; whoever let the old one in must be told"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: no key can be written: {error.strerror}") from error
    return Key(public.hex(), secret)


def load_key(path: Path) -> Key:
    """The key in a file.

    Raises
    ------
    ConfigError : there is none, or others may read it
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others: chmod 600 {path}; if somebody may have done so, make a new one")
        said = _lines(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no key yet; make it: aet-stream keys new {quote(str(path))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the key cannot be read: {error}") from error
    if len(said) != 1 or not _KEY.fullmatch(said[0]):
        raise ConfigError(f"{path} holds no key: remove it, then aet-stream keys new {quote(str(path))}")
    return Key.of(bytes.fromhex(said[0]))


class KeyRing:
    """The relay's key, and who is let in."""

    def __init__(self, config: Config) -> None:
        folder, self._root = config.relay.keys, config.output_root
        self._folder = Path(folder).expanduser().absolute() if folder else config.output_root / "run" / "keys"
        self._seen: tuple[int, int, int] | None = None
        self._known: dict[str, str] = {}

    @property
    def key_file(self) -> Path:
        return self._folder / "relay.key"

    @property
    def list_file(self) -> Path:
        return self._folder / "allowed"

    def own(self) -> Key:
        """Made when it is first asked for.

        Raises
        ------
        ConfigError : it cannot be made or read, or others may read it
        """
        if self.key_file.exists():
            return load_key(self.key_file)
        key = make_key(self.key_file)
        self._give(self.key_file)
        return key

    def allowed(self) -> Mapping[str, str]:
        """Public key -> name of its computer; read again whenever the list has changed.

        Raises
        ------
        ConfigError : a line of the list is none
        """
        try:
            stat = self.list_file.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._known, self._seen = self._parsed(self.list_file.read_text(encoding="utf-8")), seen
        except FileNotFoundError:
            self._known, self._seen = {}, None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.list_file}: the list of keys cannot be read: {error}") from error
        return self._known

    def _parsed(self, text: str) -> dict[str, str]:
        known: dict[str, str] = {}
        for line in _lines(text):
            name, _, key = line.partition(" ")
            if not (NAME.fullmatch(name) and _KEY.fullmatch(key.strip())):
                raise ConfigError(f"{self.list_file}: {line!r:.100} is no `NAME PUBLIC-KEY`: correct or remove that line")
            known[key.strip()] = name
        if len(known) != len(_lines(text)) or len(set(known.values())) != len(known):
            raise ConfigError(f"{self.list_file}: a name or a key stands there twice: each computer has a line of its own")
        return known

    def allow(self, name: str, key: str) -> None:
        """Let a computer in from now on; a name that is there gets the new key.

        Raises
        ------
        ConfigError : name or key is none, or the key has another name
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r}: a name of letters, digits and _.- is needed, at most 32")
        known = dict(self.allowed())
        if known.get(key := public_key(key), name) != name:
            raise ConfigError(f"this key is that of {known[key]}: each computer has its own")
        self._write({**{other: its for other, its in known.items() if its != name}, key: name})

    def forbid(self, name: str) -> None:
        """Let a computer in no more; the relay ends its link within a second.

        Raises
        ------
        ConfigError : there is none of that name
        """
        known = self.allowed()
        if name not in known.values():
            raise ConfigError(f"no computer is called {name!r}; let in are: {', '.join(sorted(known.values())) or 'none'}")
        self._write({key: its for key, its in known.items() if its != name})

    def _write(self, known: Mapping[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self.list_file.with_name(f".allowed.{os.getpid()}")
        draft.write_text(
            "# Computers whose workers are let in: NAME PUBLIC-KEY\n" + "".join(f"{name} {key}\n" for key, name in known.items())
        )
        self._give(draft)
        draft.replace(self.list_file)

    def _give(self, path: Path) -> None:
        """To the owner of the output folder: root may type what a service has to read."""
        if os.geteuid() == 0 and self._root.exists():
            owner = self._root.stat()
            if self._folder.is_relative_to(self._root):
                run_folder(self._root)
            for each in (self._folder, path):
                os.chown(each, owner.st_uid, owner.st_gid)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
