"""`python -m aet_stream` is `aet-stream`."""

from aet_stream.cli import main

raise SystemExit(main())
