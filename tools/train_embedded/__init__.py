"""Training of the models the course ships in `data/models/`. README.md beside this file holds the commands."""
