"""For maintainers and for `make`: run the course, ask the handbook, render what the registry decides, measure speed."""
