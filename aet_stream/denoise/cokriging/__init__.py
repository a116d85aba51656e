"""The backgrounds of a whole series at once: co-kriging of films that turn with the specimen.

A film behind the particle is hidden at one tilt and seen at another. `estimate` takes what every projection shows of its background and
its first edition, and gives what the series changes about each, with the film as it has been seen.

    seen.py        what a projection shows         model.py       films, own parts, and their covariances
    scan.py        where a film lies               likelihood.py  amplitudes and geometry, by what the vacuum says
    posterior.py   the films, given everything     drawing.py     under one particle; a ring that is held back
    doubted.py     vacuum that counts for less     totals.py      what the particle's totals say of both
    gate.py        who is believed                 estimator.py   all of it, in order
"""
