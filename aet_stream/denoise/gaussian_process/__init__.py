"""Gaussian processes, each in the form that is quickest for its question; all but `learned` in numpy.

- `dense`: seen at some hundred points, by Cholesky factors; and the choice between covariances, by their evidence.
- `cosines`: a smooth surface on a grid, as a sum of some 330 cosines.
- `periodic`: any stationary covariance on a whole grid, by Fourier transforms and conjugate gradients.
- `learned`: `cosines` in torch, with its gradient, so that a network is trained through it.

`separable` makes covariances between points, `lapack` factors them without the interpreter's lock.
"""
