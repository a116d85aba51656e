"""The films of a series, from `series.h5` to an edition and `film.h5`: run.py does it, film_file.py says what stands in the file."""
