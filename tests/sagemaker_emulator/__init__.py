"""AWS on loopback, for tests: moto answers for every service, and training jobs really run."""
