"""Make and judge a network: simulated frames, one training loop, one table."""
