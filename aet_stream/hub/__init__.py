"""The hub: the only writer of the ledger and of the series."""
