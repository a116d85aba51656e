"""monitor: status over HTTP for people and machines. It reads, never writes; asyncio lives only here."""

from aet_stream.monitor.monitor import Monitor

__all__ = ["Monitor"]
