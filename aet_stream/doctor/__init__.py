"""Is this workstation fit for work? Many small checks, each of which says what it found and what to do about it (`examine.CHECKS`)."""
