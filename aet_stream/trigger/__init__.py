"""trigger: acts on events from the hub's durable outbox; delivery is at least once, the effect idempotent by event id."""
